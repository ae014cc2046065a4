"""What can be wrong with the running statistics of one normalization.

`finding.py` has the scale of all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import NormalDist

import numpy as np

from jaxnorm.evidence import Array, Evidence, Sample
from jaxnorm.finding import SMALL_EFFECT, Finding, by_effect, found, percent, plain

FEW_VALUES = 25  # their mean scatters by 1 / sqrt(25) standard deviations
# The chance of a finding where statistics differ from the measured ones by sampling alone, for many
# normal values in each; of the fewest, whose own deviation scatters, it is some times larger.
FALSE_ALARM = 1e-3
# The variance of an output whose deviation is 2^-8, half a unit in the last place of bfloat16 at 1:
# nothing but the bias is left of the channel.
INVISIBLE = 2.0**-16
FLOAT16_LARGEST = 65504.0  # beyond it activations of float16 are infinite
USUAL_MOMENTUM = 0.99  # of this library, Flax and Keras, where the momentum is unknown

RECOMPUTE = "recompute (start_recomputing, one pass over the data, finish_recomputing)"


def findings(known: Evidence) -> Iterator[Finding]:
    """What is wrong with the statistics of a normalization."""
    with np.errstate(all="ignore"):  # what is not finite is a finding, and in no other one
        for check in CHECKS:
            yield from check(known)


def _log_ratio(var: Array, other: Array, epsilon: float) -> Array:
    """The distance of two deviations, |log(sqrt(var + epsilon) / sqrt(other + epsilon))|."""
    return np.asarray(np.abs(np.log((var + epsilon) / (other + epsilon))) / 2)


def _not_finite(known: Evidence) -> Iterator[Finding]:
    for sample, cause in (
        (
            known.running,
            "A mean or a variance is NaN, infinite or negative: a batch was not finite, or "
            "training diverged.",
        ),
        (
            known.measured,
            "A measured mean or variance is NaN, infinite or negative: the present data or weights "
            "are not finite.",
        ),
    ):
        if sample is None:
            continue
        bad = ~(np.isfinite(sample.mean) & np.isfinite(sample.var))
        cure = (
            f"find the first NaN (jax.debug_nans), then {RECOMPUTE}; to leave such batches out of "
            "the statistics, set skip_nonfinite=True"
        )
        yield from found(known, "not_finite", "error", bad, None, cause, cure)


def _never_updated(known: Evidence) -> Iterator[Finding]:
    if known.fresh and not known.merged_any:
        cause = (
            "The statistics are the initial mean 0 and variance 1: the model ran in evaluation "
            "mode, or its new statistics were not kept."
        )
        cure = (
            "run the model in training mode and keep the new statistics; in Linen, apply returns "
            "them with mutable=['batch_stats']; in NNX, call model.train() and use nnx.jit, not "
            "jax.jit"
        )
        yield from found(known, "never_updated", "error", True, None, cause, cure)
    if known.fresh:
        return
    channels = known.running.count == 0
    if known.steps is not None:
        channels = channels | (known.steps == 0)
    cause = (
        "The count or the number of steps is 0, but the mean and the variance are not the initial "
        "ones."
    )
    cure = "nothing, if you loaded or converted them; otherwise train"
    yield from found(known, "never_updated", "note", channels, None, cause, cure)


def _unfinished(known: Evidence) -> Iterator[Finding]:
    if known.merged is not None:
        most = np.max(known.merged, initial=0)
        old = ", which are the initial 0 and 1" if known.fresh else ""
        cause = (
            "start_recomputing was called and the pass is not finished. Evaluation still uses the "
            f"old statistics{old}."
        )
        cure = "after the pass, call finish_recomputing or finish_accumulating"
        severity = "error" if known.fresh and known.merged_any else "warning"
        yield from found(known, "unfinished", severity, True, most, cause, cure)


def _not_converged(known: Evidence) -> Iterator[Finding]:
    """The effect of the initial 0 and 1: w at one standard deviation, or more on these data."""
    w, seen = known.initial_weight, known.seen
    of_mean = np.abs(known.running.mean - seen.mean) / np.sqrt(seen.var + known.epsilon)
    of_var = _log_ratio(known.running.var, seen.var, known.epsilon)
    varies = (w < 1) & ~_is_constant(known)
    effect = np.maximum(w, np.where(varies, np.maximum(of_mean, of_var), 0))
    channels = (effect >= SMALL_EFFECT) & (not known.fresh)
    if known.steps is not None and np.any(channels):
        steps = np.min(known.steps, where=channels, initial=np.inf)
        left = np.max(w, where=channels, initial=0)
        severity = by_effect(np.max(effect, where=channels, initial=0))
        cause = (
            f"After {plain(steps, 7)} steps with momentum {known.momentum:g}, the initial mean 0 "
            f"and variance 1 still have a weight of {percent(left)}."
        )
        cure = f"train longer, use a smaller momentum, or {RECOMPUTE}"
        yield from found(known, "not_converged", severity, channels, left, cause, cure)


def _mean_off(known: Evidence) -> Iterator[Finding]:
    if known.measured is not None:
        measured = known.measured
        distance = _mean_distance(known, measured)
        error = np.sqrt(1 / known.seen.count + 1 / measured.count)
        yield from _off(known, measured, "mean_off", distance, error, distance)


def _variance_off(known: Evidence) -> Iterator[Finding]:
    if known.measured is not None:
        var, measured, epsilon = known.seen.var, known.measured, known.epsilon
        distance = _log_ratio(var, measured.var, epsilon)
        error = np.sqrt(0.5 / (known.seen.count - 1) + 0.5 / (measured.count - 1))
        ratio = (var + epsilon) / (measured.var + epsilon)
        yield from _off(known, measured, "variance_off", distance, error, ratio)


def _off(
    known: Evidence,
    measured: Sample,
    finding: str,
    distance: Array,
    error: Array,
    figures: Array,
) -> Iterator[Finding]:
    """Distances that have an effect, and that are no sampling error.

    Args:
        error: the standard deviation of the distance, for normal inputs.
    """
    # For two sides, and the mean and the variance of each channel.
    errors = NormalDist().inv_cdf(1 - FALSE_ALARM / (4 * max(distance.size, 1)))
    compared = np.isfinite(distance) & (measured.count >= FEW_VALUES) & (not known.fresh)
    channels = compared & (distance >= np.maximum(SMALL_EFFECT, errors * error))
    if not np.any(channels):
        return
    cause = f"Possible causes: {'; '.join(_causes_of_distance(known))}."
    cure = f"preprocess the data as in training; if you already do, {RECOMPUTE}"
    if known.frozen:
        cure = f"unfreeze by freeze_stats(..., frozen=False), then {RECOMPUTE}"
    worst = np.argmax(np.where(channels, distance, -np.inf))
    severity = by_effect(distance.flat[worst])
    yield from found(known, finding, severity, channels, figures.flat[worst], cause, cure)


def _causes_of_distance(known: Evidence) -> Iterator[str]:
    """What may move running statistics from those of the data, as far as it is not excluded."""
    if known.frozen:
        yield "the statistics are frozen, and the data or the weights have changed since"
    yield "the data are not those of training (preprocessing, domain)"
    yield "the weights have changed (loaded, averaged, or moved by large updates)"
    yield "the training data were not shuffled"
    if known.unknown:
        yield f"the statistics have not converged (to check, give {' and '.join(known.unknown)})"
    if known.kind == "batch" and known.batch_values is None:
        yield "batches are small or have few images (to check, give batch_values)"
    elif known.kind == "batch":
        yield "batches have few images, and the positions of an image are similar"
    if known.decays:
        yield "the momentum is too small for channels that are rarely active"


def _mean_distance(known: Evidence, measured: Sample) -> Array:
    """The distance of the means, in measured standard deviations."""
    distance = np.abs(known.seen.mean - measured.mean)
    return np.asarray(distance / np.sqrt(measured.var + known.epsilon))


def _small_batch(known: Evidence) -> Iterator[Finding]:
    n = known.batch_values
    if known.kind == "batch" and n is not None and n < FEW_VALUES:
        scatter = 1 / np.sqrt(n)
        cause = (
            f"A training batch has n = {plain(n, 7)} values per channel. The means of such batches "
            "scatter by 1 / sqrt(n) standard deviations, and their variances by sqrt(2 / (n - 1)) "
            f"= {percent(np.sqrt(2 / (n - 1)))}. Evaluation does not have this noise."
        )
        cure = "use larger batches, statistics over devices (axis_name), batch_renorm or group_norm"
        severity = by_effect(scatter)
        yield from found(known, "small_batch", severity, True, scatter, cause, cure)


def _half_precision(known: Evidence) -> Iterator[Finding]:
    """Updates (1 - momentum) * (batch - old) below half a unit in the last place are lost.

    No more is lost than the measured distance; without it, training may have been in float32.
    """
    if known.narrow is not None:
        dtype, unit = known.narrow
        momentum = USUAL_MOMENTUM if known.momentum is None else known.momentum
        size = np.abs(known.running.mean) / np.sqrt(known.running.var + known.epsilon)
        of_mean = np.max(size, where=np.isfinite(size), initial=0)
        of_var = 0.5  # of a relative change of the variance, on the standard deviation
        lost = np.divide(unit / 2, 1 - momentum) * max(of_mean, of_var)
        severity = "warning"
        if known.measured is not None and np.all(known.measured.count >= FEW_VALUES):
            distance = np.maximum(
                _mean_distance(known, known.measured),
                _log_ratio(known.seen.var, known.measured.var, known.epsilon),
            )
            distance = np.max(distance, where=np.isfinite(distance), initial=0)
            lost = np.minimum(lost, distance)
            severity = by_effect(lost)
        cause = (
            f"The statistics are stored in {dtype}. If training updates them in this dtype, it "
            "loses updates below half a unit in the last place."
        )
        cure = "keep the statistics in float32; inputs and outputs may stay in half precision"
        severity = "note" if lost < SMALL_EFFECT else severity
        yield from found(known, "half_precision", severity, True, lost, cause, cure)


def _large(known: Evidence) -> Iterator[Finding]:
    size = np.abs(known.running.mean) + np.sqrt(known.running.var)
    channels = (size > FLOAT16_LARGEST) & np.isfinite(size) & (known.kind != "fit")
    figure = np.max(size, where=channels, initial=0)
    cause = f"The inputs exceed {FLOAT16_LARGEST:.0f}, the largest number of float16."
    cure = "scale the inputs of the model, or check the weights and the learning rate"
    yield from found(known, "large", "warning", channels, figure, cause, cure)


def _few_measured(known: Evidence) -> Iterator[Finding]:
    if known.measured is not None:
        count = known.measured.count
        cause = (
            "Nothing was measured: the model ran in evaluation mode, its statistics are frozen, or "
            "the module ignores start_recomputing, as Flax's own BatchNorm does."
        )
        cure = (
            "run the model in training mode (in NNX model.train()); unfreeze the statistics by "
            "freeze_stats(..., frozen=False); replace Flax's BatchNorm with jaxnorm's"
        )
        yield from found(known, "few_measured", "note", count == 0, 0, cause, cure)
        few = (count > 0) & (count < FEW_VALUES)
        cause = f"Fewer than {FEW_VALUES} values were measured, too few for a comparison."
        least = np.min(count, where=few, initial=np.inf)
        yield from found(known, "few_measured", "note", few, least, cause, "measure more data")


def _constant(known: Evidence) -> Iterator[Finding]:
    channels = _is_constant(known)
    figure = np.max(_present_var(known), where=channels, initial=0)
    cause = "The inputs of the channel do not vary, so its output is its bias."
    cure = "check the layer before: dead units, zero weights, a constant feature"
    yield from found(known, "constant", "note", channels, figure, cause, cure)


def _present_var(known: Evidence) -> Array:
    """The variance of the present data: measured where values are enough, or that of training."""
    if known.measured is None:
        return known.seen.var
    return np.where(known.measured.count < FEW_VALUES, known.seen.var, known.measured.var)


def _is_constant(known: Evidence) -> Array:
    """Whether a channel does not vary, to the eye of bfloat16."""
    return np.asarray(_present_var(known) <= INVISIBLE * known.epsilon)


def _epsilon(known: Evidence) -> Iterator[Finding]:
    var, epsilon = _present_var(known), known.epsilon
    effect = _log_ratio(var + epsilon, var, 0)
    channels = (effect >= SMALL_EFFECT) & ~_is_constant(known)
    ratio = np.max(epsilon / var, where=channels, initial=0)
    cause = f"The variance is small compared with epsilon ({epsilon:g}), so the outputs are small."
    cure = "use a smaller epsilon, in training and in evaluation, or larger inputs"
    yield from found(known, "epsilon", "note", channels, ratio, cause, cure)


def _frozen(known: Evidence) -> Iterator[Finding]:
    if known.frozen:
        cause = "Training uses the statistics and does not update them (freeze_stats)."
        cure = "if you do not want this, unfreeze by freeze_stats(..., frozen=False)"
        yield from found(known, "frozen", "note", True, None, cause, cure)


CHECKS = (
    _not_finite,
    _never_updated,
    _unfinished,
    _not_converged,
    _mean_off,
    _variance_off,
    _small_batch,
    _half_precision,
    _large,
    _few_measured,
    _constant,
    _epsilon,
    _frozen,
)
