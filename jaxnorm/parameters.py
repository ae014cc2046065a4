"""Whole trees of parameters: the mask of weight decay, first scales of zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm.paths import changed

__all__ = ["weight_decay_mask", "zero_scales"]


def weight_decay_mask(params: Any, *, leave_out: Sequence[str] = ("scale", "bias")) -> Any:
    """True for the parameters that weight decay is for: all but scales and biases.

    Decided by the name of the parameter alone, so the biases of dense and convolutional layers are
    left out too, and embeddings are not.

    Args:
        params: parameters of Linen (dict or FrozenDict), an NNX state, or any tree with names.
        leave_out: names of parameters that do not decay.

    Returns:
        A tree of Python bools with the structure of `params`: an optax mask. The function itself
        can be given as the mask too.

    References:
        He et al., "Bag of tricks for image classification with convolutional neural networks",
        2019, section 3.1 ("no bias decay").

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> params = {"dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
        >>> jn.weight_decay_mask(params)
        {'dense': {'bias': False, 'kernel': True}}

        With optax: `optax.adamw(1e-3, weight_decay=1e-2, mask=jn.weight_decay_mask)`.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: _name(path) not in leave_out, params)


def zero_scales(params: Any, part: str, *parts: str) -> Any:
    """The parameters with zero for every `scale` in the named parts.

    A residual block whose last normalization starts with scale zero starts as the identity, which
    makes deep networks easier to train. Where the model is one's own, the argument
    `scale_init=nn.initializers.zeros` of that normalization is the same.

    Args:
        params: nested dicts of parameters, as Linen's `variables["params"]`, or an NNX state.
        part, parts: paths of normalizations, or of what holds them.

    Raises:
        ValueError: a part with no scale in it; the message lists those that there are.

    References:
        Goyal et al., "Accurate, large minibatch SGD", 2017, section 5.1.

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> block = {"norm_0": {"scale": jnp.ones(2)}, "norm_1": {"scale": jnp.ones(2)}}
        >>> params = jn.zero_scales({"block_0": block, "block_1": block}, "block_*/norm_1")
        >>> print(params["block_1"]["norm_1"]["scale"])
        [0. 0.]
    """

    def zeroed(norm: Mapping[str, Any]) -> dict[str, Any]:
        return {**norm, "scale": jax.tree.map(jnp.zeros_like, norm["scale"])}

    return changed(params, (part, *parts), {"scale"}, zeroed)


def _name(path: Sequence[Any]) -> str:
    """The name of a parameter: the last key that is not the attribute of a box around it."""
    names = [str(getattr(key, "key", getattr(key, "name", key))) for key in path]
    boxed = len(names) > 1 and isinstance(path[-1], jax.tree_util.GetAttrKey)
    return names[-2 if boxed and names[-1] == "value" else -1] if names else ""
