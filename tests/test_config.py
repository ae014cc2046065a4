"""Configurations compose to checked types; what cannot be right is told with the choices."""

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
from components import PEERS
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from runs_of import replaced

from experiments.config import (
    COMPONENTS,
    GROUPS,
    StudyConfig,
    component,
    register_schemas,
)
from experiments.errors import ConfigError
from experiments.launch import study
from experiments.launch.study import CONFIG_DIR, CONFIG_NAME, explain, grid, to_config
from experiments.launch.validation import validate_devices
from experiments.reports.results import values_of
from experiments.runs.directory import run_directory
from experiments.training.parallel import devices

README = Path(__file__).parent.parent / "README.md"


@pytest.fixture(autouse=True, scope="module")
def hydra():
    register_schemas()
    with initialize_config_dir(version_base="1.3", config_dir=CONFIG_DIR):
        yield


def choices(group):
    return {path.stem for path in (Path(CONFIG_DIR) / group).glob("*.yaml")}


def _composed(*overrides):
    """The configuration as composed, whatever it is worth."""
    return [to_config(compose(CONFIG_NAME, list(overrides)))]


def message(*overrides):
    with pytest.raises((HydraException, ConfigError)) as caught:
        grid(overrides)
    return explain(caught.value)


NORMS = sorted(choices("norm"))


def test_every_choice_has_its_type():
    for group, types in GROUPS.items():
        assert choices(group) == set(types)


COMPONENT_CHOICES = {group: sorted(choices(group)) for group in COMPONENTS}
NEEDED_OF_COMPONENTS = {"idx_images": "data.folder=/nowhere"}


@pytest.mark.parametrize("row", range(max(map(len, COMPONENT_CHOICES.values()))))
def test_every_file_names_a_class_and_gives_what_it_takes(row):
    """One file of every group at a time, those of the smaller groups several times."""
    chosen = {group: names[row % len(names)] for group, names in COMPONENT_CHOICES.items()}
    needed = [
        NEEDED_OF_COMPONENTS[name] for name in chosen.values() if name in NEEDED_OF_COMPONENTS
    ]
    [config] = _composed(*(f"{group}={name}" for group, name in chosen.items()), *needed)
    for group, name in chosen.items():
        values = getattr(config, group)
        assert values["name"] == name
        assert component(group, values).func.__name__ == values["_target_"].rpartition(".")[2]


CHOICES = [(group, choice) for group, types in GROUPS.items() for choice in types]
NEEDED = {"manual": ("coordinator=localhost:1234", "processes=2", "index=1")}


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes(group, choice):
    needed = [f"{group}.{value}" for value in NEEDED.get(choice, ())]
    if choice == "ray" and not find_spec("ray"):
        assert "launcher=ray needs packages" in message("launcher=ray")
        return
    [config] = grid([f"{group}={choice}", *needed])
    assert type(getattr(config, group)) is GROUPS[group][choice]


@pytest.mark.long
def test_the_study_is_a_grid_of_different_runs():
    configs = grid(["study=norms"])
    assert {config.norm["name"] for config in configs} == set(NORMS) - {
        "noisy_batch",
        "online",
        *PEERS,
    }
    assert len({config.batch_size for config in configs}) == 2
    assert len({run_directory(config) for config in configs}) == len(configs) == 16
    assert {config.seeds for config in configs} == {5}


@pytest.mark.parametrize(
    "changes",
    [
        {"target_of": "fitted_loss"},
        {"fitted": True},
        {"gradients": True},
        {"timed_steps": 9},
        {"step_memory": True},
        {"model": {"residual": True}},
        {"model": {"depth": 2}},
    ],
    ids=str,
)
def test_later_keys_are_in_the_name_of_a_run_where_they_say_something(changes):
    [config] = _composed("model=mlp", "model.hidden=[8]", "output=runs")
    assert run_directory(config).name == "digits-mlp-batch-batch16-8d58a45a"
    changed = replaced(config, **changes)
    assert run_directory(changed) != run_directory(config)
    assert values_of(config).keys() == values_of(changed).keys()


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ("target_of=loss", "target_of is 'loss'; the choices are validation_accuracy, fitted_loss"),
        ("target_of=fitted_loss", "target_of is 'fitted_loss', but target is null; give the loss"),
        ("target_of=fitted_loss target=0", "target is 0.0; give a positive number"),
    ],
)
def test_a_target_fits_what_it_is_of(overrides, told):
    assert told in message(*overrides.split())
    assert grid(["target_of=fitted_loss", "target=1.5"])


