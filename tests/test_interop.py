"""Weights from elsewhere: evaluation as the library's own, and back as they were.

The vectors were recorded by interop_vectors.py; where a library is installed it is compared live
too.
"""

import importlib.util

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from cases import near
from hypothesis import given
from hypothesis import strategies as st
from interop_vectors import LIBRARIES, PATH, record

import jaxnorm as jn
import jaxnorm.linen as jnn
from jaxnorm import interop

pytestmark = pytest.mark.numerical

RECORDED = dict(np.load(PATH))
# The live runs of Haiku and Keras break the strict dtype promotion of the tests.
SOURCES = ["recorded"]
for name in LIBRARIES:
    missing = importlib.util.find_spec(name) is None
    mark = pytest.mark.skipif(missing, reason=f"no {name}")
    SOURCES.append(pytest.param(name, marks=[mark, pytest.mark.long]))


@pytest.fixture(scope="module", params=SOURCES)
def vectors(request):
    if request.param == "recorded":
        return RECORDED
    with jax.numpy_dtype_promotion("standard"):
        return record(request.param)


def of(vectors, case):
    """Give the weights of a case, its input and its output."""
    own = {k.removeprefix(f"{case}:"): v for k, v in vectors.items() if k.startswith(f"{case}:")}
    if not own:
        pytest.skip("another library is live")
    weights = {k.removeprefix("weights:"): v for k, v in own.items() if k.startswith("weights:")}
    return weights, own["x"], own["y"]


def trees(weights):
    """Give Haiku's parameters and state."""
    both = {"params": {}, "state": {}}
    for key, value in weights.items():
        tree, module, name = key.split("|")
        both[tree].setdefault(module, {})[name] = value
    return both["params"], both["state"]


def flat(params, state):
    """Give Haiku's parameters and state by "tree|module|name"."""
    return {
        f"{tree}|{module}|{name}": value
        for tree, modules in (("params", params), ("state", state))
        for module, group in modules.items()
        for name, value in group.items()
    }


def evaluated(**options):
    """Evaluate by running statistics."""
    return lambda x, params, stats, known: jn.batch_norm(
        x, stats, **params, **known, **options, train=False
    )[0]


def normalized(function, **options):
    """Apply a normalization without statistics."""
    return lambda x, params, _, known: function(x, **params, **known, **options)


def rms_then_bias(x, params, _, known):
    """Equinox's RMSNorm has a bias."""
    return jn.rms_norm(x, params["scale"], **known) + params["bias"]


def pytorch(**options):
    return lambda weights: interop.from_pytorch(weights, "norm", **options)


def keras(**options):
    return lambda weights: interop.from_keras(weights, "model/norm", **options)


def renorm(prefix):
    return lambda weights: interop.from_tensorflow_renorm(weights, prefix, momentum=0.7)


def haiku(**options):
    return lambda weights: interop.from_haiku(*trees(weights), "norm", **options)


def equinox(**options):
    return lambda weights: interop.from_equinox(weights, "norm", **options)


