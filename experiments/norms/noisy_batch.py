"""Batch normalization followed by noise, which makes the distributions unstable again."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from experiments.errors import at_least
from experiments.norms.base import Scope
from experiments.norms.batch import BatchNorm


@dataclass(frozen=True, kw_only=True)
class NoisyBatchNorm(BatchNorm):
    """Batch normalization followed by noise in training (Santurkar et al. 2018, appendix A).

    For each channel, every step draws a mean from U(-mean_noise, mean_noise) and a scale from
    U(1, scale_noise). For each example it draws a mean and a scale within `example_noise` of these,
    uniformly. Then y becomes scale * y + mean. The draws for a channel are the same on all devices.
    With `accumulate`, every micro-batch has its own draws.

    Attributes:
        mean_noise: the largest mean of a step; 0 means none.
        scale_noise: the largest scale of a step; 1 means none.
        example_noise: the largest distance of an example from its step; 0 means none.
    """

    mean_noise: float
    scale_noise: float
    example_noise: float

    def perturbed(self, y: jax.Array, key: Callable[[], jax.Array], scope: Scope) -> jax.Array:
        channels = (1,) * (y.ndim - 1) + (y.shape[-1],)
        examples = (len(y), *channels[1:])
        keys = jax.random.split(key(), 4)
        mean = _uniform(keys[0], channels, -self.mean_noise, self.mean_noise)
        scale = _uniform(keys[1], channels, 1.0, self.scale_noise)
        own = [_of_device(drawn, scope) for drawn in keys[2:]]
        mean += _uniform(own[0], examples, -self.example_noise, self.example_noise)
        scale += _uniform(own[1], examples, -self.example_noise, self.example_noise)
        return (y.astype(jnp.float32) * scale + mean).astype(y.dtype)

    def problems(self, batch_size: int) -> Iterator[str]:
        yield from super().problems(batch_size)
        yield from at_least("norm.mean_noise", self.mean_noise, 0)
        yield from at_least("norm.scale_noise", self.scale_noise, 1)
        yield from at_least("norm.example_noise", self.example_noise, 0)


def _uniform(key: jax.Array, shape: tuple[int, ...], low: float, high: float) -> jax.Array:
    return jax.random.uniform(key, shape, jnp.float32, low, high)


def _of_device(key: jax.Array, scope: Scope) -> jax.Array:
    """Return a different key for each device, because the devices have different examples."""
    if scope.axis_name is None:
        return key
    return jax.random.fold_in(key, jax.lax.axis_index(scope.axis_name))