def test_gradients_need_layers_in_a_row():
    assert "gradients compares the first and the last layer" in message(
        "model=lstm", "gradients=true"
    )


DOCUMENTS = (README, README.parent / "docs" / "experiments.md")
COMMANDS = [
    command
    for document in DOCUMENTS
    for command in re.findall(
        r"^    python -m experiments\.train\b(.*?)(?: +#.*| &)?$", document.read_text(), re.M
    )
]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_documentation_compose(command):
    arguments = [argument for argument in shlex.split(command) if argument != "--multirun"]
    configs = study.composed(arguments)
    assert (len(configs) > 1) == ("--multirun" in command)


def test_the_study_of_the_documentation_has_the_keys_there_are():
    [text] = re.findall(r"^```yaml\n(.*?)^```", DOCUMENTS[1].read_text(), re.M | re.S)
    written = OmegaConf.create(text)
    OmegaConf.merge(OmegaConf.structured(StudyConfig), written.study)
    assert set(written.hydra.sweeper.params) == {written.study.x, written.study.series}


def test_a_sweep_is_narrowed_on_the_command_line():
    configs = grid(["study=norms", "norm=layer,rms", "batch_size=32", "seeds=2"])
    assert [(c.norm["name"], c.batch_size, c.seeds) for c in configs] == [
        ("layer", 32, 2),
        ("rms", 32, 2),
    ]


MANUAL = ("distributed=manual", *(f"distributed.{value}" for value in NEEDED["manual"]))