HW = {"reduction_axes": (2, 3), "feature_axes": (2, 3)}
LAST = {"epsilon": 1e-5}
CASES = {
    "pytorch batch": (pytorch(), evaluated(channel_axis=1), {"momentum": 0.9, "epsilon": 1e-5}),
    "pytorch batch plain": (
        pytorch(momentum=0.25),
        evaluated(channel_axis=1),
        {"momentum": 0.75, "epsilon": 1e-5},
    ),
    "pytorch cumulative": (pytorch(), evaluated(channel_axis=1), {"momentum": 0.9, **LAST}),
    "pytorch instance stats": (pytorch(), evaluated(channel_axis=1), {"momentum": 0.9, **LAST}),
    "pytorch instance": (pytorch(), normalized(jn.instance_norm, channel_axis=1), LAST),
    "pytorch group": (pytorch(), normalized(jn.group_norm, num_groups=2, channel_axis=1), LAST),
    "pytorch layer": (pytorch(), normalized(jn.layer_norm, **HW), LAST),
    "pytorch rms": (pytorch(epsilon=1e-6), normalized(jn.rms_norm), {"epsilon": 1e-6}),
    "keras batch": (keras(), evaluated(), {"momentum": 0.99, "epsilon": 1e-3}),
    "keras batch no gamma": (
        keras(momentum=0.7, epsilon=1e-5),
        evaluated(),
        {"momentum": 0.7, "epsilon": 1e-5},
    ),
    "keras layer": (keras(), normalized(jn.layer_norm), {"epsilon": 1e-3}),
    "keras group": (keras(), normalized(jn.group_norm, num_groups=2), {"epsilon": 1e-3}),
    "keras rms": (keras(), normalized(jn.rms_norm), {"epsilon": 1e-6}),
    "keras renorm": (renorm("model/norm"), evaluated(), {"momentum": 0.7, "epsilon": 1e-3}),
    "tf_keras renorm": (renorm("norm"), evaluated(), {"momentum": 0.7, "epsilon": 1e-3}),
    "haiku batch": (haiku(decay_rate=0.9), evaluated(), {"momentum": 0.9, **LAST}),
    "haiku batch plain": (haiku(), evaluated(), LAST),
    "haiku layer": (haiku(), normalized(jn.layer_norm), LAST),
    "haiku group": (haiku(), normalized(jn.group_norm, num_groups=2), LAST),
    "haiku instance": (haiku(), normalized(jn.instance_norm), LAST),
    "haiku rms": (haiku(), normalized(jn.rms_norm), LAST),
    "equinox batch": (
        equinox(momentum=0.9),
        evaluated(channel_axis=1),
        {"momentum": 0.9, "epsilon": 1e-5},
    ),
    "equinox ema": (
        equinox(momentum=0.9),
        evaluated(channel_axis=1),
        {"momentum": 0.9, "epsilon": 1e-5},
    ),
    "equinox layer": (equinox(), normalized(jn.layer_norm), LAST),
    "equinox group": (
        equinox(),
        normalized(jn.group_norm, num_groups=2, channel_axis=1),
        LAST,
    ),
    "equinox rms": (equinox(), rms_then_bias, LAST),
}
# What the recorded arrays are again after the way to ours and back.
BACK = {
    "pytorch": lambda params, stats, options: interop.to_pytorch(params, stats, "norm"),
    "keras": lambda params, stats, options: interop.to_keras(params, stats, "model/norm"),
    "keras rms": lambda params, stats, _: interop.to_keras(params, stats, "model/norm", rms=True),
    "keras renorm": lambda params, stats, _: interop.to_tensorflow_renorm(
        params, stats, "model/norm"
    ),
    "tf_keras": lambda params, stats, _: interop.to_tensorflow_renorm(params, stats, "norm"),
    "haiku": lambda params, stats, _: flat(
        *interop.to_haiku(params, stats, "norm", decay_rate=0.9)
    ),
    "haiku batch plain": lambda params, stats, _: flat(
        *interop.to_haiku(params, stats, "norm", decay_rate=0.5)
    ),
    "equinox": lambda params, stats, _: interop.to_equinox(params, stats, "norm", momentum=0.9),
    "equinox ema": lambda params, stats, _: interop.to_equinox(params, stats, "norm", mode="ema"),
}
# What is computed from what was read, and so within its rounding only.
COMPUTED = ("hidden", "moving_stddev", "renorm_mean", "renorm_stddev", "hidden_mean", "hidden_var")


def same_bits(actual, expected):
    """Hold two arrays together in dtype, shape and every bit."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    assert actual.tobytes() == expected.tobytes()


@pytest.mark.parametrize("case", CASES)
def test_evaluation_is_the_librarys(vectors, case):
    convert, evaluate, options = CASES[case]
    weights, x, y = of(vectors, case)
    params, stats, known = convert(weights)
    assert known == options
    near(evaluate(jnp.asarray(x), params, stats, known), y, 1e-6 * np.abs(y).max())


@pytest.mark.parametrize("case", CASES)
def test_the_way_back_gives_what_was_read(vectors, case):
    weights, _, _ = of(vectors, case)
    back = BACK.get(case, BACK[case.split()[0]])(*CASES[case][0](weights))
    assert set(back) == set(weights)
    for key, value in weights.items():
        name = key.replace("|", "/").replace(".", "/").split("/")[-1]
        if name in COMPUTED:
            np.testing.assert_allclose(back[key], value, rtol=5e-7)
        else:
            same_bits(back[key], value)


def test_each_library_was_recorded():
    cases = {key.partition(":")[0] for key in RECORDED} - {"version"}
    assert cases == set(CASES)
    versions = {key.partition(":")[2] for key in RECORDED if key.startswith("version")}
    assert versions == set(LIBRARIES)
