"""Composes and checks the runs of a study before training."""

import copy
import functools
import sys
import traceback
from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Any

import jax
from hydra import compose
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from experiments.config import Config, with_seeds
from experiments.data.idx_images import DEBIAN
from experiments.errors import ConfigError
from experiments.launch import validation
from experiments.launch.contrast import arm_problems, arms_of, form_problems, metric_problems
from experiments.launch.labels import labels
from experiments.launch.progress import display
from experiments.launch.selection import kept, picked
from experiments.launch.validation import validate, validate_devices
from experiments.runs.directory import run_directory
from experiments.training import hosts, parallel

CONFIG_DIR = str(validation.CONFIG_DIR)
CONFIG_NAME = "train"
NOT_INSTALLED = "Fashion-MNIST is not installed, so the study uses {}"


def grid(overrides: Sequence[str]) -> list[Config]:
    """Return the valid configurations that the basic sweeper of Hydra makes of the overrides.

    Hydra must be initialized. Without a sweep there is one configuration.

    Raises:
        HydraException: an override does not fit the configuration.
        ConfigError: a configuration is invalid.
    """
    configs = composed(overrides)
    _check_common(configs)
    check_contrast(overrides, configs)
    check(configs)
    return configs


def check_contrast(overrides: Sequence[str], configs: Sequence[Config]) -> None:
    """Raise `ConfigError` if the primary contrast of a study is invalid.

    Overrides can select a part of a study. An arm that is not in this part must be in the study as
    its file defines it.
    """
    study = configs[0].study
    if study.contrast is None:
        return
    arms = [*arm_problems(study.contrast, configs)]
    study_overrides = [each for each in overrides if each.startswith("study=")]
    if arms and study_overrides != [*overrides]:
        arms = [*arm_problems(study.contrast, composed(study_overrides))]
    problems = [
        *form_problems(study.contrast),
        *arms,
        *metric_problems(study.contrast.metric, configs[0]),
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def check(configs: Sequence[Config]) -> None:
    """Raise a `ConfigError` that lists all problems, each with the first run that has it."""
    problems: dict[str, str] = {}
    for config, label in zip(configs, labels(configs), strict=True):
        try:
            validate(config)
        except ConfigError as error:
            problems.setdefault(str(error), f"{label}: " if label else "")
    if problems:
        raise ConfigError("\n".join(f"{label}{problem}" for problem, label in problems.items()))


def _check_common(configs: Sequence[Config]) -> None:
    """Check that the settings of the whole program are the same in all runs."""
    for key in ("distributed", "launcher", "parallel.virtual_devices"):
        values = [attrgetter(key)(config) for config in configs]
        if any(value != values[0] for value in values):
            raise ConfigError(f"{key} differs between the runs of a sweep; give one value for all")


def composed(overrides: Sequence[str]) -> list[Config]:
    """Return the configurations of `grid` without checking their values, for example for a report.

    Raises:
        HydraException: an override does not fit the configuration.
        ConfigError: an override adds or deletes a key, a value is missing, or no run is left.
    """
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    overrides = [*fallback(overrides), *overrides]
    parsed = parser.parse_overrides(list(overrides))
    _check_keys_are_fixed(parsed)
    common = [override.input_line for override in parsed if not override.is_sweep_override()]
    sweeper = compose(CONFIG_NAME, common, return_hydra_config=True).hydra.sweeper
    swept = [f"{key}={values}" for key, values in (sweeper.params or {}).items()]
    [jobs] = BasicSweeper.split_arguments(
        parser.parse_overrides([*swept, *overrides]), max_batch_size=None
    )
    configs = kept([to_config(config) for config in _compose(jobs)])
    if not configs:
        raise ConfigError("study.without leaves out every run of the study; give fewer entries")
    return [_with_its_seeds(config) for config in configs]


def _with_its_seeds(config: Config) -> Config:
    """Return the run with the secondary seeds of its study if no arm of the contrast selects it."""
    contrast, secondary = config.study.contrast, config.study.secondary_seeds
    if contrast is None or secondary is None:
        return config
    if secondary < 1:
        raise ConfigError(f"study.secondary_seeds is {secondary}; give 1 or more, or null")
    if any(picked(config, arm) for arms in arms_of(contrast) for arm in arms):
        return config
    return with_seeds(config, config.seed_numbers[:secondary])


def fallback(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that replace Fashion-MNIST in a study if it is not installed."""
    if all(folder.is_dir() for folder in DEBIAN) or any(o.startswith("data=") for o in overrides):
        return []
    chosen = [override for override in overrides if override.startswith("study=")]
    return list(compose(CONFIG_NAME, chosen).study.fallback)


def _compose(jobs: Sequence[Sequence[str]]) -> Iterator[DictConfig]:
    """Compose the jobs of a sweep. Each choice of files is composed once and then copied."""
    loader = GlobalHydra.instance().config_loader()
    parser = OverridesParser.create(config_loader=loader)
    is_group = functools.cache(lambda key: bool(loader.get_group_options(key)))
    of_files = functools.cache(lambda chosen: compose(CONFIG_NAME, list(chosen)))
    for job in jobs:
        parsed = parser.parse_overrides(list(job))
        chosen = tuple(each.input_line for each in parsed if is_group(each.key_or_group))
        config = copy.deepcopy(of_files(chosen))
        values = [each for each in parsed if not is_group(each.key_or_group)]
        ConfigLoaderImpl._apply_overrides_to_config(values, config)
        yield config


def to_config(composed: DictConfig) -> Config:
    """Return the composed configuration as the dataclasses of `experiments.config`.

    Raises:
        ConfigError: a required value is missing.
    """
    missing = sorted(OmegaConf.missing_keys(composed))
    if missing:
        raise ConfigError(f"{', '.join(missing)} must be given, each as key=value")
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    return config


def _check_keys_are_fixed(overrides: Sequence[Override]) -> None:
    for override in overrides:
        changes_keys = override.is_add() or override.is_force_add() or override.is_delete()
        if changes_keys and not override.get_key_element().lstrip("+~").startswith("hydra"):
            raise ConfigError(
                f"{override.input_line!r} adds or deletes a key, but the keys are fixed; "
                "set one with key=value"
            )


checked: list[Config] = []  # the runs of a sweep, for the launcher


class CheckBeforeTraining(Callback):
    """Exits before training if any run of the program is invalid.

    The processes connect after the checks that need no devices, and before the checks that do.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        _start_or_exit(config.hydra.overrides.task)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        configs = _start_or_exit(config.hydra.overrides.task)
        checked[:] = configs
        if instead := fallback(config.hydra.overrides.task):
            print(NOT_INSTALLED.format(" ".join(instead)), file=sys.stderr)
        names = [run_directory(config).name for config in configs]
        run_labels = dict(zip(names, labels(configs), strict=True))
        display.start_study(configs[0].study.name or "sweep", len(configs), run_labels)


def _start_or_exit(overrides: Sequence[str]) -> list[Config]:
    """Return the configurations of `grid`. Exit on errors, because Hydra only warns about them."""
    try:
        configs = grid(overrides)
        hosts.join(configs[0].distributed)
        for config in configs:
            num_devices = len(parallel.devices(config.parallel))
            validate_devices(config, num_devices, jax.process_count())
        if not hosts.is_first():
            display.silence()
        return configs
    except (HydraException, OmegaConfBaseException, ConfigError) as error:
        sys.exit(explain(error))
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def explain(error: Exception) -> str:
    """Return a message about an invalid configuration, with the valid keys or choices."""
    if isinstance(error, ConfigError):
        return f"error: {error}"
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    match error, cause:
        case MissingConfigException(missing_cfg_file="hydra/launcher/ray"), _:
            return (
                "error: launcher=ray needs packages that are not installed; "
                "run pip install --editable '.[experiments,ray]', or give launcher=local"
            )
        case MissingConfigException(options=[*options]), _:
            group, _, choice = str(error.missing_cfg_file).rpartition("/")
            return f"error: {group} has no choice {choice!r}; the choices are {', '.join(options)}"
        case _, ConfigKeyError(full_key=key, parent_node=parent) | ConfigAttributeError(
            full_key=key, parent_node=parent
        ):
            level, _, name = str(key).rpartition(".")
            keys = ", ".join(sorted(str(k) for k in parent if k != "hydra"))
            where = f" in {level}" if level else ""
            return f"error: there is no key {name!r}{where}; the keys{where} are {keys}"
        case _, OmegaConfBaseException(full_key=key):
            return f"error: {key}: {str(cause).splitlines()[0]}"
    return f"error: {error}"
