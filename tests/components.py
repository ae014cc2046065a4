"""Norms and models as the files of `configs/` say, with changes."""

from pathlib import Path

import jax.numpy as jnp
from omegaconf import OmegaConf

from experiments.config import component
from experiments.norms.base import Context, Placement, Scope

CONFIGS = Path(__file__).parent.parent / "configs"
TINY = {
    "mlp": {"hidden": [8, 8]},
    "cnn": {"channels": [4, 8]},
    "resnet": {"depth": 8, "width": 4},
    "lstm": {"hidden": 4},
    "gru": {"hidden": 4},
    "transformer": {"layers": 1, "width": 8, "heads": 2, "mlp_ratio": 2.0},
}
IMAGE = (4, 4, 1)
CLASSES = 3


def names(group):
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


PEERS = [name for name in names("norm") if name.startswith("flax_")]  # of another library
NORMS = [name for name in names("norm") if name not in PEERS]


def make(group, name, **changes):
    """Give the class of a file with its values and changes, as a run does."""
    values = OmegaConf.to_container(OmegaConf.load(CONFIGS / group / f"{name}.yaml"))
    return component(group, {**values, **changes})


def norm(name, **changes):
    return make("norm", name, **changes)()


def placement(name, *, scope=None, total_steps=100, dtype=jnp.float32, step=None, **changes):
    context = Context(scope or Scope(), total_steps, dtype, step)
    return Placement(norm(name, **changes), context)


def model(name, place=None, **changes):
    """Give a tiny model with a normalization, none by default."""
    place = place or placement("none")
    partial = make("model", name, **{**TINY[name], **changes})
    return partial(norm=place, num_classes=CLASSES, dtype=place.context.dtype)
