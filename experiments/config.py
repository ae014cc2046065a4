"""The types of the configuration. The values are in `configs/`.

The groups `data`, `model`, `norm` and `optimizer` are open: a file of these groups names a class,
and the signature of the class is its schema. The types of the other groups are defined here.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.utils import get_object, instantiate
from hydra_zen import builds
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.errors import ConfigError

COMPONENTS = ("data", "model", "norm", "optimizer")
RUN_ARGUMENTS = ("norm", "num_classes", "vocabulary", "dtype", "parent", "name")  # set by the run
NOT_ARGUMENTS = ("name", "init_scale")  # values that are not arguments
FITTED_LOSS = "fitted_loss"
TARGETS = ("validation_accuracy", FITTED_LOSS)  # values of target_of


@dataclass
class ParallelConfig:
    """How a step runs on devices: the available ones, or virtual ones of the CPU."""

    name: str
    virtual_devices: int | None = None


@dataclass
class Single(ParallelConfig):
    pass


@dataclass
class Pmap(ParallelConfig):
    pass


@dataclass
class Jit(ParallelConfig):
    pass


@dataclass
class ShardMap(ParallelConfig):
    pass


@dataclass
class SyncConfig:
    """The devices over which batch statistics are measured."""

    name: str


@dataclass
class LocalSync(SyncConfig):
    pass


@dataclass
class GroupSync(SyncConfig):
    num_groups: int


@dataclass
class GlobalSync(SyncConfig):
    pass


@dataclass
class InferenceConfig:
    """The statistics that batch normalizations use in validation and test."""

    name: str


@dataclass
class RunningInference(InferenceConfig):
    pass


@dataclass
class BatchInference(InferenceConfig):
    batch_size: int


@dataclass
class RecomputedInference(InferenceConfig):
    examples: int


@dataclass
class DistributedConfig:
    """How the processes of a run connect."""

    name: str


@dataclass
class Undistributed(DistributedConfig):
    pass


@dataclass
class Auto(DistributedConfig):
    timeout: int


@dataclass
class Manual(Auto):
    coordinator: str
    processes: int
    index: int


@dataclass
class LauncherConfig:
    """Where the runs of a sweep are trained."""

    name: str


@dataclass
class Local(LauncherConfig):
    workers: int | None


@dataclass
class Ray(LauncherConfig):
    pass


@dataclass
class Contrast:
    """The primary contrast of a study: `metric` of the runs `a` against that of the runs `b`.

    `a` and `b` are overrides, as on the command line, that select runs of the study. `delta` is the
    difference that would matter in practice, in points of accuracy, as a ratio, or in decades. If
    `each` names keys, the arms are tuned and compared at every combination of their values, and a
    seed contributes its mean over the combinations.
    """

    a: str
    b: str
    metric: str
    direction: str
    delta: float
    unit: str
    each: list[str] = field(default_factory=list)


@dataclass
class StudyConfig:
    """The question of a study and the source of its claim.

    `x` and `series` are keys of the sweep, `without` has overrides that select the runs to leave
    out, and `fallback` has overrides that apply if Fashion-MNIST is not installed. Runs that no arm
    of the contrast selects have at most `secondary_seeds` seeds.
    """

    name: str | None = None
    question: str | None = None
    claim: str | None = None
    source: str | None = None
    expectation: str | None = None
    metric: str = "test_accuracy"
    x: str | None = None
    series: str | None = None
    without: list[str] = field(default_factory=list)
    fallback: list[str] = field(default_factory=list)
    secondary_seeds: int | None = None
    contrast: Contrast | None = None


@dataclass
class Config:
    """One run. If `steps_per_call` and `seeds_together` are None, model and device set them.

    `data`, `model`, `norm` and `optimizer` are the values of components.
    """

    data: Any
    model: Any
    norm: Any
    optimizer: Any
    parallel: ParallelConfig
    sync: SyncConfig
    inference: InferenceConfig
    distributed: DistributedConfig
    launcher: LauncherConfig
    batch_size: int
    accumulate: int
    dtype: str
    epochs: int
    steps: int | None
    seeds: int
    evaluate_every: Any  # int, "epoch" or None
    checkpoint_every: int | None
    keep_checkpoints: int
    target: float | None
    steps_per_call: int | None
    seeds_together: bool | None
    keep_stale: bool
    output: str
    target_of: str = "validation_accuracy"
    timed_steps: int | None = None
    step_memory: bool = False
    fitted: bool = False
    gradients: bool = False
    only_seeds: list[int] | None = None
    study: StudyConfig = field(default_factory=StudyConfig)

    @property
    def beside_plain(self) -> bool:
        """Whether the training step is compared with the same step without normalization."""
        return self.timed_steps is not None or self.step_memory

    @property
    def has_fitted(self) -> bool:
        """Whether the final model is evaluated on training examples."""
        return self.fitted or self.target_of == FITTED_LOSS

    @property
    def seed_numbers(self) -> list[int]:
        """The seeds to train."""
        return [*range(self.seeds)] if self.only_seeds is None else self.only_seeds


def with_seeds(config: Config, numbers: Iterable[int]) -> Config:
    """Return the configuration of a run with these seeds."""
    chosen = sorted(set(numbers))
    every = [*range(chosen[-1] + 1)]
    return replace(config, seeds=len(every), only_seeds=None if chosen == every else chosen)


GROUPS: dict[str, dict[str, type]] = {
    "parallel": {"single": Single, "pmap": Pmap, "jit": Jit, "shard_map": ShardMap},
    "sync": {"local": LocalSync, "group": GroupSync, "global": GlobalSync},
    "inference": {
        "running": RunningInference,
        "batch": BatchInference,
        "recomputed": RecomputedInference,
    },
    "distributed": {"off": Undistributed, "auto": Auto, "manual": Manual},
    "launcher": {"local": Local, "ray": Ray},
}


def register_schemas() -> None:
    """Register the types with Hydra under the names that the files of `configs/` use."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for group, types in GROUPS.items():
        for name, node in types.items():
            store.store(group=f"schema/{group}", name=name, node=node)


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values by dotted key. The name of a component has the key of its group."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        elif key == "name" and prefix:
            yield prefix.rstrip("."), value
        elif key != "_target_":
            yield prefix + key, value


