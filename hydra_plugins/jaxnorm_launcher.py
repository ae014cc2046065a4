"""Hydra takes launchers from this namespace only; what they do stands in `experiments.launch`.

Hydra imports this whenever it starts, so it imports nothing heavy.
"""

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict, read_write


class SweepLauncher(Launcher):
    """Hands the configurations of a sweep to `experiments.launch.sweep`, all at once.

    Args:
        ray: what hydra-ray-launcher calls so: the options of `ray.init` and of `ray.remote`.
    """

    def __init__(self, ray: DictConfig | None = None) -> None:
        self._ray = ray

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self._loader, self._config = hydra_context.config_loader, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        from experiments.launch.study import to_config
        from experiments.launch.sweep import sweep

        sweep([to_config(self._composed(overrides)) for overrides in job_overrides], self._ray)
        return []

    def _composed(self, overrides: Sequence[str]) -> Any:
        composed = self._loader.load_sweep_config(self._config, list(overrides))
        with read_write(composed), open_dict(composed):
            del composed["hydra"]
        return composed
