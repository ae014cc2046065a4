"""One of several processes: `process_worker.py ADDRESS PROCESSES INDEX DIRECTORY`.

It normalizes its part of a batch that all processes share, and writes what it has: its rows of the
output and of the gradient, the new statistics, and a fit to the batch as inputs.
"""

import sys
from pathlib import Path

import jax
import numpy as np
from environment import generator
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from waiting import PATIENCE

import jaxnorm as jn

EXAMPLES, CHANNELS, MEAN = 16, 3, 1e3
WAYS = ("pmap", "shard_map", "jit", "explicit")


def batch():
    """Give the whole batch, a mask that leaves the last quarter nothing, and a cotangent."""
    draws = generator()
    shift = MEAN + np.arange(EXAMPLES)[:, None]
    x = (draws.normal(size=(EXAMPLES, CHANNELS)) + shift).astype(np.float32)
    where = draws.random((EXAMPLES, 1)) < 0.7
    where[EXAMPLES * 3 // 4 :] = False
    return x, where, np.where(where, draws.normal(size=x.shape), 0).astype(np.float32)


def step(axis_name):
    """Give the output, the new statistics and fit, and the gradient of rows of the batch."""

    def run(x, where, g):
        def forward(x):
            stats = jn.init_batch_stats(CHANNELS)
            return jn.batch_norm(x, stats, train=True, where=where, axis_name=axis_name)

        y, backward, new = jax.vjp(forward, x, has_aux=True)
        fit = jn.init_input_stats(CHANNELS)
        fit = jn.update_input_stats(fit, x, where=where, axis_name=axis_name)
        return y, new | {f"fit_{key}": value for key, value in fit.items()}, *backward(g)

    return run


def run(way, arrays):
    """Run the step on all processes; give this one's rows, and the statistics it holds."""
    process, count = jax.process_index(), jax.process_count()
    mine = [np.split(array, count)[process] for array in arrays]
    if way == "pmap":
        devices = jax.local_device_count()
        shards = [array.reshape(devices, -1, array.shape[-1]) for array in mine]
        y, new, gradient = jax.pmap(step("i"), axis_name="i")(*shards)
        rows = [np.asarray(array).reshape(-1, CHANNELS) for array in (y, gradient)]
        return rows, {key: np.asarray(value) for key, value in new.items()}
    kind = AxisType.Explicit if way == "explicit" else AxisType.Auto
    mesh = jax.make_mesh((jax.device_count(),), ("i",), axis_types=(kind,))
    split = NamedSharding(mesh, P("i"))
    function = step("i" if way == "shard_map" else None)
    if way == "shard_map":
        function = jax.shard_map(
            function, mesh=mesh, in_specs=P("i"), out_specs=(P("i"), P(), P("i"))
        )
    with jax.set_mesh(mesh):
        whole = [jax.make_array_from_process_local_data(split, array) for array in mine]
        y, new, gradient = jax.jit(function)(*whole)
    rows = [rows_of(array) for array in (y, gradient)]
    held = {
        key: np.stack([shard.data for shard in value.addressable_shards])
        for key, value in new.items()
    }
    return rows, held


def rows_of(array):
    """Give this process's rows."""
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([shard.data for shard in shards])


def main():
    address, processes, index, directory = sys.argv[1:]
    jax.distributed.initialize(
        address,
        int(processes),
        int(index),
        initialization_timeout=PATIENCE,
        heartbeat_timeout_seconds=PATIENCE,
        shutdown_timeout_seconds=PATIENCE,
    )
    arrays = batch()
    for way in WAYS:
        (y, gradient), held = run(way, arrays)
        path = Path(directory) / f"{way}-{index}.npz"
        np.savez(path, y=y, gradient=gradient, **held)
    jax.distributed.shutdown()


if __name__ == "__main__":
    main()
