"""The rule of the verdict on the difference d of two arms, of which there is one for each seed.

A two-sided t-test of d against delta for "greater", and against -delta for "at_least"; two
one-sided tests at -delta and delta for "equal" (Schuirmann 1987); Holm's correction (1979) over all
comparisons. A claim is of all its places (an intersection-union test, Berger 1982). The standard
deviation of earlier seeds determines the number of seeds of a comparison (after Stein 1945).
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from experiments.reports.metrics import mean_interval

HOLDS = "holds"
DOES_NOT_HOLD = "does not hold"
CANNOT_TELL = "cannot tell here"
OPEN = "open"

SIGNIFICANCE = 0.05
CONTRASTS = 48  # the level of an interval is corrected for this number of contrasts
LEVEL = SIGNIFICANCE / CONTRASTS
FEWEST, MOST = 8, 64  # fresh seeds


def fresh_seeds(spread: float, margin: float) -> int:
    """Return how many fresh seeds the rule compares.

    This is the smallest number from `FEWEST` to `MOST` whose interval of d, at the level of the
    correction, is expected to have a half-width of at most half the margin.
    """
    for n in range(FEWEST, MOST):
        if stats.t.ppf(1 - LEVEL / 2, n - 1) * spread / math.sqrt(n) <= margin / 2:
            return n
    return MOST


def distance_to_bounds(d: np.ndarray, bounds: Sequence[float]) -> float:
    """Return the distance of the mean of d from the nearest bound."""
    return min(abs(float(np.mean(d)) - bound) for bound in bounds)


def seeds_to_decide(d: np.ndarray, bounds: Sequence[float]) -> float:
    """Return how many seeds would tell the mean of d from the nearest bound.

    With this mean and this standard deviation, their interval, at the level of the correction, has
    a half-width of half the distance. The normal quantile stands for that of many seeds.
    """
    distance = distance_to_bounds(d, bounds)
    half_width_of_one = stats.norm.ppf(1 - LEVEL / 2) * float(np.std(d, ddof=1))
    return (half_width_of_one / (distance / 2)) ** 2 if distance > 0 else math.inf


def differences(unit: str, of_a: Sequence[float], of_b: Sequence[float]) -> np.ndarray:
    """Return d, which is log2(a / b) if the unit is a ratio."""
    a, b = np.array(of_a), np.array(of_b)
    return np.log2(a / b) if unit == "ratio" else a - b


def margin_of(unit: str, delta: float) -> float:
    """Return delta in the unit of d."""
    return math.log2(delta) if unit == "ratio" else delta


def bounds_of(direction: str, margin: float) -> list[float]:
    """Return the differences that d is tested against."""
    within = {"greater": [margin], "at_least": [-margin]}
    return within.get(direction, [-margin, margin])


def p_value(d: np.ndarray, bounds: Sequence[float]) -> float:
    """Return the p-value of d against one bound, or of its equality between two bounds."""
    if np.std(d) <= 1e-9 * max(1.0, float(np.max(np.abs(d)))):  # no deviation: the sign is certain
        mean = float(np.mean(d))
        if len(bounds) == 2:
            return 0.0 if bounds[0] < mean < bounds[1] else 1.0
        return 1.0 if math.isclose(mean, bounds[0]) else 0.0
    if len(bounds) == 2:
        return float(ttost_paired(d, np.zeros_like(d), *bounds)[0])
    return float(stats.ttest_1samp(d, bounds[0]).pvalue)


def adjusted(p_values: Sequence[float]) -> list[float]:
    """Return the p-values after Holm's correction."""
    return multipletests(p_values, method="holm")[1].tolist() if p_values else []


def verdict(d: np.ndarray, bounds: Sequence[float], adjusted_p: float) -> str:
    """Return the verdict at a place."""
    if adjusted_p < SIGNIFICANCE:
        return HOLDS if len(bounds) == 2 or np.mean(d) > bounds[0] else DOES_NOT_HOLD
    if len(bounds) == 2:
        _, low, high = mean_interval(d)
        return DOES_NOT_HOLD if low > bounds[1] or high < bounds[0] else CANNOT_TELL
    return CANNOT_TELL


def overall(words: Sequence[str]) -> str:
    """Return the verdict on a claim from those of its places: it is a claim of all of them."""
    for word in (DOES_NOT_HOLD, OPEN, CANNOT_TELL):
        if word in words:
            return word
    return HOLDS
