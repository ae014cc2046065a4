"""Folding the normalizations of a model into the layers before them or after them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import jax
from flax import nnx

from jaxnorm import flax_layers as _flax_layers
from jaxnorm import pairs as _pairs
from jaxnorm.nnx.batch import BatchNorm
from jaxnorm.nnx.inputs import StandardizeInputs

__all__ = ["Identity", "fold"]

Model = TypeVar("Model", bound=nnx.Module)
_CALL = "__call__"


class Identity(nnx.Module):
    """The module that `fold` puts in place of a normalization: returns its input.

    Args:
        dtype: the dtype of the result.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxnorm.nnx import Identity
        >>> print(Identity(jnp.float32)(jnp.ones(2), use_running_average=True))
        [1. 1.]
    """

    def __init__(self, dtype: Any):
        self.dtype = dtype

    def __call__(self, x: jax.Array, *args: Any, **options: Any) -> jax.Array:
        return x.astype(self.dtype)


def fold(
    model: Model,
    pairs: Mapping[str, str],
    *args: Any,
    tolerance: float = 1e-5,
    **options: Any,
) -> Model:
    """Fold normalizations of a model into the layers before or after them: return a new model.

    A layer gets the kernel and bias of `jaxnorm.fold_batch_norm` if the normalization follows the
    layer, or of `jaxnorm.fold_batch_norm_into_next` if the layer follows the normalization. An
    `Identity` replaces the normalization. The result is a copy in evaluation mode, as by `eval()`;
    the model does not change.

    This function evaluates the model on an example, to find which module follows which. It then
    compares the folded model's output with the unfolded one's, and checks that only the second
    module of each pair uses the output of the first. Meanwhile it intercepts the calls of the
    classes of the model's modules, so no other thread may call modules of these classes. It does
    not see modules inside `nnx.jit`.

    Args:
        model: the network. `BatchNorm`, `GhostBatchNorm`, `BatchRenorm`, Flax's own `BatchNorm` and
            `StandardizeInputs` without a `clip` can be folded into `Linear`, `LinearGeneral`,
            `Einsum`, `Conv`, `ConvTranspose` and classes derived from them, and into any other
            layer with a `kernel` whose channels are last and a `bias`, which may be None.
        pairs: a dict from the path of each layer to the path of its normalization, for example
            {"blocks/0/conv": "blocks/0/norm"}; `*` stands for any characters except "/", the same
            in both paths: {"blocks/*/conv": "blocks/*/norm"}. For a normalization that feeds
            several layers, give a pair with each of them.
        args, options: the arguments of a call of the model, for an example in evaluation.
        tolerance: how much the output may change, relative to its largest value (of each array);
            for kernels or results in bfloat16, for example 0.05.

    Raises:
        TypeError: a normalization without running statistics, a layer without a kernel.
        ValueError: a path that names nothing; a layer or normalization that is called more than
            once; a pair whose modules do not follow each other directly (the message says what
            their inputs are); a first module whose output is used elsewhere too; a layer after a
            normalization that pads with zeros; a change of the output above the tolerance.

    Example:
        >>> import jax.numpy as jnp, jaxnorm.nnx as jnnx
        >>> from flax import nnx
        >>> rngs = nnx.Rngs(0)
        >>> model = nnx.Sequential(nnx.Linear(3, 2, rngs=rngs), jnnx.BatchNorm(2, rngs=rngs))
        >>> folded = jnnx.fold(model, {"layers/0": "layers/1"}, x := jnp.ones((1, 3)))
        >>> print(type(folded.layers[1]).__name__)
        Identity
        >>> model.eval()
        >>> print(jnp.allclose(folded(x), model(x)))
        True
    """
    folded = nnx.clone(model)
    folded.eval()  # type: ignore[no-untyped-call]
    unfolded = nnx.split(nnx.clone(folded))  # a copy that shares no variables

    def run(graph: Any, state: Any, interceptor: _pairs.Interceptor | None = None) -> Any:
        copy = nnx.merge(graph, state)
        with _intercepted(copy, interceptor):
            return copy(*args, **options)

    calls = _pairs.record_calls(partial(run, unfolded[0]), unfolded[1])
    found = _pairs.find_pairs(pairs, calls, (nnx.BatchNorm, BatchNorm, StandardizeInputs))
    for pair in found:
        _fold_pair(folded, pair)
    for pair in found:
        _replace_by_identity(folded, pair)
    changed = nnx.split(folded)

    def results(state: Any, changed_state: Any) -> Any:
        return (
            run(unfolded[0], state),
            run(unfolded[0], state, _pairs.hide_intermediates(found)),
            run(changed[0], changed_state),
        )

    _pairs.check_folded(jax.jit(results)(unfolded[1], changed[1]), tolerance)
    return folded


def _modules_of(model: nnx.Module) -> dict[str, tuple[Any, Any]]:
    """The path of each module, as keys, and the module, by the path as a string."""
    return {"/".join(map(str, path)): (path, module) for path, module in nnx.iter_modules(model)}


def _fold_pair(model: nnx.Module, pair: _pairs.Pair) -> None:
    """Give the layer of a pair its new kernel and bias."""
    modules = _modules_of(model)
    norm, layer = modules[pair.norm.path][1], modules[pair.layer.path][1]
    if not isinstance(getattr(layer, "kernel", None), nnx.Param) or not hasattr(layer, "bias"):
        raise TypeError(
            f"{pair.layer.path!r} is a {type(layer).__name__}, which has no kernel or no bias of "
            "its own; only layers such as Linear, Conv and ConvTranspose can take a normalization"
        )
    of_fit = ("min", "max") if isinstance(norm, StandardizeInputs) else ()
    parameters = (getattr(norm, name, None) for name in ("scale", "bias"))
    kernel, bias = _flax_layers.folded(
        pair,
        layer.kernel[...],
        None if layer.bias is None else layer.bias[...],
        {key: getattr(norm, key)[...] for key in ("mean", "var", *of_fit)},
        *(None if parameter is None else parameter[...] for parameter in parameters),
    )
    layer.kernel.set_value(kernel)
    if layer.bias is None:
        layer.bias, layer.use_bias = nnx.Param(bias), True
    else:
        layer.bias.set_value(bias)


def _replace_by_identity(model: nnx.Module, pair: _pairs.Pair) -> None:
    """Replace the normalization of a pair by an identity."""
    path, norm = _modules_of(model)[pair.norm.path]
    if isinstance(norm, Identity):  # which is in another pair too
        return
    parent: Any = model
    for key in path[:-1]:
        parent = parent[key] if isinstance(key, int) else getattr(parent, key)
    identity = Identity(pair.norm.output.dtype)
    if isinstance(path[-1], int):
        parent[path[-1]] = identity
    else:
        setattr(parent, str(path[-1]), identity)


@contextmanager
def _intercepted(model: nnx.Module, interceptor: _pairs.Interceptor | None) -> Iterator[None]:
    """Pass the calls of the model's modules to `interceptor`, if there is one."""
    paths = {id(module): "/".join(map(str, path)) for path, module in nnx.iter_modules(model)}
    kinds = {type(module) for _, module in nnx.iter_modules(model)} if interceptor else set()
    kinds = {kind for kind in kinds if any(_CALL in vars(base) for base in kind.__mro__)}
    calls = {kind: getattr(kind, _CALL) for kind in kinds}
    own = {kind for kind in kinds if _CALL in vars(kind)}

    def intercepting(call: Any) -> Any:
        def intercepted(module: Any, *args: Any, **options: Any) -> Any:
            inner = partial(call, module)
            if interceptor is None or id(module) not in paths:
                return inner(*args, **options)
            return interceptor(paths[id(module)], module, inner, args, options)

        return intercepted

    try:
        for kind, call in calls.items():
            setattr(kind, _CALL, intercepting(call))
        yield
    finally:
        for kind, call in calls.items():
            if kind in own:
                setattr(kind, _CALL, call)
            else:
                delattr(kind, _CALL)
