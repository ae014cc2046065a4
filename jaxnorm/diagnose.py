"""What is wrong with running statistics, in plain words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

from jaxnorm import checks as _checks
from jaxnorm.diagnosis import SEVERITIES, Diagnosis, some
from jaxnorm.evidence import Evidence, Sample, evidence, sample
from jaxnorm.finding import plain
from jaxnorm.findings import FEW_VALUES, findings
from jaxnorm.paths import joined
from jaxnorm.statistics import Moments
from jaxnorm.trees import STATS, check_not_nnx

__all__ = ["diagnose"]


def diagnose(
    batch_stats: Any,
    measured: Any = None,
    *,
    momentum: ArrayLike | None = None,
    steps: ArrayLike | None = None,
    epsilon: ArrayLike = 1e-5,
    batch_values: ArrayLike | None = None,
) -> Diagnosis:
    """Find problems of running statistics that make a model good in training but bad in evaluation.

    The effect of a problem is the number of standard deviations by which evaluation moves an input
    that lies one standard deviation from the mean. An effect of 0.2 or more is a warning, and one
    of 0.8 or more an error. The findings are:

    - "never_updated": the statistics are the initial zeros and ones.
    - "not_converged": the initial mean 0 and variance 1 still have the weight w = momentum ** steps
      in the statistics. The effect is w, or the distance to the statistics without this part if
      that is larger.
    - "mean_off", "variance_off": the statistics differ from `measured`, by
      |mean - mean_m| / sqrt(var_m + epsilon) or by half of
      |log((var + epsilon) / (var_m + epsilon))|. Here mean and var are the running ones without the
      part of weight w, and mean_m and var_m are those of `measured`. Differences that the sampling
      errors of both explain are left out; they are 1 / sqrt(n) and 1 / sqrt(2 (n - 1)) standard
      deviations for n normal values.
    - "not_finite", "large": values that are NaN, infinite, or beyond float16.
    - "small_batch": the means of batches of n values scatter by 1 / sqrt(n), which is the effect.
    - "half_precision": bfloat16 or float16 loses updates below half a unit in the last place, but
      no more than the distance from `measured`. Without `measured` it is a warning at most. With an
      effect below 0.2 it is a note.
    - "constant", "epsilon": channels without variance, or with a variance that is small beside
      epsilon; notes.
    - "unfinished", "few_measured", "frozen": statistics that are being recomputed, are measured on
      fewer than 25 values, or are marked by `freeze_stats`.

    The statistics are copied to the host; nothing is compiled. For NNX models use
    `jaxnorm.nnx.diagnose`.

    Args:
        batch_stats: the statistics of one normalization, or nested dicts of them, as Linen's
            `variables["batch_stats"]`: those of `batch_norm`, `ghost_batch_norm`, `batch_renorm`,
            `online_norm` and Flax's own `BatchNorm`, and fits to inputs.
        measured: statistics of the present data with the present weights, in the same structure.
            Best is a tree of `start_recomputing` after a pass over some hundred examples or more,
            before `finish_recomputing`, because it still has the counts. `Moments` may stand in
            place of a dict, and paths may be missing. With None, the statistics that are being
            recomputed in `batch_stats` are used.
        momentum: that of the normalizations, the weight of the old value, as in Flax (PyTorch's
            momentum of 0.1 is 0.9 here). It has no effect on cumulative statistics.
        steps: the number of training steps since the statistics were zeros and ones; None for
            loaded or recomputed statistics. Batch renormalization counts its own steps.
        epsilon: that of the normalizations.
        batch_values: the number of values of a channel in a training batch (or in a ghost):
            examples, times positions if there are any. Positions of one image resemble each other,
            so for batches of few images give the number of images.

    Returns:
        A `Diagnosis`: `rows`, a tuple of `Finding`, and what was checked. `str()` gives a table.

    Raises:
        TypeError: statistics that are not dicts, or are traced.
        ValueError: a tree without statistics, a `measured` without a path in common or with other
            shapes, steps without a momentum.

    References:
        Cohen, "Statistical power analysis for the behavioral sciences", 1988, section 2.2 (small
        and large effects).

    Example:
        >>> import jax.numpy as jnp, jaxnorm as jn
        >>> stats = {"norm": jn.init_batch_stats(2)}
        >>> for _ in range(50):
        ...     x = jnp.array([[4.0, 0.0], [6.0, 2.0]])
        ...     _, stats["norm"] = jn.batch_norm(x, stats["norm"], train=True)
        >>> report = jn.diagnose(stats, momentum=0.99, steps=50)
        >>> [(row.name, row.finding, round(row.figure, 2)) for row in report.rows]
        [('norm', 'not_converged', 0.61)]
    """
    if not isinstance(batch_stats, Mapping):
        raise TypeError(
            f"diagnose takes nested dicts of statistics, got a {type(batch_stats).__name__}; give "
            "variables['batch_stats'] of Linen, or an NNX model to jaxnorm.nnx.diagnose"
        )
    check_not_nnx("diagnose", batch_stats)
    _checks.check_momentum(momentum)
    _checks.check_epsilon(epsilon)
    if steps is not None and momentum is None:
        raise ValueError(
            f"steps={steps!r} needs a momentum: momentum ** steps is the weight that the initial "
            "values still have; give momentum too"
        )
    stats, others = statistics_by_path(batch_stats)
    check_any(stats, others, "tree", "give variables['batch_stats']")
    return diagnosed(
        stats,
        {path: {"momentum": momentum, "epsilon": epsilon} for path in stats},
        None if measured is None else statistics_by_path(measured)[0],
        others,
        steps=steps,
        batch_values=batch_values,
    )


def statistics_by_path(tree: Any) -> tuple[dict[Any, Any], dict[Any, str]]:
    """The statistics in a tree, dicts or `Moments`, and descriptions of other entries, by path."""
    if isinstance(tree, Moments) or (isinstance(tree, Mapping) and tree.keys() >= STATS):
        return {(): tree}, {}
    stats: dict[Any, Any] = {}
    others: dict[Any, str] = {}
    if not isinstance(tree, Mapping):
        return stats, {(): f"a {type(tree).__name__}"}
    for key, value in tree.items():
        found = statistics_by_path(value)
        for among, new in zip((stats, others), found, strict=True):
            among |= {(key, *path): one for path, one in new.items()}
    return stats, others


def check_any(stats: Any, others: Iterable[Any], where: str, cure: str) -> None:
    """Check that there are statistics."""
    if not stats:
        names = [joined(path) for path in others]
        entries = f", only {some(names)}" if names else ""
        raise ValueError(f"no running statistics in this {where}: no mean and var{entries}; {cure}")


def diagnosed(
    stats: Mapping[Any, Any],
    options: Mapping[Any, Mapping[str, Any]],
    measured: Mapping[Any, Any] | None,
    others: Mapping[Any, str],
    *,
    steps: ArrayLike | None,
    batch_values: ArrayLike | None,
) -> Diagnosis:
    """The diagnosis of statistics by path.

    Args:
        options: momentum and epsilon of each normalization.
        measured: statistics or moments by path.
        others: descriptions of what is not understood, by path.
    """
    if steps is not None:
        _checks.check_number("steps", steps, 0)
    if batch_values is not None:
        _checks.check_number("batch_values", batch_values, 2)
    stats, measured = _on_host(stats), None if measured is None else _on_host(measured)
    samples = _samples(stats, measured)
    cases = [
        evidence(
            joined(path),
            one,
            samples.get(joined(path)),
            **options[path],
            steps=steps,
            batch_values=batch_values,
        )
        for path, one in stats.items()
    ]
    rows = [row for case in cases for row in findings(case)]
    return Diagnosis(
        rows=tuple(sorted(rows, key=lambda row: SEVERITIES.index(row.severity))),
        names=tuple(case.name for case in cases),
        looked_at=tuple(_looked_at(cases)),
        not_looked_at=tuple(_not_looked_at(cases, others)),
    )


def _on_host(by_path: Mapping[Any, Any]) -> dict[Any, Any]:
    """The arrays in NumPy, in the same order."""
    if any(map(_checks.is_traced, jax.tree.leaves(list(by_path.values())))):
        raise TypeError(
            "diagnose needs the values of the statistics, but they are traced; call it outside of "
            "jit"
        )
    return dict(zip(by_path, jax.device_get(list(by_path.values())), strict=True))


def _samples(stats: Mapping[Any, Any], measured: Mapping[Any, Any] | None) -> dict[str, Sample]:
    """The measured statistics by name, checked to be those of the same normalizations."""
    if measured is None:
        return {}
    samples = {joined(path): sample(one) for path, one in measured.items()}
    names = {joined(path): one for path, one in stats.items()}
    if not samples.keys() & names.keys():
        raise ValueError(
            f"measured has statistics at {list(samples)}, and batch_stats at {list(names)}; give "
            "trees of the same structure"
        )
    for name in samples.keys() & names.keys():
        shapes = samples[name].var.shape, sample(names[name]).var.shape
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"the measured variance at {name!r} has shape {shapes[0]}, and that of batch_stats "
                f"{shapes[1]}; give statistics of the same model"
            )
    return samples


def _looked_at(cases: Sequence[Evidence]) -> Iterator[str]:
    """What the findings come from."""
    yield "values, dtypes, marks of freeze_stats and start_recomputing"
    if counts := [count for case in cases for count in _compared(case)]:
        known = min(counts) < np.inf
        least = f"at least {plain(min(counts), 7)} values" if known else "unknown counts"
        yield f"distance from measured statistics ({least})"
    for momentum, steps in sorted({case.decay for case in cases if case.decay is not None}):
        yield f"convergence (momentum {momentum:g}, {plain(steps, 7)} steps)"
    if cases[0].batch_values is not None:
        yield f"batches of {plain(cases[0].batch_values, 7)} values"


def _compared(case: Evidence) -> list[float]:
    """The counts of the channels whose measured statistics are compared."""
    if case.measured is None:
        return []
    return [*case.measured.count[case.measured.count >= FEW_VALUES].tolist()]


def _not_looked_at(cases: Sequence[Evidence], others: Iterable[Any]) -> Iterator[str]:
    """What the findings cannot come from, and why."""
    for what_of in (_distance_not_looked_at, _convergence_not_looked_at):
        missing: dict[str, list[str]] = {}
        for case in cases:
            if what := what_of(case):
                missing.setdefault(what, []).append(case.name)
        for what, names in missing.items():
            yield what if len(names) == len(cases) else f"{what} of {some(names)}"
    if cases[0].batch_values is None:
        yield "size of batches (give batch_values)"
    if names := [joined(path) for path in others]:
        yield f"entries without a mean and a variance: {some(names)}"


def _distance_not_looked_at(case: Evidence) -> str:
    """Why there is no distance of any channel, if there is none."""
    what = "distance from statistics of the present data"
    if case.measured is None:
        return f"{what} (give measured)"
    most = case.measured.count.max(initial=0)
    return f"{what} ({plain(most, 7)} values measured)" if most < FEW_VALUES else ""


def _convergence_not_looked_at(case: Evidence) -> str:
    """What is missing to see whether the statistics converged, if anything is."""
    return f"convergence (give {' and '.join(case.unknown)})" if case.unknown else ""