@pytest.mark.parametrize(
    ("overrides", "fragments"),
    [
        (["batchsize=8"], ["no key 'batchsize'", "accumulate, batch_size, checkpoint_every, data"]),
        (["norm.groups=4", "norm=group"], ["no key 'groups' in norm", "epsilon, name, num_groups"]),
        (["norm=layer", "norm.momentum=0.9"], ["no key 'momentum' in norm", "epsilon, name"]),
        (["norm=grup"], ["norm has no choice 'grup'", "flax_rms, ghost_batch, group"]),
        (["study=norm"], ["study has no choice 'norm'", "norms"]),
        (["epochs=many"], ["epochs", "'many'", "Integer"]),
        (["epochs=2.5"], ["epochs", "'2.5'", "Integer"]),
        (["+dropout=0.1"], ["'+dropout=0.1'", "key=value"]),
        (["~epochs"], ["'~epochs'", "key=value"]),
        (["norm.name=layer"], ["norm.name is 'layer'", "norms.batch.BatchNorm", "instance"]),
        (["data.name=digit"], ["data.name is 'digit'", "|digits|"]),
        (["sync.name=local"], ["sync.name is 'local'", "sync=global"]),
        (["norm.momentum=much"], ["norm.momentum is 'much'", "Float"]),
        (["model.channels=8"], ["model.channels is 8", "list"]),
        (["evaluate_every=often"], ["evaluate_every is 'often'", "epoch, or null to evaluate"]),
        (["norm=batch_renorm", "accumulate=2"], ["accumulate is 2", "norm=batch_renorm"]),
        (["norm.momentum=null", "accumulate=2"], ["accumulate is 2", "norm.momentum a number"]),
        (
            ["norm=ghost_batch", "accumulate=4"],
            ["accumulate is 4", "multiple of 8", "batch_size that is a multiple of 32"],
        ),
        (["norm=flax_batch", "accumulate=2"], ["accumulate is 2", "norm=flax_batch"]),
        (["norm=flax_batch", "parallel=pmap"], ["parallel=pmap", "parallel=jit or single"]),
        (["norm=flax_batch", "sync=local"], ["sync=local", "norm=flax_batch", "sync=global"]),
        (["norm=flax_batch", "norm.momentum=2"], ["norm.momentum is 2", "from 0 to 1"]),
        (["norm=instance", "model=mlp"], ["instance", "mlp"]),
        (["norm=layer", "model=mlp", "model.hidden=[1]"], ["norm=layer", "one value in every"]),
        (["data.lengths=inked"], ["data.lengths", "model=cnn", "lstm"]),
        (["data=glosses"], ["data=glosses has words", "model=cnn", "lstm, gru or transformer"]),
        (
            ["data=japanese_vowels", "model=mlp"],
            ["japanese_vowels has sequences of unequal length", "model=mlp", "lstm, gru or trans"],
        ),
        (["data=idx_images", "data.folder=/nowhere"], ["/nowhere"]),
        (["data=idx_images"], ["data.folder", "key=value"]),
        (["timed_steps=9", "seeds_together=true"], ["timed_steps", "seeds_together is true"]),
        (["parallel.virtual_devices=4"], ["virtual_devices is 4", "started with 8", "or null"]),
        ([*MANUAL, "parallel.virtual_devices=8"], ["virtual_devices is 8", "distributed=off"]),
        (["batch_size=1294"], ["batch_size is 1294", "digits has 1293", "1 to 1293"]),
        ([f"output={__file__}/runs"], ["output is ", f"but {__file__} is a file"]),
        (["model.channels=[]"], ["model.channels is empty"]),
        (["model.channels=[8,0]"], ["model.channels", "is 0"]),
        (
            ["norm=instance", "model.channels=[8,8,8,8]"],
            ["model.channels has 4 layers", "at most 3"],
        ),
        (["optimizer.learning_rate=nan"], ["optimizer.learning_rate is nan", "positive"]),
        (["optimizer=adam", "optimizer.b2=2"], ["optimizer.b2 is 2.0", "below 1"]),
        (
            ["norm=ghost_batch", "norm.ghost_size=6"],
            ["norm.ghost_size is 6", "[16]", "1, 2, 4, 8, 16"],
        ),
        (
            ["norm=group", "norm.num_groups=5"],
            ["norm.num_groups is 5", "[16, 32, 64]", "1, 2, 4, 8, 16"],
        ),
        (["norm=group", "norm.num_groups=0"], ["norm.num_groups is 0"]),
        (["norm=batch_renorm", "norm.r_max=0.5"], ["norm.r_max is 0.5", "1 or more"]),
        (["norm=batch_renorm", "norm.d_max=-1"], ["norm.d_max is -1.0", "0 or more"]),
        (["norm=batch_renorm", "norm.relax_to=0.1"], ["norm.relax_from is 0.5", "0.1", "earlier"]),
        (["norm=batch,layer", "epochs=1,0"], ["epochs is 0"]),
        (["parallel=pmapp"], ["parallel has no choice 'pmapp'", "jit, pmap, shard_map, single"]),
        (["sync=none"], ["sync has no choice 'none'", "global, group, local"]),
        (["sync.num_groups=2"], ["no key 'num_groups' in sync"]),
        (["sync=group", "sync.num_groups=0"], ["sync.num_groups is 0", "1 or more"]),
        (["norm=ghost_batch", "sync=local"], ["sync=local", "norm=ghost_batch", "sync=global"]),
        (["norm=batch_renorm", "sync=group"], ["sync=group", "norm=batch_renorm", "sync=global"]),
        (["distributed=on"], ["distributed has no choice 'on'", "auto, manual, off"]),
        (["distributed=auto", "distributed.timeout=0"], ["distributed.timeout is 0", "1 or more"]),
        (["distributed=manual"], ["distributed.coordinator, distributed.index", "key=value"]),
        (
            [*MANUAL, "distributed.coordinator=localhost"],
            ["distributed.coordinator is 'localhost'", "host and a free port"],
        ),
        ([*MANUAL, "distributed.index=2"], ["distributed.index is 2", "processes is 2", "0 to 1"]),
        ([*MANUAL, "distributed.processes=0"], ["distributed.processes is 0", "1 or more"]),
    ],
    ids=lambda value: " ".join(value) if "=" in value[0] or "~" in value[0] else "",
)
def test_what_cannot_be_right_is_told(overrides, fragments):
    told = message(*overrides)
    assert told.startswith("error: ")
    for fragment in fragments:
        assert fragment in told


