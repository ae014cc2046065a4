"""Whole models with their normalizations folded into the layers before them or after them."""

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
    """What stands for a normalization that was folded: the input, in the dtype of its result.

    Args:
        dtype: of the result.

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
    """A copy of the model with normalizations folded into the layers before them, or after them.

    Each kernel and bias becomes what `jaxnorm.fold_batch_norm` gives, where the normalization is
    given the output of the layer, or what `jaxnorm.fold_batch_norm_into_next` gives, where the
    layer is given the output of the normalization, by the layer's type. An `Identity` stands where
    the normalization stood. The copy is in evaluation, as by `eval()`, and the model is left as it
    was.

    The model is evaluated on an example, to see what stands where and to compare: whole, folded,
    and with what passes from one of a pair to the other visible to no other module. While it is,
    the classes of its modules are watched, so no other thread may call theirs; modules inside
    `nnx.jit` are not seen.

    Args:
        model: the network; `BatchNorm`, `GhostBatchNorm`, `BatchRenorm`, Flax's own `BatchNorm` and
            `StandardizeInputs` without a `clip` in it can be folded, into `Linear`,
            `LinearGeneral`, `Einsum`, `Conv`, `ConvTranspose` and classes derived from them, and
            into any other layer with a `kernel` whose channels are last and a `bias`, or None for
            it.
        pairs: for each layer's path its normalization's, as in {"blocks/0/conv": "blocks/0/norm"};
            `*` stands for any characters but "/", in the normalization's path for the same ones:
            {"blocks/*/conv": "blocks/*/norm"}. A normalization that feeds several layers is named
            with each of them.
        args, options: of a call of the model, an example in evaluation.
        tolerance: how far the output may move, relative to its largest value (of each array); for
            kernels or results in bfloat16 give 0.05 or what they allow.

    Raises:
        TypeError: a normalization that has no running statistics, a layer without a kernel.
        ValueError: a path that names nothing, a layer or normalization called more than once, two
            of which neither is given the other's output itself (the message says whose it is), an
            output that is used elsewhere too, a layer after a normalization that pads with zeros,
            an output further away than the tolerance.

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
    whole = nnx.split(nnx.clone(folded))  # with variables of its own

    def run(graph: Any, state: Any, around: _pairs.Around | None = None) -> Any:
        copy = nnx.merge(graph, state)
        with _watched(copy, around):
            return copy(*args, **options)

    calls = _pairs.recorded(lambda around: run(*whole, around))
    found = _pairs.found_pairs(pairs, calls, (nnx.BatchNorm, BatchNorm, StandardizeInputs))
    for pair in found:
        _fold_pair(folded, pair)
    for pair in found:
        _pass_on(folded, pair)
    changed = nnx.split(folded)

    def results(state: Any, changed_state: Any) -> Any:
        return (
            run(whole[0], state),
            run(whole[0], state, _pairs.hidden(found)),
            run(changed[0], changed_state),
        )

    _pairs.check_folded(jax.jit(results)(whole[1], changed[1]), tolerance)
    return folded


def _modules_of(model: nnx.Module) -> dict[str, tuple[Any, Any]]:
    """Each module's path, as keys, and the module itself, by its path."""
    return {"/".join(map(str, path)): (path, module) for path, module in nnx.iter_modules(model)}


def _fold_pair(model: nnx.Module, pair: _pairs.Pair) -> None:
    """Change the layer of a pair in the model."""
    modules = _modules_of(model)
    norm, layer = modules[pair.norm.path][1], modules[pair.layer.path][1]
    if not isinstance(getattr(layer, "kernel", None), nnx.Param) or not hasattr(layer, "bias"):
        raise TypeError(
            f"{pair.layer.path!r} is a {type(layer).__name__}, without a kernel and a bias of its "
            "own; what can be folded into is a layer such as Linear, Conv, ConvTranspose"
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


def _pass_on(model: nnx.Module, pair: _pairs.Pair) -> None:
    """Put an identity in the place of the normalization of a pair."""
    path, norm = _modules_of(model)[pair.norm.path]
    if isinstance(norm, Identity):  # of another pair too
        return
    parent: Any = model
    for key in path[:-1]:
        parent = _part(parent, key)
    stands = Identity(pair.norm.output.dtype)
    if isinstance(path[-1], int):
        parent[path[-1]] = stands
    else:
        setattr(parent, str(path[-1]), stands)


def _part(module: Any, key: Any) -> Any:
    return module[key] if isinstance(key, int) else getattr(module, key)


@contextmanager
def _watched(model: nnx.Module, around: _pairs.Around | None) -> Iterator[None]:
    """Hand the calls of the model's modules to `around`, if there is one."""
    paths = {id(module): "/".join(map(str, path)) for path, module in nnx.iter_modules(model)}
    kinds = {type(module) for _, module in nnx.iter_modules(model)} if around else set()
    kinds = {kind for kind in kinds if any(_CALL in vars(base) for base in kind.__mro__)}
    calls = {kind: getattr(kind, _CALL) for kind in kinds}
    own = {kind for kind in kinds if _CALL in vars(kind)}

    def watching(call: Any) -> Any:
        def watched(module: Any, *args: Any, **options: Any) -> Any:
            inner = partial(call, module)
            if around is None or id(module) not in paths:
                return inner(*args, **options)
            return around(paths[id(module)], module, inner, args, options)

        return watched

    try:
        for kind, call in calls.items():
            setattr(kind, _CALL, watching(call))
        yield
    finally:
        for kind, call in calls.items():
            if kind in own:
                setattr(kind, _CALL, call)
            else:
                delattr(kind, _CALL)
