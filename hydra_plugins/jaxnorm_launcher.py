"""Hydra takes launchers from this namespace only; what they do stands in `experiments.launch`.

Hydra imports this whenever it starts, so it imports nothing heavy.
"""

from collections.abc import Sequence

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class SweepLauncher(Launcher):
    """Hands the checked configurations of a sweep to `experiments.launch.sweep`, all at once.

    Args:
        ray: what hydra-ray-launcher calls so: the options of `ray.init` and of `ray.remote`.
    """

    def __init__(self, ray: DictConfig | None = None) -> None:
        self._ray = ray

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take what `experiments.launch.study` has checked, and nothing from here."""

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        from experiments.launch.study import checked
        from experiments.launch.sweep import sweep

        sweep(checked, self._ray)
        return []
