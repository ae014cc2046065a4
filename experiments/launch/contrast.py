"""Checks of the primary contrast of a study before training."""

import itertools
from collections.abc import Iterator, Sequence

from experiments.config import Config, Contrast
from experiments.errors import choice
from experiments.launch.selection import overridden, picked

DIRECTIONS = ("greater", "at_least", "equal")
UNITS = ("points", "ratio", "decades", "nats")
STEPS = ("steps_to_target", "steps", "step")
DECADES, HIGHEST = "decades_that_train", "highest_that_trains"
SHARE = "share_near_best"
OR = " or "  # separates several arms, each of which is compared
SHIFT = "input_shift"
TIMES = ("step_ms", "overhead")
MEMORY = ("step_bytes", "memory_overhead")
FITTED = ("fitted_accuracy", "fitted_loss")
RESULTS = (
    *(
        f"{split}_{key}"
        for split in ("test", "validation", "train")
        for key in ("accuracy", "loss")
    ),
    "seconds",
    "gradient_decades",
    "final_gradient_decades",
)
NEEDS_TARGET = (
    "the metric {!r} needs a target, and target is null; give the value at which a seed stops, "
    "such as target=0.8 for a validation accuracy of 80 %"
)


def arms_of(contrast: Contrast) -> tuple[list[str], list[str]]:
    """Return the arms on each side of a contrast."""
    return contrast.a.split(OR), contrast.b.split(OR)


def form_problems(contrast: Contrast) -> Iterator[str]:
    """Yield what is wrong with a contrast, independent of the runs."""
    yield from choice("study.contrast.direction", contrast.direction, DIRECTIONS)
    yield from choice("study.contrast.unit", contrast.unit, UNITS)
    least = 1 if contrast.unit == "ratio" else 0
    if not contrast.delta >= least:
        yield f"study.contrast.delta is {contrast.delta}; give {least} or more"


def arm_problems(contrast: Contrast, configs: Sequence[Config]) -> Iterator[str]:
    """Yield a problem for each arm that matches no run, and if both match the same run."""
    of_a, of_b = arms_of(contrast)
    for side, arm in (*(("a", arm) for arm in of_a), *(("b", arm) for arm in of_b)):
        if not _runs(arm, configs):
            yield (
                f"study.contrast.{side} is {arm!r}, which matches no run of the study; give "
                'values of its sweep, such as "norm=batch"'
            )
    for a, b in itertools.product(of_a, of_b):
        if _runs(a, configs) & _runs(b, configs):
            yield (
                f"study.contrast.a, {a!r}, and study.contrast.b, {b!r}, match the same run; give "
                "arms that differ in a value"
            )


def _runs(arm: str, configs: Sequence[Config]) -> set[int]:
    whole = len(overridden(arm)) == len(arm.split())
    return {number for number, config in enumerate(configs) if whole and picked(config, arm)}


def metric_problems(metric: str, config: Config) -> Iterator[str]:
    """Yield the reasons why the results of a run will not have the metric."""
    for key in metric.split(" - "):
        if key in (*STEPS, DECADES, HIGHEST):
            if config.target is None:
                yield NEEDS_TARGET.format(metric)
        elif key in TIMES:
            if config.timed_steps is None:
                yield f"the metric {metric!r} needs timed_steps; give timed_steps=20"
        elif key in MEMORY:
            if not config.step_memory:
                yield f"the metric {metric!r} needs step_memory; give step_memory=true"
        elif key in FITTED:
            if not config.has_fitted:
                yield f"the metric {metric!r} needs fitted; give fitted=true"
        else:
            known = (*RESULTS, *FITTED, *TIMES, *MEMORY, STEPS[0], DECADES, HIGHEST, SHARE, SHIFT)
            yield from choice("study.contrast.metric", key, known)
