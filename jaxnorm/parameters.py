"""Functions of trees of parameters: the mask for weight decay, and initial scales of zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxnorm.paths import map_dicts

__all__ = ["weight_decay_mask", "zero_scales"]


def weight_decay_mask(params: Any, *, leave_out: Sequence[str] = ("scale", "bias")) -> Any:
    """Make a mask for weight decay: True for all parameters except scales and biases.

    Only the name of a parameter matters: the biases of dense and convolutional layers are left out
    too, but embeddings are not.

    Args:
        params: parameters of Linen (dict or FrozenDict), an NNX state, or any tree with names.
        leave_out: the names of the parameters without weight decay.

    Returns:
        A tree of Python bools with the structure of `params`, which is a mask for optax. Optax also
        takes the function itself as the mask.

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
    """Replace every `scale` in the named parts by zeros.

    A residual block whose last normalization starts with scale zero starts as the identity, which
    makes deep networks easier to train. If you can change the model's code, the argument
    `scale_init=nn.initializers.zeros` of this normalization does the same.

    Args:
        params: nested dicts of parameters, as Linen's `variables["params"]`, or an NNX state.
        part, parts: paths of normalizations, or of parts of the model that contain them; `*` and
            `?` in a path stand for any characters.

    Returns:
        A new tree with the structure of `params`.

    Raises:
        ValueError: a part without a scale; the message lists the paths of all scales.

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

    return map_dicts(params, (part, *parts), {"scale"}, zeroed)


def _name(path: Sequence[Any]) -> str:
    """The name of a parameter: the last key, except the attribute `value` of a box around it."""
    names = [str(getattr(key, "key", getattr(key, "name", key))) for key in path]
    boxed = len(names) > 1 and isinstance(path[-1], jax.tree_util.GetAttrKey)
    return names[-2 if boxed and names[-1] == "value" else -1] if names else ""
