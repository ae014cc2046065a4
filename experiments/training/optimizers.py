"""Optimizers and learning rate schedules.

Numbers can be traced, so that runs that differ only in numbers share a program.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Optional

import jax
import optax

import jaxnorm as jn
from experiments.errors import at_least, choice, fraction, positive

SCALINGS = {"linear": lambda ratio: ratio, "sqrt": math.sqrt, "none": lambda ratio: 1.0}
BATCH = 32  # the batch size for which the learning rate is given
STEP_DROPS = (0.5, 0.75)  # fractions of the steps after which `step` divides the rate by 10


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """The common part of all optimizers.

    Attributes:
        learning_rate: the peak at a batch size of 32.
        scaling: the factor for a batch size B: linear (B / 32; Goyal et al. 2017), sqrt (its root;
            Hoffer et al. 2017) or none.
        schedule: after the warm-up: constant, cosine (to 0), or step (divided by 10 after half and
            after three quarters of the steps).
        warmup: the fraction of the steps in which the rate grows linearly from 0.
        weight_decay: the decay of weights, but not of biases and of the scales of normalizations.
        clip_norm: the largest norm of a gradient; None means no limit.
    """

    learning_rate: float
    scaling: str
    schedule: str
    warmup: float
    weight_decay: float
    clip_norm: Optional[float]

    NUMBERS: ClassVar[tuple[str, ...]] = ("learning_rate", "weight_decay")

    def update_rule(self, rate: optax.Schedule) -> optax.GradientTransformation:
        """Return the optimizer with its weight decay."""
        raise NotImplementedError

    def transformation(self, batch_size: int, total_steps: int) -> optax.GradientTransformation:
        """Return all transformations of the gradient of the mean loss of a batch."""

        def rate(step: jax.Array) -> jax.Array:
            return self.rate(step, batch_size, total_steps)

        rule = self.update_rule(rate)
        if self.clip_norm is None:
            return rule
        return optax.chain(optax.clip_by_global_norm(self.clip_norm), rule)

    def with_numbers(self, values: Mapping[str, Any]) -> "Optimizer":
        """Return the same optimizer with other numbers."""
        return dataclasses.replace(self, **{name: values[name] for name in self.NUMBERS})

    def rate(self, step: Any, batch_size: int, total_steps: int) -> jax.Array:
        """Return the learning rate of a step; steps count from 0."""
        peak = self.learning_rate * SCALINGS[self.scaling](batch_size / BATCH)
        return peak * self._course(total_steps)(step)

    def _course(self, total_steps: int) -> optax.Schedule:
        """Return a schedule whose peak is 1."""
        warmup = min(round(self.warmup * total_steps), total_steps - 1)
        if self.schedule == "cosine":
            return optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup, total_steps)
        drops = STEP_DROPS if self.schedule == "step" else ()
        # The second of the joined schedules counts from the end of the first.
        after = optax.piecewise_constant_schedule(
            1.0, {round(drop * total_steps) - warmup: 0.1 for drop in drops}
        )
        return optax.join_schedules([optax.linear_schedule(0.0, 1.0, warmup), after], [warmup])

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the values."""
        yield from positive("optimizer.learning_rate", self.learning_rate)
        yield from choice("optimizer.scaling", self.scaling, list(SCALINGS))
        yield from choice("optimizer.schedule", self.schedule, ["constant", "cosine", "step"])
        yield from fraction("optimizer.warmup", self.warmup, below_one=True)
        yield from at_least("optimizer.weight_decay", self.weight_decay, 0)
        if self.clip_norm is not None:
            yield from positive("optimizer.clip_norm", self.clip_norm)


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent. Weight decay is added to the gradient (L2 regularization)."""

    momentum: float
    nesterov: bool

    NUMBERS: ClassVar[tuple[str, ...]] = (*Optimizer.NUMBERS, "momentum")

    def update_rule(self, rate: optax.Schedule) -> optax.GradientTransformation:
        return optax.chain(
            optax.add_decayed_weights(self.weight_decay, jn.weight_decay_mask),
            optax.sgd(rate, momentum=self.momentum, nesterov=self.nesterov),
        )

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from fraction("optimizer.momentum", self.momentum, below_one=True)


@dataclass(frozen=True, kw_only=True)
class Adam(Optimizer):
    """Adam (Kingma & Ba 2015). Weight decay is added to the gradient (L2 regularization)."""

    b1: float
    b2: float

    NUMBERS: ClassVar[tuple[str, ...]] = (*Optimizer.NUMBERS, "b1", "b2")

    def update_rule(self, rate: optax.Schedule) -> optax.GradientTransformation:
        return optax.chain(
            optax.add_decayed_weights(self.weight_decay, jn.weight_decay_mask),
            optax.adam(rate, b1=self.b1, b2=self.b2),
        )

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from fraction("optimizer.b1", self.b1, below_one=True)
        yield from fraction("optimizer.b2", self.b2, below_one=True)


@dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    def update_rule(self, rate: optax.Schedule) -> optax.GradientTransformation:
        return optax.adamw(
            rate,
            b1=self.b1,
            b2=self.b2,
            weight_decay=self.weight_decay,
            mask=jn.weight_decay_mask,
        )
