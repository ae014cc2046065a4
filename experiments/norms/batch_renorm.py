"""Batch renormalization."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import optax
from flax import linen as nn

from experiments.errors import at_least, fraction
from experiments.norms.base import Context
from experiments.norms.running import RunningNorm
from jaxnorm import linen


@dataclass(frozen=True, kw_only=True)
class BatchRenorm(RunningNorm):
    """Batch renormalization (Ioffe 2017) whose limits open linearly during the run.

    Attributes:
        r_max: the final limit of r.
        d_max: the final limit of d.
        relax_from: the fraction of the steps at which the limits start to open.
        relax_to: the fraction of the steps at which they are open.
    """

    r_max: float
    d_max: float
    relax_from: float
    relax_to: float

    of_running: ClassVar[bool] = True

    def module(self, context: Context, ndim: int, **options: Any) -> nn.Module:
        return linen.BatchRenorm(
            r_max=self._relaxation(1, self.r_max, context.total_steps),
            d_max=self._relaxation(0, self.d_max, context.total_steps),
            **self.common(context),
            **options,
        )

    def _relaxation(self, closed: float, limit: float, total_steps: int) -> optax.Schedule:
        """Return a linear schedule from `closed` to `limit` between the two fractions."""
        begin, end = (
            round(fraction * total_steps) for fraction in (self.relax_from, self.relax_to)
        )
        return optax.linear_schedule(closed, limit, max(end - begin, 1), begin)

    def problems(self, batch_size: int) -> Iterator[str]:
        yield from super().problems(batch_size)
        yield from at_least("norm.r_max", self.r_max, 1)
        yield from at_least("norm.d_max", self.d_max, 0)
        yield from fraction("norm.relax_from", self.relax_from)
        yield from fraction("norm.relax_to", self.relax_to)
        if self.relax_from > self.relax_to:
            yield (
                f"norm.relax_from is {self.relax_from}, after norm.relax_to ({self.relax_to}); "
                "give an earlier fraction of the run"
            )
