"""No option is ignored: each, changed alone, changes the output, the state, or is an error."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import NORMS, STATEFUL, every_norm, fresh, normals, parameters

pytestmark = pytest.mark.core

SHAPE = (4, 4, 4)

CHANGES = {
    "train": [False],
    "momentum": [0.5, None],
    "epsilon": [0.5],
    "channel_axis": [1, (1, 2)],
    "where": [np.array([True, False, True, True])[:, None, None], np.zeros((), bool)],
    "axis_name": ["devices", ("devices", "more")],
    "axis_index_groups": [[[0]]],
    "skip_nonfinite": [True],
    "ghost_size": [1, 2],
    "num_ghosts": [1, 4],
    "r_max": [1.1, lambda step: jnp.float32(1.2)],
    "d_max": [0.1, lambda step: jnp.float32(0.2)],
    "reduction_axes": [(0, 2), 0],
    "feature_axes": [1, 0],
    "num_groups": [1, 4],
    "group_size": [1, 2],
    "scale_offset": [1.0],
    "segment_ids": [np.array([0, 1, 0, 1])],
    "num_segments": [2],
}
DEFAULTS = {
    "train": inspect.Parameter.empty,
    "momentum": 0.99,
    "channel_axis": -1,
    "where": None,
    "axis_name": None,
    "axis_index_groups": None,
    "skip_nonfinite": False,
    "ghost_size": None,
    "num_ghosts": None,
    "feature_axes": -1,
    "group_size": None,
    "scale_offset": 0.0,
    "segment_ids": None,
    "num_segments": None,
}
OPTIONS = {
    name: [
        option
        for option, parameter in inspect.signature(norm.function).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    for name, norm in NORMS.items()
}
SHARED = {"epsilon", "where", "axis_name", "axis_index_groups"}
MOVING = {"train", "momentum", "channel_axis", "skip_nonfinite"} | SHARED
SEGMENTS = {"segment_ids", "num_segments"}
OWN = {
    "batch": set(),
    "ghost": {"ghost_size", "num_ghosts"},
    "renorm": {"r_max", "d_max"},
    "layer": {"reduction_axes", "feature_axes"} | SEGMENTS,
    "rms": {"reduction_axes", "feature_axes", "scale_offset"} | SEGMENTS,
    "group": {"num_groups", "group_size", "channel_axis", "reduction_axes"} | SEGMENTS,
    "instance": {"channel_axis"} | SEGMENTS,
}


def own_options(name):
    """Give the options that no other has: of the table, else those of the oracle."""
    parameters = inspect.signature(NORMS[name].oracle).parameters.values()
    return OWN.get(name, {one.name for one in parameters if one.kind is one.KEYWORD_ONLY})


PROMISED = {
    name: (MOVING if name in STATEFUL else SHARED) | own_options(name) for name in every_norm
}


@functools.cache
def unchanged(name, **options):
    """Give what a call without a change comes to."""
    return outcome(name, **options)


def outcome(name, **changed):
    """Give what a call comes to, as something that can be compared: bytes, or an error."""
    x = normals(*SHAPE, mean=np.arange(4) + 2.0, std=3.0)
    if changed.get("skip_nonfinite") is not None:
        x[0, 0, 0] = np.nan
    stats = (fresh(name, 4),) if name in STATEFUL else ()
    args = parameters(4)[: 2 if NORMS[name].has_bias else 1]
    try:
        result = NORMS[name].function(x, *stats, *args, **{**NORMS[name].options, **changed})
    except (ValueError, TypeError) as error:
        return type(error), str(error)
    leaves, structure = jax.tree.flatten(result)
    return structure, [(leaf.dtype, leaf.shape, np.asarray(leaf).tobytes()) for leaf in leaves]


def alone():
    """Every option of every function with every change to it."""
    for name, options in OPTIONS.items():
        for option in options:
            for position, value in enumerate(CHANGES[option]):
                yield pytest.param(name, option, value, id=f"{name}-{option}-{position}")


@pytest.mark.parametrize(("name", "option", "value"), list(alone()))
def test_every_option_alone_changes_something(name, option, value):
    base = {"skip_nonfinite": False} if option == "skip_nonfinite" else {}
    assert outcome(name, **{option: value}) != unchanged(name, **base)


@pytest.mark.parametrize("name", every_norm)
def test_every_promised_option_is_there_and_has_a_change(name):
    assert set(OPTIONS[name]) == PROMISED[name]
    assert set(OPTIONS[name]) <= set(CHANGES)


@pytest.mark.parametrize("name", every_norm)
def test_the_defaults_are_those_of_the_design(name):
    defaults = {**DEFAULTS, "epsilon": 1e-5 if name in STATEFUL else 1e-6}
    defaults["reduction_axes"] = None if name == "group" else -1
    defaults["num_groups"] = 32 if name == "group" else None
    signature = inspect.signature(NORMS[name].function)
    for option in set(OPTIONS[name]) - {"r_max", "d_max"}:
        assert signature.parameters[option].default == defaults[option], option
    for parameter in {"scale", "bias"} - (set() if NORMS[name].has_bias else {"bias"}):
        assert signature.parameters[parameter].default is None


@pytest.mark.parametrize("name", every_norm)
def test_what_is_read_of_a_function_is_its_own(name):
    function = NORMS[name].function
    defaults = {
        key: parameter.default
        for key, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        and parameter.default is not inspect.Parameter.empty
    }
    assert function.__kwdefaults__ == defaults
    assert function.__module__ in ("jaxnorm.batch", "jaxnorm.sample")
    assert function.__doc__


PARAMETERS = [(name, "scale") for name in every_norm]
PARAMETERS += [(name, "bias") for name in every_norm if NORMS[name].has_bias]


@pytest.mark.parametrize(("name", "parameter"), PARAMETERS)
def test_scale_and_bias_change_the_output(name, parameter):
    function, x = NORMS[name].function, normals(*SHAPE)
    args = (x, fresh(name, 4)) if name in STATEFUL else (x,)
    options = NORMS[name].options
    plain = jax.tree.leaves(function(*args, **options))[0]
    changed = jax.tree.leaves(function(*args, **options, **{parameter: parameters(4)[0]}))[0]
    assert not np.array_equal(plain, changed)