_components: dict[tuple[str, str], partial[Any]] = {}  # to make one takes 20 ms


def component(group: str, values: dict[str, Any]) -> partial[Any]:
    """Return the class of a component as a partial, with the values as its arguments.

    Types such as Optional[float] and list[int] in the signature are checked; unions are not.
    Equal values give the same partial.

    Raises:
        ConfigError: a value has another type than in the signature, or arguments are missing or
            unknown.
    """
    key = (group, repr(values))
    if key not in _components:
        _components[key] = _component(group, values)
    return _components[key]


def _component(group: str, values: dict[str, Any]) -> partial[Any]:
    target = get_object(values["_target_"])
    schema = OmegaConf.structured(
        builds(target, populate_full_signature=True, zen_exclude=RUN_ARGUMENTS)
    )
    for key, value in values.items():
        if key not in NOT_ARGUMENTS:
            _set(schema, group, key, value)
    if missing := sorted(OmegaConf.missing_keys(schema)):
        raise ConfigError(
            f"{values['_target_']} needs {', '.join(missing)}; the file of "
            f"{group}={values['name']} must give them"
        )
    return instantiate(schema, _partial_=True, _convert_="all")


def _set(schema: Any, group: str, key: str, value: Any) -> None:
    try:
        schema[key] = value
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        if key not in set(schema):  # `key in schema` is False for a missing value
            keys = [name for name in schema if not name.startswith("_")]
            reason = f"{schema['_target_']} takes {', '.join(keys)}"
        raise ConfigError(f"{group}.{key} is {value!r}: {reason}") from error
