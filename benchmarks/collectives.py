"""The communication of synced batch normalization, counted in compiled programs.

XLA creates eight CPU devices when the process starts. Therefore the counting runs in a separate
process.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxnorm.linen as jnn
from benchmarks.table import Table

WAYS = ("pmap", "shard_map", "jit")
# devices, channels, batch: one of them changes at a time
SIZES = ((8, 64, 64), (4, 64, 64), (2, 64, 64), (8, 256, 64), (8, 64, 256))
_COLLECTIVE = re.compile(
    r"= (\S+|\(.*?\)) "
    r"(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)


class Collective(NamedTuple):
    """The kind of a collective and the bytes of its result on each device."""

    kind: str
    nbytes: int


def collectives(program: Any) -> list[Collective]:
    """Return the collectives of a compiled program."""
    found = _COLLECTIVE.findall(program.as_text())
    return [
        Collective(kind, sum(map(_nbytes, re.findall(r"\w+\[[\d,]*\]", results))))
        for results, kind in found
    ]


def _nbytes(result: str) -> int:
    """Return the bytes of an array such as "f32[8,3,64]"."""
    dtype, shape = result.rstrip("]").split("[")
    sizes = [int(size) for size in shape.split(",") if size]
    return int(np.prod(sizes)) * int(re.findall(r"\d+", dtype)[-1]) // 8


def step(library: Any, way: str, devices: int, channels: int, batch: int) -> list[Any]:
    """Return the compiled forward pass of a BatchNorm, and that with the gradient of its input."""
    x = jnp.zeros((batch, 8, 8, channels))
    axis_name = None if way == "jit" else "i"
    norm = library.BatchNorm(use_running_average=False, axis_name=axis_name)
    variables = norm.init(jax.random.key(0), x[:1])

    def forward(x: jax.Array) -> Any:
        return norm.apply(variables, x, mutable=["batch_stats"])

    def both(x: jax.Array) -> Any:
        y, backward, updates = jax.vjp(forward, x, has_aux=True)
        return backward(jnp.sin(y)), updates

    return [compiled(way, function, (x,), devices) for function in (forward, both)]


def compiled(way: str, function: Callable[..., Any], arrays: Any, devices: int) -> Any:
    """Return the compiled program of a function of arrays that are sharded over the first axis.

    Args:
        way: "pmap", "shard_map", "unchecked" (shard_map without its check of varying axes), "jit",
            or "explicit" (jit on a mesh with explicit axes).
        function: returns a sharded array, and values that are the same on all devices.
    """
    some = jax.devices()[:devices]
    if way == "pmap":
        shards = jax.tree.map(lambda array: array.reshape(devices, -1, *array.shape[1:]), arrays)
        return jax.pmap(function, axis_name="i", devices=some).lower(*shards).compile()
    kind = AxisType.Explicit if way == "explicit" else AxisType.Auto
    mesh = jax.make_mesh((devices,), ("i",), axis_types=(kind,), devices=some)
    if way in ("shard_map", "unchecked"):
        function = jax.shard_map(
            function,
            mesh=mesh,
            in_specs=P("i"),
            out_specs=(P("i"), P()),
            check_vma=way == "shard_map",
        )
    split = jax.device_put(arrays, NamedSharding(mesh, P("i")))
    with jax.set_mesh(mesh):
        return jax.jit(function).lower(*split).compile()


def count() -> list[tuple[str, ...]]:
    """Return the rows of the table."""
    rows = []
    for way in WAYS:
        for size in SIZES:
            row = [way, *map(str, size)]
            for library in (jnn, nn):
                forward, both = (collectives(program) for program in step(library, way, *size))
                row += [described(forward), described(both[len(forward) :])]
            rows.append(tuple(row))
    return rows


def described(found: Sequence[Collective]) -> str:
    """Return text such as "1 all-gather, 6.1 kB"."""
    kinds = [collective.kind for collective in found]
    names = " + ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    return f"{names}, {sum(c.nbytes for c in found) / 1000:.1f} kB" if found else "none"


@cache
def counted() -> list[list[str]]:
    """Return the rows of the table from a process with eight devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.collectives"],
        env=os.environ | {"XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        check=True,
    )
    rows: list[list[str]] = json.loads(process.stdout)
    return rows


def measure(full: bool) -> list[Table]:
    """Return the collectives and bytes of a layer and step, for jaxnorm and for Flax."""
    libraries = [f"{name} {way}" for name in ("jaxnorm", "Flax") for way in ("forward", "backward")]
    return [
        Table(
            title="Collectives of synced batch normalization",
            columns=("way", "devices", "channels", "batch", *libraries),
            rows=counted(),
            notes=(
                "One layer and one training step in float32. The sizes are those of the "
                "collectives' results on one device. Under jit the batch is sharded, and there is "
                f"no axis name. Counted with jax {version('jax')} and flax {version('flax')}."
            ),
        )
    ]


if __name__ == "__main__":
    print(json.dumps(count()))
