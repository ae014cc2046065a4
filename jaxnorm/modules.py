"""What the Linen and the NNX modules share: the function that each calls, and how.

A `module` is of either framework: its arguments are its attributes, under the same names. Here
stands which function with which of them it is; `linen.py` and `nnx.py` add their variables.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from functools import partial
from string import ascii_letters
from typing import Any

import jax
import jax.numpy as jnp
from flax.linen.dtypes import canonicalize_dtype

import jaxnorm as jn
from jaxnorm import axes as _axes
from jaxnorm import checks as _checks
from jaxnorm import dtypes as _dtypes
from jaxnorm import layers as _layers
from jaxnorm import pairs as _pairs
from jaxnorm import states as _states

Function = Callable[..., Any]
Initializer = Callable[..., Any]


def batch_norm(module: Any) -> Function:
    return jn.batch_norm


def ghost_batch_norm(module: Any) -> Function:
    return partial(jn.ghost_batch_norm, ghost_size=module.ghost_size, num_ghosts=module.num_ghosts)


def batch_renorm(module: Any) -> Function:
    return partial(jn.batch_renorm, r_max=module.r_max, d_max=module.d_max)


def layer_norm(module: Any) -> Function:
    return partial(
        jn.layer_norm, reduction_axes=module.reduction_axes, feature_axes=module.feature_axes
    )


def rms_norm(module: Any) -> Function:
    return partial(
        jn.rms_norm,
        reduction_axes=module.reduction_axes,
        feature_axes=module.feature_axes,
        scale_offset=module.scale_offset,
    )


def group_norm(module: Any, num_groups: int | None, group_size: int | None) -> Function:
    return partial(
        jn.group_norm,
        num_groups=num_groups,
        group_size=group_size,
        reduction_axes=module.reduction_axes,
    )


def instance_norm(module: Any) -> Function:
    return partial(jn.instance_norm, channel_axis=module.feature_axes)


def standardize_inputs(module: Any) -> Function:
    return partial(jn.standardize_inputs, epsilon=module.epsilon, clip=module.clip)


def min_max_inputs(module: Any) -> Function:
    return partial(jn.min_max_inputs, low=module.low, high=module.high, clip=module.clip)


def online_norm(module: Any) -> Function:
    return partial(
        jn.online_norm,
        forward_decay=module.forward_decay,
        backward_decay=module.backward_decay,
        epsilon=module.epsilon,
        channel_axis=module.axis,
    )


def feature_shape(x: jax.Array, axes: _axes.Axes, name: str = "feature_axes") -> tuple[int, ...]:
    """The shape of the axes that have parameters or statistics of their own."""
    _checks.check_not_dict(x, "module[key](x[key])")
    channels = _axes.channel_axes(jnp.ndim(x), axes, name)
    return tuple(x.shape[axis] for axis in channels)


def result_dtype(dtype: Any, *arrays: Any) -> Any:
    """`dtype`, or what the arrays promote to where it is None."""
    with jax.numpy_dtype_promotion("standard"):
        return canonicalize_dtype(*arrays, dtype=dtype)


def stats_dtype(module: Any, *inputs: Any) -> Any:
    """The dtype that running statistics start in: float32, or wider where the parameters are.

    Complex where the parameters, the module's `dtype` or the inputs, as far as they are known, are.
    """
    if module.stats_dtype is not None:
        return module.stats_dtype
    given = [x.dtype for x in inputs] + ([] if module.dtype is None else [module.dtype])
    of_complex = [dtype for dtype in given if jnp.issubdtype(dtype, jnp.complexfloating)]
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, [module.param_dtype, *of_complex], jnp.float32)


def wide_stats(stats: _states.BatchStats) -> Any:
    """Statistics as a checkpoint brings them, the narrower ones of them in float32."""

    def widened(leaf: Any) -> Any:
        narrow = _dtypes.is_narrow(jnp.result_type(leaf))
        return jnp.asarray(leaf, jnp.float32) if narrow else leaf

    return jax.tree.map(widened, stats)


def folded(
    pair: _pairs.Pair,
    kernel: jax.Array,
    bias: Any,
    stats: _states.BatchStats,
    *parameters: Any,
) -> tuple[jax.Array, jax.Array]:
    """The kernel and the bias of a layer that takes its normalization of those parameters."""
    function = jn.fold_batch_norm_into_next if pair.into_next else jn.fold_batch_norm
    kernel = _masked(pair.layer.module, kernel)
    try:
        options = _layer_options(pair, kernel)
        epsilon = pair.norm.module.epsilon
        return function(kernel, bias, stats, *parameters, epsilon=epsilon, **options)
    except ValueError as error:
        raise ValueError(
            f"{pair.norm.path!r} cannot be folded into {pair.layer.path!r}: {error}"
        ) from error


def _masked(layer: Any, kernel: jax.Array) -> jax.Array:
    """The kernel as the layer uses it."""
    mask = getattr(layer, "mask", None) if "Conv" in (flax_layer(layer) or "") else None
    return kernel if mask is None else kernel * jnp.asarray(mask, kernel.dtype)


def _layer_options(pair: _pairs.Pair, kernel: jax.Array) -> dict[str, Any]:
    """What the function that folds needs to know of a layer: of one of Flax, its type.

    Any other has a kernel whose channels are last, as Flax's have.
    """
    module: Any = pair.layer.module
    name = flax_layer(module)
    transposed = getattr(module, "transpose_kernel", False)
    options: dict[str, Any] = {"layer": name, "equation": equation(pair.layer)}
    if name is not None:
        options["transpose_kernel"] = transposed
    elif transposed:
        options["kernel_axis"] = -2
    if not pair.into_next:
        return options
    if name is None and transposed:
        options["input_axis"] = -1
    options["groups"] = getattr(module, "feature_group_count", 1)
    if kernel.ndim > 2 if name is None else "Conv" in name:
        _check_input_dilation(module)
        options["padding"] = getattr(module, "padding", "VALID")
    return options


def flax_layer(module: Any) -> str | None:
    """The name of a module's type, or of that it is derived from, among the layers of Flax."""
    for kind in type(module).__mro__:
        name = f"flax.{kind.__name__}"
        if kind.__module__.partition(".")[0] == "flax" and name in _layers.AXES:
            return name
    return None


