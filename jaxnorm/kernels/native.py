"""One operation in two forms, and the one place that decides which of them runs.

The plain form is a function of jax.numpy, and the definition. The native form is a handler of the
library, on the same operands, and runs where the platform is a CPU, the input has a view and one
device has all of it: alone, or its part under `pmap` and `shard_map`. Where `jit` partitions an
operation over devices by itself, in an exported program and on other platforms the plain form runs.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.ffi
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import PartitionSpec

from jaxnorm.kernels.checkify import check_nan
from jaxnorm.kernels.library import library
from jaxnorm.kernels.standard import only_standard
from jaxnorm.kernels.varying import alike
from jaxnorm.kernels.view import View

DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16, jnp.float64)

Result = tuple[tuple[int, ...], Any]


class Operation(NamedTuple):
    """An operation in both forms (hashable).

    Attributes:
        handler: of the library.
        plain: called as plain(form, *operands), with None for what is not given; gives the results
            in the handler's order, None for what is not wanted.
        form: static.
        view: of the input.
        results: shape and dtype of each result of the handler, None for what is not wanted.
        attributes: of the handler.
        scalar: whether the last operand is one number, the same for the whole batch of a `vmap`.
        given: for each operand of the handler, whether it is given.
        batches: sizes of the axes that `vmap` put in front of all operands and results.
    """

    handler: str
    plain: Callable[..., Sequence[jax.Array | None]]
    form: Any
    view: View
    results: tuple[Result | None, ...]
    attributes: tuple[tuple[str, Any], ...] = ()
    scalar: bool = False
    given: tuple[bool, ...] = ()
    batches: tuple[int, ...] = ()


def has_native(x: jax.Array, view: View | None) -> bool:
    """Whether an operation on `x` has a native form somewhere, and may take it."""
    if only_standard():
        return False
    explicit = any(jax.typeof(x).sharding.spec)  # then shardings follow from the plain form
    return view is not None and x.dtype in DTYPES and not explicit


_forced_plain = False


@contextlib.contextmanager
def plain_form() -> Iterator[None]:
    """Programs that are lowered inside take the plain form, to compare the two in one process."""
    global _forced_plain
    before, _forced_plain = _forced_plain, True
    try:
        yield
    finally:
        _forced_plain = before


def run(operation: Operation, *operands: jax.Array | None) -> list[jax.Array | None]:
    """The results of an operation in the form that is right where it runs."""
    operation = operation._replace(given=tuple(operand is not None for operand in operands))
    present = alike([operand for operand in operands if operand is not None])
    results = iter(_native_p.bind(*present, operation=operation))
    return [None if wanted is None else next(results) for wanted in operation.results]


def _plain(*present: jax.Array, operation: Operation) -> list[jax.Array]:
    """The plain form, of the operands that are given and the results that are wanted."""

    def form(*present: jax.Array) -> list[jax.Array]:
        operands = iter(present)
        every = [next(operands) if given else None for given in operation.given]
        return [part for part in operation.plain(operation.form, *every) if part is not None]

    axes: list[int | None] = [0] * len(present)
    if operation.scalar:
        axes[-1] = None
    for _ in operation.batches:
        form = jax.vmap(form, in_axes=tuple(axes))
    return form(*present)


def _native(*present: jax.Array, operation: Operation) -> list[jax.Array]:
    """The call of the handler, with empty arrays for what is not given or not wanted."""
    operands, statistics = iter(present), _statistics_dtype(present[0].dtype)
    every = [next(operands) if given else jnp.zeros(0, statistics) for given in operation.given]
    results = [
        jax.ShapeDtypeStruct((0,), statistics) if wanted is None else jax.ShapeDtypeStruct(*wanted)
        for wanted in operation.results
    ]
    *extents, by_row = operation.view
    view = {name: np.int64(size) for name, size in zip("ARGST", extents, strict=True)}
    call = jax.ffi.ffi_call(operation.handler, results)
    found = call(*every, **view, by_row=by_row, **dict(operation.attributes))
    return [part for part, wanted in zip(found, operation.results, strict=True) if wanted]


def _statistics_dtype(dtype: Any) -> Any:
    """The dtype of statistics and parameters."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


