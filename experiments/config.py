"""The types of the configuration. The values stand in `configs/`."""

from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore


@dataclass
class NormConfig:
    name: str


@dataclass
class NoNorm(NormConfig):
    pass


@dataclass
class RunningNorm(NormConfig):
    """What keeps running statistics; `momentum` is the weight of their old value."""

    momentum: float
    epsilon: float


@dataclass
class BatchNorm(RunningNorm):
    pass


@dataclass
class GhostBatchNorm(RunningNorm):
    ghost_size: int


@dataclass
class BatchRenorm(RunningNorm):
    """`relax_from` and `relax_to` are fractions of the run's steps."""

    r_max: float
    d_max: float
    relax_from: float
    relax_to: float


@dataclass
class SampleNorm(NormConfig):
    """What normalizes every example by itself."""

    epsilon: float


@dataclass
class LayerNorm(SampleNorm):
    pass


@dataclass
class RMSNorm(SampleNorm):
    pass


@dataclass
class GroupNorm(SampleNorm):
    num_groups: int


@dataclass
class InstanceNorm(SampleNorm):
    pass


@dataclass
class OptimizerConfig:
    """`learning_rate` is the peak at a batch size of 32, `warmup` a fraction of the steps."""

    name: str
    learning_rate: float
    warmup: float


@dataclass
class SGD(OptimizerConfig):
    momentum: float


@dataclass
class Adam(OptimizerConfig):
    b1: float
    b2: float


@dataclass
class ModelConfig:
    name: str
    channels: list[int]


@dataclass
class DataConfig:
    name: str
    directory: str


@dataclass
class ParallelConfig:
    """How a step runs on the devices."""

    name: str


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
    """Over which devices batch statistics are measured."""

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
class DistributedConfig:
    """How the processes of a run find each other."""

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
class StudyConfig:
    name: str | None = None
    question: str | None = None


@dataclass
class Config:
    """One run. `steps_per_call` and `seeds_together` follow the device where they are None."""

    data: DataConfig
    model: ModelConfig
    norm: NormConfig
    optimizer: OptimizerConfig
    parallel: ParallelConfig
    sync: SyncConfig
    distributed: DistributedConfig
    batch_size: int
    epochs: int
    seeds: int
    steps_per_call: int | None
    seeds_together: bool | None
    output: str
    study: StudyConfig = field(default_factory=StudyConfig)


NORMS: dict[str, type[NormConfig]] = {
    "none": NoNorm,
    "batch": BatchNorm,
    "ghost_batch": GhostBatchNorm,
    "batch_renorm": BatchRenorm,
    "layer": LayerNorm,
    "rms": RMSNorm,
    "group": GroupNorm,
    "instance": InstanceNorm,
}
OPTIMIZERS: dict[str, type[OptimizerConfig]] = {"sgd": SGD, "adam": Adam}
PARALLEL: dict[str, type[ParallelConfig]] = {
    "single": Single,
    "pmap": Pmap,
    "jit": Jit,
    "shard_map": ShardMap,
}
SYNC: dict[str, type[SyncConfig]] = {"local": LocalSync, "group": GroupSync, "global": GlobalSync}
DISTRIBUTED: dict[str, type[DistributedConfig]] = {
    "off": Undistributed,
    "auto": Auto,
    "manual": Manual,
}
GROUPS: dict[str, dict[str, type]] = {
    "norm": NORMS,
    "optimizer": OPTIMIZERS,
    "parallel": PARALLEL,
    "sync": SYNC,
    "distributed": DISTRIBUTED,
}


def register_schemas() -> None:
    """Make the types known to Hydra, under the names by which the files of `configs/` ask."""
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for group, types in GROUPS.items():
        for name, node in types.items():
            store.store(group=f"schema/{group}", name=name, node=node)
