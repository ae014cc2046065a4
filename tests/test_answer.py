"""The sentences about a study without a claim: the best runs, and what differs from them."""

import numpy as np
import run_files

from experiments.reports.answer import best_runs
from experiments.reports.metrics import metric
from experiments.reports.results import collect

SHARED = 80 + np.arange(5.0)  # what a seed has in common is larger than any difference
NOISE = np.array([-0.1, 0.1, 0.0, 0.2, -0.2])


def points(output, gains):
    """Read a run of five seeds for each (norm, batch size)."""
    configs = []
    for (norm, batch_size), gain in gains.items():
        config = run_files.configuration(
            norm=norm, batch_size=batch_size, seeds=5, output=str(output)
        )
        run_files.write_run(config, (SHARED + gain + (NOISE if norm == "batch" else 0)) / 100)
        configs.append(config)
    return collect(configs)


def test_the_best_run_at_each_value_and_what_differs_clearly_from_it(tmp_path):
    gains = {
        ("batch", 16): 3.0,
        ("none", 16): 0.0,
        ("layer", 16): 3.05,
        ("batch", 64): 2.0,
        ("none", 64): 0.0,
        ("batch", 256): 0.04,
        ("none", 256): 0.0,
        ("batch", 512): 0.0,
    }
    found = points(tmp_path, gains)
    assert best_runs(found, metric("test_accuracy", found), "batch_size") == (
        "At batch size 16, layer has the highest mean test accuracy (%): 85.0 ± 2.0. "
        "It differs clearly from none (5 seeds), and not from the others. "
        "At batch size 64, batch has the highest mean test accuracy (%): 84.0 ± 2.0. "
        "It differs clearly from every other run (5 seeds). "
        "At batch size 256, batch has the highest mean test accuracy (%): 82.0 ± 2.0. "
        "The 5 seeds show no clear difference from any other run. "
        "At batch size 512, batch has the highest mean test accuracy (%): 82.0 ± 2.0."
    )


def test_a_loss_is_best_where_it_is_lowest(tmp_path):
    found = points(tmp_path, {("batch", 16): 3.0, ("none", 16): 0.0})
    said = best_runs(found, metric("test_loss", found), None)
    assert said.startswith("Batch has the lowest mean test loss (nats): 0.5 ± 0. The 5 seeds show")
