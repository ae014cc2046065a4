"""Online normalization, which normalizes each example by the statistics of earlier ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

import jaxnorm as jn
from experiments.errors import fraction, positive
from experiments.norms.base import Context, Norm


@dataclass(frozen=True, kw_only=True)
class OnlineNorm(Norm):
    """Online normalization (Chiley et al. 2019).

    Attributes:
        momentum: the weight of the old running statistics, at every example.
        backward_decay: the weight of the old errors in the control processes.
        epsilon: added to the variance.
    """

    momentum: float
    backward_decay: float
    epsilon: float

    of_the_batch: ClassVar[bool] = True
    of_running: ClassVar[bool] = True
    merges: ClassVar[bool] = False
    overwritten: ClassVar[tuple[str, ...]] = ("control_y", "control_x")

    def module(self, context: Context, ndim: int, **options: Any) -> nn.Module:
        return _Online(self.momentum, self.backward_decay, self.epsilon, context.dtype, **options)

    def problems(self, batch_size: int) -> Iterator[str]:
        yield from fraction("norm.momentum", self.momentum)
        yield from fraction("norm.backward_decay", self.backward_decay)
        yield from positive("norm.epsilon", self.epsilon)


class _Online(nn.Module):
    """The layer. Its control processes are in `batch_stats` with the statistics."""

    forward_decay: float
    backward_decay: float
    epsilon: float
    dtype: Any
    use_bias: bool = True
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(
        self, x: jax.Array, *, use_running_average: bool, mask: jax.Array | None = None
    ) -> jax.Array:
        channels = x.shape[-1]
        fresh = jn.init_online_stats(channels)
        stats = {key: self.variable("batch_stats", key, fresh.get, key) for key in fresh}
        scale = self.param("scale", self.scale_init, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,)) if self.use_bias else None
        y, new = jn.online_norm(
            jnp.asarray(x, self.dtype),
            {key: variable.value for key, variable in stats.items()},
            scale,
            bias,
            train=not use_running_average,
            forward_decay=self.forward_decay,
            backward_decay=self.backward_decay,
            epsilon=self.epsilon,
            where=mask,
        )
        if not use_running_average:
            for key in ("mean", "var"):
                stats[key].value = new[key]
        return y
