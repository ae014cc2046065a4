"""Folding the normalizations of a model into the layers before them or after them."""

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
_CHANGED = ("params", "batch_stats", "intermediates")  # collections that folding may change


def fold(
    model: nn.Module,
    variables: Any,
    pairs: Mapping[str, str],
    *args: Any,
    tolerance: float = 1e-5,
    **options: Any,
) -> Any:
    """Fold normalizations of a model into the layers before or after them: return new variables.

    A layer gets the kernel and bias of `jaxnorm.fold_batch_norm` if the normalization follows the
    layer, or of `jaxnorm.fold_batch_norm_into_next` if the layer follows the normalization. The
    normalization's parameters and statistics are removed. The result fits the same network without
    the normalizations and with a bias in these layers. To evaluate the network as it is, give the
    result to `apply_folded`. It can be folded again, with other pairs, and saved and loaded like
    other variables.

    This function evaluates the model on an example, to find which module follows which. It then
    compares the folded model's output with the unfolded one's, and checks that only the second
    module of each pair uses the output of the first.

    Args:
        model: the network. `BatchNorm`, `GhostBatchNorm`, `BatchRenorm`, Flax's own `BatchNorm` and
            `StandardizeInputs` without a `clip` can be folded into `Dense`, `DenseGeneral`,
            `Einsum`, `Conv`, `ConvLocal`, `ConvTranspose` and classes derived from them, and into
            any other layer with a `kernel` whose channels are last.
        variables: the variables that `init` made and training updated.
        pairs: a dict from the path of each layer to the path of its normalization, for example
            {"block_0/Conv_0": "block_0/BatchNorm_0"}; `*` stands for any characters except "/", the
            same in both paths: {"block_*/Conv_*": "block_*/BatchNorm_*"}. For a normalization that
            feeds several layers, give a pair with each of them.
        args, options: the other arguments of `model.apply`, for an example in evaluation. If
            collections are `mutable`, they are compared too, except "params", "batch_stats" and
            "intermediates".
        tolerance: how much the output may change, relative to its largest value (of each array);
            for kernels or results in bfloat16, for example 0.05.

    Raises:
        TypeError: a normalization without running statistics, a layer without a kernel.
        ValueError: a path that names nothing; a layer or normalization that is called more than
            once; a pair whose modules do not follow each other directly (the message says what
            their inputs are); a first module whose output is used elsewhere too; a layer after a
            normalization that pads with zeros; a change of the output above the tolerance.

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

    def run(variables: Any, interceptor: _pairs.Interceptor | None = None) -> Any:
        return _apply(model, variables, args, options, interceptor)

    calls = _pairs.record_calls(run, variables)
    found = _pairs.find_pairs(pairs, calls, _FOLDABLE)
    folded = _folded(variables, found)

    def results(variables: Any, folded: Any) -> Any:
        hide = _pairs.hide_intermediates(found)
        outputs = run(variables), run(variables, hide), run(folded)
        return tuple(_compared(output, options) for output in outputs)

    _pairs.check_folded(jax.jit(results)(variables, folded), tolerance)
    return folded


def _compared(result: Any, options: Mapping[str, Any]) -> Any:
    """What folding must not change in the result of `model.apply` with these options."""
    if options.get("mutable", False) is False and not options.get("capture_intermediates", False):
        return result
    output, updates = result
    return output, {name: kept for name, kept in updates.items() if name not in _CHANGED}


def apply_folded(model: nn.Module, variables: Any, *args: Any, **options: Any) -> Any:
    """Apply a model to the variables that `fold` returned, without its folded normalizations.

    A normalization with running statistics returns its input if it has no variables. A layer that
    was built without a bias adds the bias in its `params`. All else is as in `model.apply`.

    Args:
        model: the network as it was trained.
        variables: the result of `fold`, which has an example.
        args, options: the other arguments of `model.apply`, in evaluation.
    """
    return _apply(model, variables, args, options, None)


def _apply(
    model: nn.Module,
    variables: Any,
    args: Any,
    options: Any,
    interceptor: _pairs.Interceptor | None,
) -> Any:
    """Apply the model to folded or other variables; pass each call of a module to `interceptor`.

    The output of a layer, as the interceptor gets it, includes the layer's new bias.
    """

    def intercepted(inner: Any, args: Any, options: Any, context: Any) -> Any:
        if context.method_name != "__call__":
            return inner(*args, **options)
        module = context.module
        call = partial(_call_folded, module, inner)
        if interceptor is None:
            return call(*args, **options)
        return interceptor("/".join(module.path), module, call, args, options)

    with nn.intercept_methods(intercepted):
        return model.apply(variables, *args, **options)


def _call_folded(module: Any, inner: Any, *args: Any, **options: Any) -> Any:
    """Call a module; a folded normalization is the identity, and a layer adds its new bias."""
    if isinstance(module, _FOLDABLE) and not module.variables:
        return _identity(module, *args, **options)
    y = inner(*args, **options)
    if getattr(module, "use_bias", None) is False and module.has_variable("params", "bias"):
        bias = module.get_variable("params", "bias").astype(y.dtype)
        x, *rest = (*args, *options.values())
        call = _pairs.Call("", module, x, tuple(rest), y)
        y = y + _flax_layers.broadcast_bias(bias, call)
    return y


def _identity(module: Any, x: jax.Array, *args: Any, **options: Any) -> jax.Array:
    """The input of a normalization, in the dtype of the normalization's output."""
    parameters = getattr(module, "use_scale", False) or getattr(module, "use_bias", False)
    parameter = jnp.zeros((), module.param_dtype) if parameters else None
    return x.astype(_shells.result_dtype(module.dtype, x, parameter))


def _folded(variables: Any, pairs: Sequence[_pairs.Pair]) -> Any:
    """The variables with each layer's new kernel and bias, without those of the normalizations."""
    flat: dict[Any, Any] = flatten_dict(unfreeze(variables))  # type: ignore[no-untyped-call]
    plain = unbox(flat)
    norms = {tuple(pair.norm.path.split("/")) for pair in pairs}
    for pair in pairs:
        layer, norm = pair.layer, tuple(pair.norm.path.split("/"))
        at = ("params", *layer.path.split("/"))
        may_have_bias = (*at, "bias") in flat or hasattr(layer.module, "use_bias")
        if (*at, "kernel") not in flat or not may_have_bias:
            raise TypeError(
                f"{layer.path!r} is a {type(layer.module).__name__}, which has no kernel of its "
                "own, or neither a bias nor use_bias; only layers such as Dense, Conv and "
                "ConvTranspose can take a normalization"
            )
        stats = {p[-1]: leaf for p, leaf in plain.items() if p[:-1] == ("batch_stats", *norm)}
        kernel, bias = _flax_layers.folded(
            pair,
            plain[*at, "kernel"],
            plain.get((*at, "bias")),
            stats,
            plain.get(("params", *norm, "scale")),
            plain.get(("params", *norm, "bias")),
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
