"""Whole models with their normalizations folded into the layers before them or after them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict, freeze, unfreeze
from flax.core.meta import AxisMetadata, unbox
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxnorm import flax_layers as _flax_layers
from jaxnorm import pairs as _pairs
from jaxnorm import shells as _shells
from jaxnorm.linen.batch import BatchNorm
from jaxnorm.linen.inputs import StandardizeInputs

__all__ = ["apply_folded", "fold"]

_FOLDABLE = (nn.BatchNorm, BatchNorm, StandardizeInputs)


def fold(
    model: nn.Module,
    variables: Any,
    pairs: Mapping[str, str],
    *args: Any,
    tolerance: float = 1e-5,
    **options: Any,
) -> Any:
    """The variables with normalizations folded into the layers before them, or after them.

    Each kernel and bias becomes what `jaxnorm.fold_batch_norm` gives, where the normalization is
    given the output of the layer, or what `jaxnorm.fold_batch_norm_into_next` gives, where the
    layer is given the output of the normalization, by the layer's type. The normalization's
    parameters and statistics are gone: these are the variables of the same network written without
    the normalizations, and with a bias in the layers. The network as it is evaluates them by
    `apply_folded`, and they may be folded again, with other pairs. They save and load as any
    others.

    The model is evaluated on an example, to see what stands where and to compare: whole, folded,
    and with what passes from one of a pair to the other visible to no other module.

    Args:
        model: the network; `BatchNorm`, `GhostBatchNorm`, `BatchRenorm`, Flax's own `BatchNorm` and
            `StandardizeInputs` without a `clip` in it can be folded, into `Dense`, `DenseGeneral`,
            `Einsum`, `Conv`, `ConvLocal`, `ConvTranspose` and classes derived from them, and into
            any other layer with a `kernel` whose channels are last.
        variables: what `init` made and training updated.
        pairs: for each layer's path its normalization's, as in {"block_0/Conv_0":
            "block_0/BatchNorm_0"}; `*` stands for any characters but "/", in the normalization's
            path for the same ones: {"block_*/Conv_*": "block_*/BatchNorm_*"}. A normalization that
            feeds several layers is named with each of them.
        args, options: of `model.apply`, an example in evaluation.
        tolerance: how far the output may move, relative to its largest value (of each array); for
            kernels or results in bfloat16 give 0.05 or what they allow.

    Raises:
        TypeError: a normalization that has no running statistics, a layer without a kernel.
        ValueError: a path that names nothing, a layer or normalization called more than once, two
            of which neither is given the other's output itself (the message says whose it is), an
            output that is used elsewhere too, a layer after a normalization that pads with zeros,
            an output further away than the tolerance.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, jaxnorm.linen as jnn
        >>> norm = jnn.BatchNorm(use_running_average=True)
        >>> model = nn.Sequential([nn.Dense(2, use_bias=False), norm, nn.relu])
        >>> variables = model.init(jax.random.key(0), x := jnp.ones((1, 3)))
        >>> folded = jnn.fold(model, variables, {"layers_0": "layers_1"}, x)
        >>> jax.tree.map(jnp.shape, folded)
        {'params': {'layers_0': {'bias': (2,), 'kernel': (3, 2)}}}
        >>> y = jnn.apply_folded(model, folded, x)
        >>> print(jnp.allclose(y, model.apply(variables, x)))
        True
    """

    def run(variables: Any, around: _pairs.Around | None = None) -> Any:
        return _applied(model, variables, args, options, around)

    calls = _pairs.recorded(lambda around: run(variables, around))
    found = _pairs.found_pairs(pairs, calls, _FOLDABLE)
    folded = _folded(variables, found)

    def results(variables: Any, folded: Any) -> Any:
        return run(variables), run(variables, _pairs.hidden(found)), run(folded)

    _pairs.check_folded(jax.jit(results)(variables, folded), tolerance)
    return folded


def apply_folded(model: nn.Module, variables: Any, *args: Any, **options: Any) -> Any:
    """`model.apply` of variables from `fold`, whose normalizations are not computed any more.

    A normalization with running statistics that has no variables gives its input back, and a layer
    that was built without a bias adds the one that it has in `params`; everything else is as in
    `apply`.

    Args:
        model: the network as it was trained.
        variables: what `fold` returned.
        args, options: of `model.apply`, in evaluation.
    """

    return _applied(model, variables, args, options, None)


def _applied(
    model: nn.Module, variables: Any, args: Any, options: Any, around: _pairs.Around | None
) -> Any:
    """Folded or other variables applied, each call of a module handed to `around`, if there is one.

    What `around` is given of a layer has the layer's new bias.
    """

    def intercepted(inner: Any, args: Any, options: Any, context: Any) -> Any:
        if context.method_name != "__call__":
            return inner(*args, **options)
        module = context.module
        call = partial(_without_norm, module, inner)
        if around is None:
            return call(*args, **options)
        return around("/".join(module.path), module, call, args, options)

    with nn.intercept_methods(intercepted):
        return model.apply(variables, *args, **options)


def _without_norm(module: Any, inner: Any, *args: Any, **options: Any) -> Any:
    """The call of a normalization that is folded, of a layer that it is folded into, or another."""
    if isinstance(module, _FOLDABLE) and not module.variables:
        return _passed_on(module, *args, **options)
    y = inner(*args, **options)
    if getattr(module, "use_bias", None) is False and module.has_variable("params", "bias"):
        bias = module.get_variable("params", "bias").astype(y.dtype)
        x, *rest = (*args, *options.values())
        call = _pairs.Call("", module, x, tuple(rest), y)
        y = y + _flax_layers.broadcast_bias(bias, call)
    return y


def _passed_on(module: Any, x: jax.Array, *args: Any, **options: Any) -> jax.Array:
    """What went into a normalization, in the dtype in which it would come out."""
    parameters = getattr(module, "use_scale", False) or getattr(module, "use_bias", False)
    parameter = jnp.zeros((), module.param_dtype) if parameters else None
    return x.astype(_shells.result_dtype(module.dtype, x, parameter))


def _folded(variables: Any, pairs: Sequence[_pairs.Pair]) -> Any:
    """The variables with each layer's new kernel and bias, without the normalizations'."""
    flat: dict[Any, Any] = flatten_dict(unfreeze(variables))  # type: ignore[no-untyped-call]
    plain = unbox(flat)
    norms = {tuple(pair.norm.path.split("/")) for pair in pairs}
    for pair in pairs:
        layer, of = pair.layer, tuple(pair.norm.path.split("/"))
        at = ("params", *layer.path.split("/"))
        may_have_bias = (*at, "bias") in flat or hasattr(layer.module, "use_bias")
        if (*at, "kernel") not in flat or not may_have_bias:
            raise TypeError(
                f"{layer.path!r} is a {type(layer.module).__name__}, without a kernel, or without "
                "a bias and use_bias, of its own; what can be folded into is a layer such as "
                "Dense, Conv, ConvTranspose"
            )
        stats = {p[-1]: leaf for p, leaf in plain.items() if p[:-1] == ("batch_stats", *of)}
        kernel, bias = _flax_layers.folded(
            pair,
            plain[*at, "kernel"],
            plain.get((*at, "bias")),
            stats,
            plain.get(("params", *of, "scale")),
            plain.get(("params", *of, "bias")),
        )
        for path, new in (((*at, "kernel"), kernel), ((*at, "bias"), bias)):
            old = flat.get(path)
            flat[path] = old.replace_boxed(new) if isinstance(old, AxisMetadata) else new
    kept = {
        path: leaf
        for path, leaf in flat.items()
        if not any(path[1 : 1 + len(norm)] == norm for norm in norms)
    }
    folded = unflatten_dict(kept)  # type: ignore[no-untyped-call]
    return freeze(folded) if isinstance(variables, FrozenDict) else folded
