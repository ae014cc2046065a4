"""Runs with known numbers, written as training writes them, for the tests of what reads them."""

import json
from dataclasses import replace

from omegaconf import OmegaConf

from experiments.config import (
    Config,
    Contrast,
    GlobalSync,
    Jit,
    Local,
    RunningInference,
    StudyConfig,
    Undistributed,
)
from experiments.reports.comparison import compare
from experiments.reports.results import collect
from experiments.runs.code import code_digest
from experiments.runs.directory import run_directory

BASE = Config(
    data={"name": "digits", "_target_": "experiments.data.digits.Digits", "validation": 0.1},
    model={"name": "mlp", "_target_": "experiments.models.mlp.MLP", "hidden": [100, 100]},
    norm={"name": "batch", "_target_": "experiments.norms.batch.BatchNorm", "momentum": 0.9},
    optimizer={"name": "sgd", "_target_": "experiments.training.optimizers.SGD"}
    | {"learning_rate": 0.1, "momentum": 0.9},
    parallel=Jit("jit"),
    sync=GlobalSync("global"),
    inference=RunningInference("running"),
    distributed=Undistributed("off"),
    launcher=Local("local", None),
    batch_size=16,
    accumulate=1,
    dtype="float32",
    epochs=2,
    steps=None,
    seeds=3,
    evaluate_every="epoch",
    checkpoint_every=None,
    keep_checkpoints=2,
    target=None,
    steps_per_call=None,
    seeds_together=None,
    keep_stale=False,
    output="runs",
    study=StudyConfig(name="made_up", question="Which is better?"),
)


def configuration(**changes):
    """Give a configuration; `norm="layer"`, `optimizer={"learning_rate": 1}` change components."""
    values = {}
    for key, value in changes.items():
        if key in ("data", "model", "norm", "optimizer"):
            own = {"name": value} if isinstance(value, str) else value
            value = {**getattr(BASE, key), **own}
        values[key] = value
    return replace(BASE, **values)


def result(seed, accuracy, *, validation=None, ended="done", step=200, code=None, config=BASE):
    """Give what a seed reached; accuracies from 0 to 1."""
    lost = ended == "diverged"
    return {
        "seed": seed,
        "ended": ended,
        "step": step,
        "test_accuracy": accuracy,
        "test_loss": None if lost else 0.5,
        "validation_accuracy": accuracy if validation is None else validation,
        "validation_loss": None if lost else 0.5,
        "train_loss": None if lost else 0.25,
        "train_accuracy": accuracy,
        "fitted_loss": None if lost else 0.2,
        "fitted_accuracy": accuracy,
        "parameters": "0" * 64,
        "seconds": 1.5,
        "device": {"platform": "cpu", "kind": "made up"},
        "versions": {"jax": "9.9.9", "jaxnorm": "0.0.1"},
        "code": code or code_digest(config),
    }


def history(final, steps=(100, 200)):
    """Give a history that ends in the accuracy of a result."""
    last = final["validation_accuracy"]
    return [
        {
            "step": step,
            "epoch": step / 100,
            "seconds": step / 100,
            "train_loss": None if final["ended"] == "diverged" else 100 / step,
            "train_accuracy": last * step / steps[-1],
            "validation_loss": None if final["ended"] == "diverged" else 50 / step,
            "validation_accuracy": last * step / steps[-1],
            "learning_rate": 0.1,
            "gradient_norm": {"Dense_0": 0.5},
            "statistics": {"norm_0": {"mean": 0.1, "var": 0.2}},
            "quantiles": {
                "norm_0": {
                    "input": [-4, -1, 1, 3, 6],
                    "output": [-2, -1, 0, 1, step / 100],
                    "unit": [-2, -1, step / 100, 1, 2],
                }
            },
        }
        for step in steps
    ]


def write_seed(config, final, lines=None):
    """Write one seed of a run."""
    directory = run_directory(config)
    place = directory / f"seed-{final['seed']}"
    place.mkdir(parents=True, exist_ok=True)
    if not (directory / "config.yaml").exists():  # the seeds of a run share it
        (directory / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(config)))
    lines = history(final) if lines is None else lines
    (place / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (place / "result.json").write_text(json.dumps(final))
    return directory


def write_run(config, accuracies, **others):
    """Write a run whose seeds reached the accuracies; `others` as in `result`."""
    for seed, accuracy in enumerate(accuracies):
        directory = write_seed(config, result(seed, accuracy, config=config, **others))
    return directory


def points(output, *changes, seeds=None, **others):
    """Write a run for each of the changes, and give all as points of a study."""
    configs = [configuration(output=str(output), **each) for each in changes]
    for config in configs:
        write_run(config, seeds or [0.90, 0.91, 0.92], **others)
    return collect(configs)


def contrast(**changes):
    """Give a contrast of two norms."""
    values = {"a": "norm=batch", "b": "norm=none", "metric": "test_accuracy"}
    values |= {"direction": "greater", "delta": 0.5, "unit": "points"}
    return Contrast(**(values | changes))


def arm(output, norm, accuracies, rate=0.1, validation=None, **others):
    """Write a run of a seed for each accuracy in percent, and give its configuration."""
    optimizer = {"learning_rate": rate}
    config = configuration(
        norm=norm, optimizer=optimizer, seeds=len(accuracies), output=str(output)
    )
    validation = accuracies if validation is None else validation
    for seed, (reached, validated) in enumerate(zip(accuracies, validation, strict=True)):
        final = result(seed, reached / 100, validation=validated / 100, config=config, **others)
        write_seed(config, final)
    return config


def one(contrast, configs):
    """Compare at the only place."""
    [result] = compare(contrast, collect(configs))
    return result