_native_p = Primitive("jaxnorm_native")
_native_p.multiple_results = True


def _evaluated(*present: jax.Array, operation: Operation) -> Any:
    """The results outside `jit`: compiled, or step by step while JAX is asked to debug."""
    form = _plain if debugging() else _compiled
    return form(*present, operation=operation)


def debugging() -> bool:
    """Whether JAX runs `jit` as Python, or looks for the operation that gives NaN or inf."""
    config: Any = jax.config
    return bool(config.jax_disable_jit or config.jax_debug_nans or config.jax_debug_infs)


@functools.partial(jax.jit, static_argnames="operation")
def _compiled(*present: jax.Array, operation: Operation) -> Any:
    return _native_p.bind(*present, operation=operation)


def _abstract(*present: Any, operation: Operation) -> list[Any]:
    x = present[0]
    return [
        x.update(
            shape=shape,
            dtype=jnp.dtype(dtype),
            weak_type=False,
            sharding=x.sharding.update(spec=PartitionSpec(*(None for _ in shape))),
        )
        for shape, dtype in filter(None, operation.results)
    ]


def _batched(
    operands: Sequence[jax.Array], axes: Sequence[Any], *, operation: Operation
) -> tuple[Any, Any]:
    """All operands with the batch in front, where it is a part of the view's A."""
    if operation.scalar and axes[-1] is not None:
        plain = functools.partial(_plain, operation=operation)
        found = jax.vmap(plain, in_axes=tuple(axes))(*operands)
        return found, [0] * len(found)
    size = next(
        operand.shape[axis]
        for operand, axis in zip(operands, axes, strict=True)
        if axis is not None
    )
    split = len(operands) - operation.scalar
    front = [
        jnp.broadcast_to(operand, (size, *operand.shape))
        if axis is None
        else jnp.moveaxis(operand, axis, 0)
        for operand, axis in zip(operands[:split], axes[:split], strict=True)
    ]
    batched = operation._replace(
        view=operation.view._replace(A=size * operation.view.A),
        results=tuple(part and ((size, *part[0]), part[1]) for part in operation.results),
        batches=(*operation.batches, size),
    )
    found = _native_p.bind(*alike([*front, *operands[split:]]), operation=batched)
    return found, [0] * len(found)


def _derivative(
    operands: Sequence[jax.Array], tangents: Sequence[Any], *, operation: Operation
) -> tuple[Any, Any]:
    """The derivative is that of the plain form."""
    moving = [at for at, tangent in enumerate(tangents) if type(tangent) is not ad.Zero]

    def plain(*moved: jax.Array) -> list[jax.Array]:
        every = list(operands)
        for at, operand in zip(moving, moved, strict=True):
            every[at] = operand
        return _plain(*every, operation=operation)

    results = _native_p.bind(*operands, operation=operation)
    _, dresults = jax.jvp(plain, [operands[at] for at in moving], [tangents[at] for at in moving])
    return results, dresults


def _lowered(context: Any, *operands: Any, operation: Operation) -> Any:
    form = _native if _runs_native(context.module_context) else _plain
    return mlir.lower_fun(form)(context, *operands, operation=operation)


def _runs_native(module: Any) -> bool:
    """Whether a program that is lowered for the CPU holds the native form."""
    several = len(module.platforms) > 1
    if _forced_plain or several or module.lowering_parameters.for_export or not library().loaded:
        return False
    where = module.axis_context
    if hasattr(where, "num_devices"):  # jit: it partitions where there are several
        return bool(where.num_devices == 1)
    if hasattr(where, "manual_axes"):  # pmap and shard_map: by hand over all axes
        return bool(where.manual_axes == frozenset(where.mesh.axis_names))
    return False


_native_p.def_impl(_evaluated)
_native_p.def_abstract_eval(_abstract)
batching.primitive_batchers[_native_p] = _batched
ad.primitive_jvps[_native_p] = _derivative
mlir.register_lowering(_native_p, mlir.lower_fun(_plain))
mlir.register_lowering(_native_p, _lowered, platform="cpu")
check_nan(_native_p)