def equation(call: _pairs.Call) -> str | None:
    """The einsum of a layer that is one, or that has axes of its own."""
    module: Any = call.module
    name = flax_layer(module)
    if name == "flax.Einsum":
        return next((given for given in call.rest if isinstance(given, str)), module.einsum_str)
    if name not in _layers.BY_EQUATION:
        return None
    ndim = call.input.ndim
    batch = getattr(module, "batch_dims", None)
    batch = module.batch_axis if batch is None else batch
    features = module.features if hasattr(module, "features") else module.out_features
    x, outputs = ascii_letters[:ndim], ascii_letters[ndim : ndim + len(_tuple(features))]
    first = "".join(x[axis] for axis in _tuple(batch))
    summed = "".join(x[axis] for axis in _tuple(module.axis))
    free = "".join(letter for letter in x if letter not in first + summed)
    return f"{x},{first}{summed}{outputs}->{first}{free}{outputs}"


def spread_bias(bias: jax.Array, call: _pairs.Call) -> jax.Array:
    """The bias of a layer of Flax in a shape that broadcasts to what the layer gave."""
    of = equation(call)
    if of is None:
        return bias
    inputs, result = of.replace(" ", "").split("->")
    kernel = inputs.partition(",")[2]
    sizes = iter(bias.shape)
    before, _, after = result.partition("...")
    ends = [tuple(next(sizes) if s in kernel else 1 for s in end) for end in (before, after)]
    between = (1,) * (call.output.ndim - len(before) - len(after))
    return bias.reshape(ends[0] + between + ends[1])


def _tuple(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, Iterable) else (value,)


def _check_input_dilation(module: Any) -> None:
    dilation = getattr(module, "input_dilation", None) or 1
    if any(size > 1 for size in _tuple(dilation)):
        raise ValueError(
            f"input_dilation={dilation!r} puts zeros between what is normalized, and folded it "
            "would put them between the values of the input, where zero is another value; leave "
            "this pair out"
        )


def normalize(
    module: Any,
    function: Function,
    x: jax.Array,
    *parameters: Any,
    dtype: Any,
    mask: Any,
    synced: bool = True,
) -> jax.Array:
    """A stateless normalization's result, in `dtype`.

    Args:
        synced: over the module's mapped axes, if it has any.
    """
    y = function(_widened(x, dtype), *parameters, **_options(module, mask, synced))
    return jnp.asarray(y, dtype)


def normalize_batch(
    module: Any,
    function: Function,
    x: jax.Array,
    stats: _states.BatchStats,
    *parameters: Any,
    dtype: Any,
    mask: Any,
    train: bool,
    synced: bool = True,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """A stateful normalization's result, in `dtype`, and its new statistics."""
    y, new = function(
        _widened(x, dtype),
        wide_stats(stats),
        *parameters,
        train=train,
        momentum=module.momentum,
        channel_axis=module.axis,
        skip_nonfinite=module.skip_nonfinite,
        **_options(module, mask, synced),
    )
    return jnp.asarray(y, dtype), new


def scale_inputs(
    module: Any,
    function: Function,
    x: jax.Array,
    fit: _states.BatchStats,
    *,
    mask: Any,
    train: bool,
    synced: bool = True,
) -> tuple[jax.Array, Any]:
    """The inputs scaled by their fit, in `dtype`, in training after an update with them."""
    dtype = result_dtype(module.dtype, x)
    x, fit = _widened(x, dtype), wide_stats(fit)
    if train:
        fit = jn.update_input_stats(
            fit,
            x,
            feature_axis=module.axis,
            where=mask,
            axis_name=module.axis_name if synced else None,
            axis_index_groups=module.axis_index_groups if synced else None,
            skip_nan=module.skip_nan,
        )
    y = function(x, fit, feature_axis=module.axis, where=mask)
    return jnp.asarray(y, dtype), fit


def normalize_online(
    module: Any,
    x: jax.Array,
    stats: _states.BatchStats,
    *parameters: Any,
    dtype: Any,
    mask: Any,
    train: bool,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The result of online normalization, in `dtype`, and its new statistics.

    The control processes keep their dtype, which is that of their gradient.
    """
    stats = {**stats, **wide_stats({key: stats[key] for key in ("mean", "var")})}
    y, new = online_norm(module)(_widened(x, dtype), stats, *parameters, train=train, where=mask)
    return jnp.asarray(y, dtype), new


def _options(module: Any, mask: Any, synced: bool) -> dict[str, Any]:
    """The options that every function has."""
    return {
        "epsilon": module.epsilon,
        "where": mask,
        "axis_name": module.axis_name if synced else None,
        "axis_index_groups": module.axis_index_groups if synced else None,
    }


def _widened(x: jax.Array, dtype: Any) -> jax.Array:
    """`x` in a dtype that holds both it and the result, so that nothing is rounded before."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), dtype))
