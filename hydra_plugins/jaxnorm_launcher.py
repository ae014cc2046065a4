"""The launcher of sweeps. Hydra finds launchers only in this namespace package.

Hydra imports this module whenever it starts, so it has no slow imports. `experiments.launch` does
the work.
"""

from collections.abc import Sequence

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class SweepLauncher(Launcher):
    """Passes the checked configurations of a sweep to `experiments.launch.sweep`.

    Args:
        ray: the options of `ray.init` and `ray.remote`, as for hydra-ray-launcher.
    """

    def __init__(self, ray: DictConfig | None = None) -> None:
        self._ray = ray

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Ignore the arguments: `experiments.launch.study` has the checked configurations."""

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        from experiments.launch.study import checked
        from experiments.launch.sweep import sweep

        sweep(checked, self._ray)
        return []
