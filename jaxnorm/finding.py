"""A finding, and the scale of its severity.

An effect is in standard deviations: by how much evaluation moves an input that lies one standard
deviation from the mean. So one scale says for all findings what matters.

References:
    Cohen, "Statistical power analysis for the behavioral sciences", 1988, section 2.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxnorm.evidence import Evidence

__all__ = ["Finding"]

# Cohen's conventions for a distance between means: at 0.2 standard deviations two normal
# distributions overlap by 92 %, at 0.8 by 69 %.
SMALL_EFFECT, LARGE_EFFECT = 0.2, 0.8


class Finding(NamedTuple):
    """Something that `diagnose` found in one normalization.

    Attributes:
        name: the path of the normalization; empty if the tree is the statistics of one.
        finding: "not_finite", "never_updated", "unfinished", "not_converged", "mean_off",
            "variance_off", "small_batch", "half_precision", "large", "few_measured", "constant",
            "epsilon" or "frozen".
        severity: "error" if evaluation is wrong, "warning" if evaluation may differ from training,
            "note" if both are affected alike, or if it may be intended.
        figure: the size of the problem in the worst channel, as the table of `Diagnosis` shows it;
            None if the finding has no number.
        channels: the indices of the affected channels; tuples if the statistics have several axes.
        num_channels: the number of all channels.
        cause: a description of the likely cause.
        cure: a description of what to do.
    """

    name: str
    finding: str
    severity: str
    figure: float | None
    channels: tuple[Any, ...]
    num_channels: int
    cause: str
    cure: str


def found(
    known: Evidence,
    finding: str,
    severity: str,
    channels: Any,
    figure: Any,
    cause: str,
    cure: str,
) -> Iterator[Finding]:
    """A `Finding`, if it is in any channel; True stands for all of them."""
    channels = np.broadcast_to(channels, known.running.var.shape)
    if np.any(channels):
        indices = [tuple(map(int, index)) for index in np.argwhere(channels)]
        yield Finding(
            known.name,
            finding,
            severity,
            None if figure is None else float(figure),
            tuple(index[0] if len(index) == 1 else index for index in indices),
            channels.size,
            cause,
            cure,
        )


def by_effect(effect: Any) -> str:
    """The severity of an effect in standard deviations."""
    return "error" if effect >= LARGE_EFFECT else "warning"


def percent(share: Any) -> str:
    """A share in words."""
    return f"{plain(100 * share)} %"


def plain(value: Any, digits: int = 2) -> str:
    """A number of so many significant digits, with zeros rather than an exponent if it is large."""
    return f"{float(f'{float(value):.{digits}g}'):,.12g}"