# By where they are looked for: what is told there is told at once, in a line each.
OF_TRAINING = {
    "model.init_scale=0": ["model.init_scale is 0", "positive"],
    "dtype=float16": ["dtype is 'float16'", "bfloat16"],
    "steps=0": ["steps is 0", "1 or more"],
    "accumulate=0": ["accumulate is 0", "1 or more"],
    "evaluate_every=0": ["evaluate_every is 0"],
    "checkpoint_every=0": ["checkpoint_every is 0", "1 or more"],
    "keep_checkpoints=0": ["keep_checkpoints is 0", "1 or more"],
    "target=1.5": ["target is 1.5", "at most 1"],
    "epochs=0": ["epochs is 0", "1 or more"],
    "seeds=0": ["seeds is 0", "1 or more"],
    "only_seeds=[9,9]": ["only_seeds is [9, 9]", "some of the seeds 0 to", "each once, or null"],
    "steps_per_call=0": ["steps_per_call is 0", "1 or more"],
    "timed_steps=0": ["timed_steps is 0", "1 or more"],
    "parallel.virtual_devices=0": ["parallel.virtual_devices is 0", "1 or more"],
    "output=''": ["output is empty"],
}
OF_COMPONENTS = {
    "optimizer.schedule=linear": ["optimizer.schedule is 'linear'", "constant, cosine"],
    "optimizer.scaling=log": ["optimizer.scaling is 'log'", "linear, sqrt, none"],
    "optimizer.clip_norm=0": ["optimizer.clip_norm is 0", "positive"],
    "optimizer.weight_decay=-1": ["optimizer.weight_decay is -1", "0 or more"],
    "optimizer.learning_rate=0": ["optimizer.learning_rate is 0.0", "positive"],
    "optimizer.momentum=1": ["optimizer.momentum is 1.0", "below 1"],
    "optimizer.warmup=1": ["optimizer.warmup is 1.0", "below 1"],
    "norm.momentum=1.5": ["norm.momentum is 1.5", "from 0 to 1"],
    "norm.epsilon=0": ["norm.epsilon is 0.0", "positive"],
    "model.dropout=1": ["model.dropout is 1", "below 1"],
}


@pytest.mark.parametrize("problems", [OF_TRAINING, OF_COMPONENTS], ids=["training", "components"])
def test_all_problems_are_told_at_once(problems):
    told = message(*problems).splitlines()
    for override, fragments in problems.items():
        assert [line for line in told if all(each in line for each in fragments)], override
    assert len(told) == len(problems)


@pytest.mark.parametrize(
    ("overrides", "fragments"),
    [
        (["sync=group", "sync.num_groups=3"], ["sync.num_groups is 3", "8 devices", "1, 2, 4, 8"]),
        (["parallel=single", "sync=group"], ["1 devices of parallel=single", "give one of 1"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_what_cannot_be_right_on_the_devices_is_told(overrides, fragments):
    [config] = grid(overrides)
    with pytest.raises(ConfigError) as caught:
        validate_devices(config, len(devices(config.parallel)), num_processes=1)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_one_device_is_not_for_several_processes():
    [config] = grid(["parallel=single"])
    with pytest.raises(ConfigError, match=r"2 processes; give parallel=jit.*or distributed=off"):
        validate_devices(config, num_devices=1, num_processes=2)


@pytest.mark.parametrize("norm", NORMS)
def test_no_batch_size_and_number_of_devices_is_wrong(norm):
    [config] = grid([f"norm={norm}", "batch_size=16"])
    for num_devices in (1, 3, 8):
        validate_devices(config, num_devices, num_processes=1)
