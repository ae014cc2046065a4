"""What a program moves and runs, read from the text that XLA gives of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple


class Counts(NamedTuple):
    """Of one device's program.

    Attributes:
        streams: the bytes of all arrays of about the input's size that kernels read from or write
            to the device's memory, over the input's bytes.
        moved: the bytes of all arrays that kernels read from or write to the device's memory.
        kernels: those that run one after another; a loop's body counts once, and of a conditional
            the branch that is taken if its condition is true.
        cycles: those that the compiler for a TPU estimates, of all kernels.
        collectives: the bytes that the device has of each collective's result, by kind.
    """

    streams: float
    moved: int
    kernels: int
    cycles: int
    collectives: dict[str, list[int]]


class _Array(NamedTuple):
    elements: int
    nbytes: int
    in_memory: bool  # not in a TPU's memory on the chip


class _Instruction(NamedTuple):
    name: str
    results: list[_Array]
    operation: str
    arguments: str
    attributes: str

    @property
    def operands(self) -> list[str]:
        return _NAME.findall(self.arguments)

    def calls(self) -> list[str]:
        """The computations that it runs."""
        return [name for names in _CALLS.findall(self.attributes) for name in _NAME.findall(names)]


_Computation = dict[str, _Instruction]

_NAME = re.compile(r"%([\w.\-]+)")
_CALLS = re.compile(
    r"(?:calls|body|to_apply|branch_computations|called_computations)=(\{[^}]*\}|%[\w.\-]+)"
)
_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)")
_ARRAY = re.compile(r"(pred|[a-z]+\d+\w*)\[([\d,]*)\](\{[^}]*\})?")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_COLLECTIVE = re.compile(
    r"(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-done)?"
)
_RUNS_OTHERS = ("call", "while", "conditional", "async-start")
_FREE = re.compile(
    r"parameter|constant|tuple|get-tuple-element|bitcast|iota|after-all|opt-barrier|partition-id|"
    r"replica-id|add-dependency|domain|.*-done"
)
_FREE_CUSTOM = ('custom_call_target="AllocateBuffer"', 'custom_call_target="ConcatBitcast"')


def read(text: str, elements: int, nbytes: int) -> Counts:
    """Count what a program does; `elements` and `nbytes` are those of a device's input."""
    computations, entry = _parsed(text)
    big = moved = kernels = cycles = 0
    collectives: dict[str, list[int]] = {}
    for instruction, around in _executed(computations, entry):
        inner = [
            computations.get(name, {})
            for name in instruction.calls()
            if instruction.operation.startswith("fusion")
        ]
        for part in [instruction, *(part for c in inner for part in c.values())]:
            if collective := _COLLECTIVE.fullmatch(part.operation):
                size = sum(array.nbytes for array in part.results)
                collectives.setdefault(collective[1], []).append(size)
        cycles += sum(map(int, _CYCLES.findall(instruction.attributes)))
        if _FREE.fullmatch(instruction.operation) or any(
            target in instruction.attributes for target in _FREE_CUSTOM
        ):
            continue
        copies = instruction.operation in ("copy-start", "slice-start")  # beside the kernels
        kernels += not copies
        arrays = _read(instruction, around, inner) + _written(instruction)
        arrays = [array for array in arrays if array.in_memory]
        moved += sum(array.nbytes for array in arrays)
        big += sum(array.nbytes for array in arrays if array.elements >= elements / 2)
    return Counts(round(big / nbytes, 2), moved, kernels, cycles, collectives)


def _parsed(text: str) -> tuple[dict[str, _Computation], str]:
    """The computations by name, and the name of the one that is run."""
    computations: dict[str, _Computation] = {}
    entry, current = "", ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = head[2]
            computations[current] = {}
            entry = current if head[1] else entry
        elif found := _LINE.match(line):
            name, results, operation, rest = found.groups()
            arguments, _, attributes = rest.partition(")")
            computations[current][name] = _Instruction(
                name, _arrays(results), operation, arguments, attributes
            )
    return computations, entry


def _arrays(shape: str) -> list[_Array]:
    """Those of a shape, as in "(f32[8,128]{1,0:T(8,128)S(1)}, pred[])"."""
    arrays = []
    for dtype, sizes, layout in _ARRAY.findall(shape):
        elements = 1
        for size in filter(None, sizes.split(",")):
            elements *= int(size)
        bits = 8 if dtype == "pred" else int(re.findall(r"\d+", dtype)[0])
        in_memory = re.search(r"S\([1-9]", layout) is None
        arrays.append(_Array(elements, elements * bits // 8, in_memory))
    return arrays


def _executed(
    computations: dict[str, _Computation], name: str
) -> Iterator[tuple[_Instruction, _Computation]]:
    """The instructions of a computation and of those that it calls, with what is around them."""
    for instruction in computations[name].values():
        if instruction.operation in _RUNS_OTHERS:
            called = instruction.calls()
            for taken in called[-1:] if instruction.operation == "conditional" else called:
                yield from _executed(computations, taken)
        else:
            yield instruction, computations[name]


def _read(
    instruction: _Instruction, around: _Computation, inner: list[_Computation]
) -> list[_Array]:
    """What it reads; of an array that is only sliced, the slices."""
    arrays = []
    for index, name in enumerate(instruction.operands):
        whole = around[name].results if name in around else []
        slices = [array for computation in inner for array in _slices(computation, index)]
        if instruction.operation == "slice-start":  # onto the chip
            slices = instruction.results[1:2]
        for part in slices if whole else []:
            arrays.append(whole[0]._replace(nbytes=part.nbytes))
        arrays += [] if slices else whole
    return arrays


def _slices(computation: _Computation, index: int) -> list[_Array]:
    """Those of a fusion's parameter, where it does nothing else with it."""
    [parameter] = [
        part.name
        for part in computation.values()
        if part.operation == "parameter" and part.arguments == str(index)
    ]
    users = [part for part in computation.values() if parameter in part.operands]
    slices = [
        part
        for part in users
        if part.operation in ("slice", "dynamic-slice") and part.operands[0] == parameter
    ]
    return [array for part in slices for array in part.results] if slices == users else []


def _written(instruction: _Instruction) -> list[_Array]:
    """What it writes; the results of a copy that is started hold its operand too."""
    if instruction.operation == "slice-start":
        return []
    return instruction.results[: 1 if instruction.operation == "copy-start" else None]
