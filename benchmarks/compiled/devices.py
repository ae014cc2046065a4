"""An H100 and a TPU v5e that are not there, and what their compilers make of a function."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.compiled.read import read

AXIS = "devices"

os.environ |= {  # nothing is asked about the machine, and several processes may compile
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@cache
def mesh(platform: str, devices: int) -> Mesh:
    """A mesh of some of the eight devices of a platform, or of this machine's if it is "here"."""
    if platform == "here":
        return Mesh(np.array(jax.devices()[:devices]), (AXIS,))
    jax.config.update("jax_platforms", "cpu")  # the compilers for the others ask for no device
    if platform == "tpu":
        topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4")
    else:
        config = Path(__file__).with_name("h100.txtpb").read_text()
        topology = topologies.get_topology_desc(
            platform="cuda", topology="1x1x8", target_config=config
        )
    return Mesh(np.array(topology.devices[:devices]), (AXIS,))


def array(shape: tuple[int, ...], dtype: Any, mesh: Mesh, split: P) -> jax.ShapeDtypeStruct:
    """An array on a mesh, by its shape and dtype alone."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, split))


def counts(platform: str, function: Callable[..., Any], x: Any, *others: Any) -> dict[str, Any]:
    """What the compiled function does on each device, from its text and by the compiler.

    Args:
        x: the input whose size is the unit of the streams.

    Returns:
        The `Counts` of the text, the bytes that the compiler's analysis says are accessed, and the
        bytes of temporary memory.
    """
    compiled = jax.jit(function).lower(x, *others).compile()
    local = x.sharding.shard_shape(x.shape)
    elements = int(np.prod(local))
    found = read(compiled.as_text(), elements, elements * jnp.dtype(x.dtype).itemsize)
    return found._asdict() | {
        "accessed": int(_cost(compiled, platform)["bytes accessed"]),
        "temporary": compiled.memory_analysis().temp_size_in_bytes,
    }


def _cost(compiled: Any, platform: str) -> dict[str, float]:
    """The compiler's analysis, which the one for a GPU gives of the program only."""
    if platform == "tpu":
        return compiled.cost_analysis()
    from jax._src.lib import _jax

    [module] = compiled.runtime_executable().hlo_modules()
    return _jax.hlo_module_cost_analysis(jax.devices("cpu")[0].client, module)
