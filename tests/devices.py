"""What the tests of many devices share: meshes, ways of running, what a program communicates."""

import jax
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from benchmarks.collectives import collectives

WAYS = ["vmap", "pmap", "shard_map", "unchecked"]
DEVICES = ["pmap", "shard_map", "unchecked"]


def mesh(kind=AxisType.Auto, shape=(8,), names=("i",)):
    """Give a mesh of as many devices as it needs."""
    devices = jax.devices()[: int(np.prod(shape))]
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(names), devices=devices)


def mapped(way, function, devices=8):
    """Map a function of one device's arrays over their first axis, under the axis name i."""
    if way == "vmap":
        return jax.jit(jax.vmap(function, axis_name="i"))
    if way == "pmap":
        return jax.pmap(function, axis_name="i", devices=jax.devices()[:devices])

    def block(*rows):
        results = function(*jax.tree.map(lambda row: row[0], rows))
        return jax.tree.map(lambda leaf: leaf[None], results)

    return jax.jit(
        jax.shard_map(
            block,
            mesh=mesh(shape=(devices,)),
            in_specs=P("i"),
            out_specs=P("i"),
            check_vma=way == "shard_map",
        )
    )


def over_devices(way, function, *arrays):
    """Call the function on every device with its row of the arrays."""
    return mapped(way, function, len(arrays[0]))(*arrays)


def kinds(compiled):
    """Give the kinds of a compiled program's collectives."""
    return [collective.kind for collective in collectives(compiled)]


def flat(array):
    """Lay the shards of a batch one after the other."""
    return np.reshape(array, (-1, *np.shape(array)[2:]))
