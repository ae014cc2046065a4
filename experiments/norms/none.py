"""No normalization."""

from dataclasses import dataclass
from typing import Any, ClassVar

from experiments.norms.base import Context, Norm


@dataclass(frozen=True, kw_only=True)
class NoNorm(Norm):
    """The identity."""

    adds_bias: ClassVar[bool] = False

    def module(self, context: Context, ndim: int, **options: Any) -> None:
        return None
