"""The layers that are compiled: ours and Flax's, on one device and on eight."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import jaxnorm as jn
from benchmarks.compiled import LIBRARIES
from benchmarks.compiled.devices import AXIS, array, mesh

Shape = tuple[int, ...]

GROUPS, GHOSTS = 32, 8
IMAGES, ROWS = (256, 56, 56, 64), (8192, 4096)
PIXELS = (32, 56, 56, 256)
SHAPES: dict[str, tuple[Shape, ...]] = {
    "batch": (IMAGES, (8192, 1024), (1024, 1024)),
    "ghost": (IMAGES,),
    "renorm": (IMAGES,),
    "layer": (ROWS,),
    "rms": (ROWS,),
    "group": (PIXELS, (16, 64, 64, 128)),
    "instance": (PIXELS, (16, 64, 64, 128)),
}
OVER_BATCH = ("batch", "ghost", "renorm")
DTYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16}
PASSES = ("forward", "both")
WAYS = ("jit", "shard_map")  # on eight devices


class Case(NamedTuple):
    """A layer in a program; `way` is "one" on one device, of `WAYS` on eight."""

    norm: str
    shape: Shape
    dtype: str
    which: str
    masked: bool = False
    way: str = "one"
    library: str = "jaxnorm"

    def __str__(self) -> str:
        sizes = "x".join(map(str, self.shape))
        masked = "masked" if self.masked else "whole"
        return f"{self.norm} {sizes} {self.dtype} {masked} {self.way} {self.which} {self.library}"


def cases() -> Iterator[Case]:
    """Every norm, dtype and pass; of the first shape also with a mask, and synced."""
    for norm, shapes in SHAPES.items():
        for shape in shapes:
            for dtype in DTYPES:
                settings = [(False, "one")]
                if shape == shapes[0]:
                    settings += [(True, "one"), *((False, way) for way in WAYS)]
                for masked, way in settings:
                    for which in PASSES:
                        for library in libraries(norm):
                            yield Case(norm, shape, dtype, which, masked, way, library)


def libraries(norm: str) -> tuple[str, ...]:
    """The libraries that have the norm."""
    return LIBRARIES[: 1 if norm in ("ghost", "renorm") else 2]


def program(case: Case, platform: str) -> tuple[Callable[..., Any], list[Any]]:
    """The function to compile, and its arguments: x, parameters, statistics, mask, cotangent."""
    devices = mesh(platform, 1 if case.way == "one" else 8)
    split = _split(case)
    features = P(AXIS) if split[-1] == AXIS else P()
    x = array(case.shape, DTYPES[case.dtype], devices, split)
    feature = partial(array, (case.shape[-1],), jnp.float32, devices, features)
    params = {"scale": feature()} | ({} if case.norm == "rms" else {"bias": feature()})
    stats = _stats(case, devices)
    mask = _mask(case, devices) if case.masked else None
    layer = _ours(case) if case.library == "jaxnorm" else _flax(case)
    if case.way == "shard_map":
        layer = jax.shard_map(
            layer, mesh=devices, in_specs=(split, features, P(), P()), out_specs=(split, P())
        )
    if case.which == "forward":
        return layer, [x, params, stats, mask]

    def both(x: Any, params: Any, stats: Any, mask: Any, cotangent: Any) -> Any:
        y, backward, new = jax.vjp(
            lambda x, params: layer(x, params, stats, mask), x, params, has_aux=True
        )
        return y, new, backward(cotangent)

    return both, [x, params, stats, mask, x]


def _split(case: Case) -> P:
    """The split of x over eight devices: along a measured axis, so that the layer has to sync."""
    if case.way == "one":
        return P(*(None for _ in case.shape))
    axis = {"layer": 1, "rms": 1, "group": 1, "instance": 1}.get(case.norm, 0)
    return P(*(AXIS if index == axis else None for index in range(len(case.shape))))


def _stats(case: Case, devices: Mesh) -> Any:
    """Running statistics of the norms that have them."""
    if case.norm not in OVER_BATCH:
        return None
    initial = jn.init_renorm_stats if case.norm == "renorm" else jn.init_batch_stats
    stats = jax.eval_shape(partial(initial, case.shape[-1]))
    return jax.tree.map(lambda leaf: array(leaf.shape, leaf.dtype, devices, P()), stats)


def _mask(case: Case, devices: Mesh) -> Any:
    """A mask of examples (norms over the batch), features (layer, RMS) or positions."""
    shape: Shape = (*case.shape[:-1], 1)
    if case.norm in OVER_BATCH:
        shape = (case.shape[0], *(1 for _ in case.shape[1:]))
    if case.norm in ("layer", "rms"):
        shape = case.shape
    return array(shape, jnp.bool_, devices, P())


def _ours(case: Case) -> Callable[..., Any]:
    axis = {"axis_name": AXIS} if case.way == "shard_map" else {}
    batch = {
        "batch": jn.batch_norm,
        "ghost": partial(jn.ghost_batch_norm, num_ghosts=1 if axis else GHOSTS),
        "renorm": jn.batch_renorm,
    }
    sample = {
        "layer": jn.layer_norm,
        "rms": jn.rms_norm,
        "group": partial(jn.group_norm, num_groups=GROUPS),
        "instance": jn.instance_norm,
    }

    def layer(x: Any, params: Any, stats: Any, mask: Any) -> Any:
        if case.norm in OVER_BATCH:
            function = partial(batch[case.norm], train=True)
            return function(x, stats, **params, where=mask, **axis)
        return sample[case.norm](x, **params, where=mask, **axis), None

    return layer


def _flax(case: Case) -> Callable[..., Any]:
    options = {"dtype": DTYPES[case.dtype]}
    if case.way == "shard_map":
        options["axis_name"] = AXIS
    module = {
        "batch": partial(nn.BatchNorm, use_running_average=False),
        "layer": nn.LayerNorm,
        "rms": nn.RMSNorm,
        "group": partial(nn.GroupNorm, num_groups=GROUPS),
        "instance": nn.InstanceNorm,
    }[case.norm](**options)

    def layer(x: Any, params: Any, stats: Any, mask: Any) -> Any:
        if case.norm == "group" and case.masked:  # Flax's takes no other
            mask = jnp.broadcast_to(mask, x.shape)
        variables = {"params": params} | ({"batch_stats": stats} if stats else {})
        y, new = module.apply(variables, x, mask=mask, mutable=["batch_stats"])
        return y, new.get("batch_stats")

    return layer
