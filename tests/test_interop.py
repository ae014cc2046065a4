"""Weights from elsewhere: evaluation as the library's own, and back as they were.

The vectors were recorded by interop_vectors.py; where a library is installed it is compared live
too.
"""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from cases import near
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st
from interop_vectors import BATCHES, LIBRARIES, PATH, drawn, record

import jaxnorm as jn
import jaxnorm.linen as jnn
from jaxnorm import interop
from jaxnorm.interop import patterns

pytestmark = [pytest.mark.numerical, pytest.mark.core]

RECORDED = dict(np.load(PATH))
PACKAGES = {"pytorch": "torch"}


def of(vectors, case):
    """Give the weights of a case, its input and its output."""
    own = {k.removeprefix(f"{case}:"): v for k, v in vectors.items() if k.startswith(f"{case}:")}
    weights = {k.removeprefix("weights:"): v for k, v in own.items() if k.startswith("weights:")}
    return weights, own["x"], own["y"]


@functools.cache
def live(library):
    """Give the vectors of a library that is installed."""
    with jax.numpy_dtype_promotion("standard"):
        return record(library)


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


def library_of(case):
    """Give the package that a case is of."""
    return PACKAGES.get(case.split()[0], case.split()[0])


def runs():
    """Give every case as it was recorded, and live where its library is installed."""
    for case in CASES:
        yield pytest.param("recorded", case, id=f"recorded-{case}")
    for case in CASES:
        missing = importlib.util.find_spec(library_of(case)) is None
        mark = pytest.mark.skipif(missing, reason=f"no {library_of(case)}")
        yield pytest.param("live", case, marks=[mark, pytest.mark.long], id=f"live-{case}")


@pytest.mark.parametrize(("source", "case"), list(runs()))
def test_evaluation_is_the_librarys(source, case):
    convert, evaluate, options = CASES[case]
    weights, x, y = of(RECORDED if source == "recorded" else live(library_of(case)), case)
    params, stats, known = convert(weights)
    assert known == options
    near(evaluate(jnp.asarray(x), params, stats, known), y, 1e-6 * np.abs(y).max())


@pytest.mark.parametrize("case", CASES)
def test_the_way_back_gives_what_was_read(case):
    weights, _, _ = of(RECORDED, case)
    back = BACK.get(case, BACK[case.split()[0]])(*CASES[case][0](weights))
    assert set(back) == set(weights)
    for key, value in weights.items():
        if key.replace("|", ".").replace("/", ".").split(".")[-1] in COMPUTED:
            np.testing.assert_allclose(back[key], value, rtol=5e-7)
        else:
            same_bits(back[key], value)


def test_each_library_was_recorded():
    cases = {key.partition(":")[0] for key in RECORDED} - {"version"}
    assert cases == set(CASES)
    versions = {key.partition(":")[2] for key in RECORDED if key.startswith("version")}
    assert versions == set(LIBRARIES)


def weights_of(draw, names, shapes):
    """Draw an array of a dtype for each name."""
    dtype = draw(st.sampled_from([np.float32, np.float64, np.float16, ml_dtypes.bfloat16]))
    shape = draw(shapes)
    values = st.integers(-1000, 1000)
    return {
        name: np.full(shape, draw(values), np.float64).astype(dtype) / dtype(7) for name in names
    }


@st.composite
def state_dicts(draw):
    """Draw the state dict of one layer of PyTorch, at a prefix, with others beside it."""
    stats = draw(st.booleans())
    params = draw(
        st.sampled_from([(), ("weight",), ("weight", "bias")] if stats else [("weight",)])
    )
    names = [*params, *(["running_mean", "running_var"] if stats else [])]
    shapes = st.tuples(st.integers(0, 5)) if stats else st.sampled_from([(1,), (3,), (2, 3)])
    own = weights_of(draw, names, shapes)
    if stats and draw(st.booleans()):
        own["num_batches_tracked"] = np.asarray(draw(st.integers(0, 2**31 - 1)), np.int64)
    prefix = draw(st.sampled_from(["", "bn1", "layer1.0.bn2"]))
    return prefix, {f"{prefix}.{name}" if prefix else name: value for name, value in own.items()}


def as_kept(name, value):
    """Give an entry as it is kept: running statistics in float32 at least."""
    of_stats = name.rpartition(".")[2].startswith(("running", "moving"))
    return value.astype(np.float32) if of_stats and value.dtype.itemsize < 4 else value


@given(state_dicts())
def test_to_of_from_is_what_it_was_pytorch(drawn):
    prefix, own = drawn
    beside = {f"{prefix}0.weight": np.ones((2, 2, 1, 1))} if prefix else {}
    params, stats, _ = interop.from_pytorch(own | beside, prefix)
    back = interop.to_pytorch(params, stats, prefix)
    assert list(back) == list(own)
    for key, value in own.items():
        same_bits(back[key], as_kept(key, value))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_statistics_of_any_library_are_read_into_float32(dtype):
    row = np.array([1.5, 3.25], dtype)
    pytorch = {"n.weight": row, "n.running_mean": row, "n.running_var": row}
    keras = {"n/gamma": row, "n/moving_mean": row, "n/moving_variance": row}
    renorm = {"n/moving_stddev": row, "n/renorm_mean": row, "n/renorm_stddev": row}
    ema = {"hidden": row, "average": row, "counter": 3}
    batch = {"weight": row, "hidden_mean": row, "hidden_var": row, "counter": 100_000}
    moving = {"weight": row, "running_mean": row, "running_var": row, "first_time": False}
    variables, _ = interop.from_pytorch_all(pytorch, {"*": "{}"})
    read = [
        (variables["params"]["n"], variables["batch_stats"]["n"]),
        interop.from_pytorch(pytorch, "n"),
        interop.from_keras(keras, "n"),
        interop.from_keras([row, row, row], center=False),
        interop.from_tensorflow_renorm(keras | renorm, "n"),
        interop.from_haiku(
            {"n": {"scale": row}}, {"n/~/mean_ema": ema, "n/~/var_ema": ema}, "n", decay_rate=0.5
        ),
        interop.from_equinox(batch),
        interop.from_equinox(moving),
    ]
    for params, stats, *_ in read:
        same_bits(params["scale"], row)
        for key in ("mean", "var"):
            same_bits(stats[key], row.astype(np.float32))
        assert {"mean", "var"} <= jn.batch_norm(np.ones((2, 2)), stats, train=True)[1].keys()
    scaled = interop.from_pytorch(pytorch, "n", values_per_channel=3)[1]["var"]
    same_bits(scaled, (row.astype(np.float64) * 2 / 3).astype(np.float32))


@given(st.data())
def test_to_of_from_is_what_it_was_keras_and_equinox(data):
    scale, center, stats = (data.draw(st.booleans()) for _ in range(3))
    if not (scale or center):
        stats = True
    moving = ["moving_mean", "moving_variance"] * stats
    names = ["gamma"] * scale + ["beta"] * center + moving
    own = weights_of(data.draw, names, st.tuples(st.integers(1, 4)))
    for read in (
        interop.from_keras({f"a/b/{name}": value for name, value in own.items()}, "a/b"),
        interop.from_keras(list(own.values()), scale=scale, center=center),
    ):
        back = interop.to_keras(*read[:2])
        assert list(back) == names
        for name in names:
            same_bits(back[name], as_kept(name, own[name]))
        theirs = interop.to_equinox(*read[:2], "n", mode="ema")
        again = interop.to_equinox(*interop.from_equinox(theirs, "n")[:2], "n", mode="ema")
        assert list(again) == list(theirs)
        for name in theirs:
            same_bits(again[name], theirs[name])


@pytest.mark.parametrize("steps", [0, 1, 7, 5000])
def test_a_debiased_average_goes_there_and_back(steps):
    stats = {"mean": np.float32([1.5, -3.0]), "var": np.float32([0.1, 1e3])}
    stats["steps"] = np.asarray(steps, np.int32)
    theirs = interop.to_haiku({}, stats, "m/norm", decay_rate=0.99, ndim=2)
    assert theirs[1]["m/norm/~/mean_ema"]["hidden"].shape == (1, 2)
    share = 1 - 0.99**steps
    near(theirs[1]["m/norm/~/var_ema"]["hidden"][0], stats["var"] * share, 1e-4)
    for back in (
        interop.from_haiku(*theirs, "m/norm", decay_rate=0.99)[1],
        interop.from_equinox(interop.to_equinox({}, stats))[1],
    ):
        assert back["steps"] == steps
        np.testing.assert_allclose(back["mean"], stats["mean"], rtol=2e-7)
        np.testing.assert_allclose(back["var"], stats["var"], rtol=2e-7)


def test_without_steps_an_average_has_nothing_left_to_debias():
    stats = jn.init_batch_stats(3)
    _, state = interop.to_haiku({}, stats)
    same_bits(state["batch_norm/~/var_ema"]["hidden"], np.ones((1, 1, 1, 3), np.float32))
    assert np.float32(0.99999) ** state["batch_norm/~/var_ema"]["counter"] == 0
    same_bits(interop.to_equinox({}, stats)["hidden_var"], stats["var"])


def test_training_goes_on_with_the_biased_variance():
    """PyTorch's next step and ours, of what its running variance converts to."""
    weights, x, _ = of(RECORDED, "pytorch batch")
    n = x.size // x.shape[1]
    params, stats, options = interop.from_pytorch(weights, "norm", values_per_channel=n)
    _, new = jn.batch_norm(x, stats, **params, **options, train=True, channel_axis=1)
    back = interop.to_pytorch(params, new, "norm", values_per_channel=n)
    batch = np.moveaxis(x, 1, -1).reshape(n, -1).astype(np.float64)
    expected = 0.9 * weights["norm.running_var"] + 0.1 * batch.var(axis=0, ddof=1)
    np.testing.assert_allclose(back["norm.running_var"], expected, rtol=1e-6)
    assert back["norm.num_batches_tracked"] == weights["norm.num_batches_tracked"] + 1
    assert back["norm.num_batches_tracked"].dtype == np.int64


@pytest.mark.long
def test_a_cumulative_average_of_batches_becomes_one_of_values():
    weights, x, _ = of(RECORDED, "pytorch cumulative")
    params, stats, options = interop.from_pytorch(
        weights, "norm", momentum=None, values_per_channel=36
    )
    assert options == {"momentum": None, "epsilon": 1e-5}
    assert stats["count"] == 3 * 36
    seen = np.concatenate(BATCHES).reshape(-1, x.shape[1]).astype(np.float64)
    near(stats["mean"], seen.mean(axis=0), 1e-6)
    _, new = jn.batch_norm(x, stats, **params, **options, train=True, channel_axis=1)
    both = np.concatenate([seen, np.moveaxis(x, 1, -1).reshape(-1, x.shape[1])])
    near(new["mean"], both.mean(axis=0), 1e-6)
    counted = {key: value for key, value in stats.items() if key != "steps"}
    back = interop.to_pytorch(params, counted, "norm", values_per_channel=36)
    same_bits(back["norm.num_batches_tracked"], np.asarray(3, np.int64))


def test_renorm_trains_on_from_what_was_read():
    weights, x, _ = of(RECORDED, "tf_keras renorm")
    params, stats, options = interop.from_tensorflow_renorm(
        weights, "norm", momentum=0.7, steps=40_000
    )
    y, new = jn.batch_renorm(x, stats, **params, **options, train=True)
    assert new["steps"] == 40_001
    mean, deviation = weights["norm/renorm_mean"], weights["norm/renorm_stddev"]
    expected = (x - mean) / deviation * weights["norm/gamma"] + weights["norm/beta"]
    near(y, expected, 1e-5)  # nothing is clipped: training is evaluation


def test_a_safetensors_file_is_a_state_dict(tmp_path):
    files = pytest.importorskip("safetensors.numpy")
    weights, _, _ = of(RECORDED, "pytorch batch")
    weights |= {f"half.{k}": np.arange(3).astype(ml_dtypes.bfloat16) for k in ("weight", "bias")}
    files.save_file(weights, tmp_path / "model.safetensors")
    read = files.load_file(tmp_path / "model.safetensors")
    back = {}
    for prefix in ("norm", "half"):
        back |= interop.to_pytorch(*interop.from_pytorch(read, prefix)[:2], prefix)
    files.save_file(back, tmp_path / "back.safetensors")
    for key, value in files.load_file(tmp_path / "back.safetensors").items():
        same_bits(value, weights[key])
    params, _, options = interop.from_pytorch(read, "half")
    assert jn.layer_norm(jnp.ones((2, 3)), **params, **options).shape == (2, 3)


class Tensor:
    """A tensor as PyTorch's of bfloat16, which refuses to become an array."""

    def __array__(self, dtype=None, copy=None):
        raise TypeError("Got unsupported ScalarType BFloat16")


ONES = np.ones(3, np.float32)
NORM = {"a.bn.weight": ONES, "a.bn.running_mean": ONES, "a.bn.running_var": ONES}
MODEL = NORM | {"a.conv.weight": np.ones((3, 3, 1, 1)), "a.conv.bias": ONES}
KERAS = {"m/bn/gamma": ONES, "m/bn/moving_mean": ONES, "m/bn/moving_variance": ONES}
STATS = {"mean": ONES, "var": ONES}
EMA = {"average": ONES, "hidden": ONES, "counter": 1}
HAIKU = {"bn/~/mean_ema": EMA, "bn/~/var_ema": EMA}
TEMPLATES = {"a.bn": "norm"}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: interop.from_pytorch(MODEL, "bn1"),
            ValueError,
            r"'bn1'.* holds nothing.* \['a.bn'\]",
        ),
        (lambda: interop.from_pytorch(MODEL, "a"), ValueError, r"'bn.weight'.* \['a.bn'\]"),
        (lambda: interop.from_pytorch(MODEL), ValueError, "is not that of a normalization"),
        (lambda: interop.from_pytorch(MODEL, 1), TypeError, "prefix must be a string, got 1"),
        (lambda: interop.from_pytorch([ONES], "a"), TypeError, "dict of named arrays, got list"),
        (
            lambda: interop.from_pytorch({"weight": ONES, "running_mean": ONES}),
            ValueError,
            r"lacks \['running_var'\]; it has",
        ),
        (
            lambda: interop.from_pytorch({"num_batches_tracked": 3}),
            ValueError,
            r"lacks \['running_mean', 'running_var'\]",
        ),
        (
            lambda: interop.from_pytorch({"weight": ONES, "bias": np.ones(2)}),
            ValueError,
            r"same shape, got {'weight': \(3,\), 'bias': \(2,\)}",
        ),
        (lambda: interop.from_pytorch({"weight": Tensor()}), TypeError, r"\.float\(\)\.numpy"),
        (lambda: interop.from_pytorch({"weight": [1, 2]}), TypeError, "floating-point .* int64"),
        (lambda: interop.from_pytorch({"weight": "w"}), TypeError, "floating-point"),
        (lambda: interop.from_pytorch(NORM, "a.bn", momentum=1.5), ValueError, "got 1.5"),
        (lambda: interop.from_pytorch(NORM, "a.bn", epsilon=-1.0), ValueError, "got -1.0"),
        (lambda: interop.from_pytorch(NORM, "a.bn", momentum="m"), TypeError, "number, got 'm'"),
        (lambda: interop.from_pytorch(NORM, "a.bn", momentum=None), ValueError, "counts batches"),
        (lambda: interop.from_pytorch(NORM, "a.bn", values_per_channel=1), ValueError, "got 1"),
        (lambda: interop.from_pytorch(NORM, "a.bn", values_per_channel=2.0), TypeError, "2.0"),
        (
            lambda: interop.from_pytorch({**STATS, "num_batches_tracked": 1.5}),
            ValueError,
            "not that of a normalization",
        ),
        (
            lambda: interop.from_pytorch(NORM | {"a.bn.num_batches_tracked": 1.5}, "a.bn"),
            TypeError,
            "one integer, got float64",
        ),
        (
            lambda: interop.from_pytorch(NORM | {"a.bn.num_batches_tracked": 2**31}, "a.bn"),
            ValueError,
            "int32 can hold, got 2147483648",
        ),
        (lambda: interop.to_pytorch({"kernel": ONES}), ValueError, r"'bias'\], got \['kernel'\]"),
        (lambda: interop.to_pytorch({}, {"mean": ONES}), ValueError, r"lack \['var'\]"),
        (lambda: interop.to_pytorch({}), ValueError, "both empty"),
        (
            lambda: interop.to_pytorch({"scale": np.ones(2)}, STATS),
            ValueError,
            r"'scale': \(2,\), 'mean': \(3,\)",
        ),
        (lambda: interop.to_pytorch({}, STATS | {"count": 6.0}), ValueError, "counts batches"),
        (lambda: interop.to_pytorch([ONES]), TypeError, "params must be a dict"),
        (lambda: interop.to_pytorch({}, {**STATS, "sum": ONES}), ValueError, r"got \['sum'\]"),
        (lambda: interop.from_pytorch_all(MODEL, {}), TypeError, "not empty"),
        (lambda: interop.from_pytorch_all(MODEL, {"a.*": "n"}), ValueError, "1 wildcards"),
        (lambda: interop.from_pytorch_all(MODEL, {"b.bn": "n"}), ValueError, r"\['a.bn'\]"),
        (
            lambda: interop.from_pytorch_all({"a.bc.weight": ONES}, {"*.*": "{}{}"}),
            ValueError,
            "maps back to",
        ),
        (
            lambda: interop.from_pytorch_all(
                {"a.weight": ONES, "b.weight": ONES}, {"a": "n", "b": "n"}
            ),
            ValueError,
            "distinct",
        ),
        (
            lambda: interop.to_pytorch_all({"params": {"n": {"scale": ONES}}}, TEMPLATES),
            ValueError,
            r"'norm'\); there are \['n'\]",
        ),
        (lambda: interop.from_keras(KERAS, "bn"), ValueError, r"\['m/bn'\]"),
        (lambda: interop.from_keras(KERAS, "m/bn", scale=False), TypeError, "leave them out"),
        (lambda: interop.from_keras([ONES] * 3), ValueError, "the list holds 3 weights"),
        (lambda: interop.from_keras([ONES] * 4, "m"), TypeError, "prefix='m'"),
        (lambda: interop.from_keras(ONES), TypeError, "got ndarray"),
        (
            lambda: interop.from_keras({"moving_mean": ONES}),
            ValueError,
            r"lacks \['moving_variance'\]",
        ),
        (
            lambda: interop.from_keras(interop.to_tensorflow_renorm({}, STATS)),
            ValueError,
            "from_tensorflow_renorm",
        ),
        (lambda: interop.from_tensorflow_renorm(KERAS, "m/bn"), ValueError, "moving_stddev"),
        (
            lambda: interop.from_tensorflow_renorm([ONES] * 7, steps=-1),
            ValueError,
            "got -1",
        ),
        (lambda: interop.to_tensorflow_renorm({"scale": ONES}, {}), ValueError, "got none"),
        (lambda: interop.to_keras({"scale": ONES}, STATS, rms=True), ValueError, "scale only"),
        (lambda: interop.from_haiku({}, HAIKU, "nb"), ValueError, r"'nb'.* \['bn'\]"),
        (
            lambda: interop.from_haiku({"l": {"w": ONES}, "n": {"scale": ONES}}, {}, "l"),
            ValueError,
            r"\['w'\]; normalizations are at \['n'\]",
        ),
        (
            lambda: interop.from_haiku({}, {"bn/~/mean_ema": EMA}, "bn"),
            ValueError,
            "var_ema",
        ),
        (
            lambda: interop.from_haiku({}, HAIKU | {"bn/~/var_ema": {**EMA, "counter": 2}}, "bn"),
            ValueError,
            "differ: {'mean': 1, 'var': 2}",
        ),
        (lambda: interop.to_haiku({}, {**STATS, "steps": 3}), ValueError, "decay_rate is needed"),
        (lambda: interop.to_haiku({}, STATS, channel_axis=4), ValueError, "out of range"),
        (
            lambda: interop.to_haiku({}, {"mean": np.ones((2, 3)), "var": np.ones((2, 3))}),
            ValueError,
            "one channel axis",
        ),
        (
            lambda: interop.from_equinox({"hidden_mean": ONES, "hidden_var": ONES}),
            ValueError,
            r"lacks \['counter'\]",
        ),
        (
            lambda: interop.from_equinox(
                {"hidden_mean": ONES, "hidden_var": ONES, "counter": 1, "first_time": False}
            ),
            ValueError,
            "give the arrays of one mode",
        ),
        (
            lambda: interop.from_equinox(
                {"running_mean": ONES, "running_var": ONES, "first_time": True}
            ),
            ValueError,
            "no step has updated",
        ),
        (lambda: interop.to_equinox({}, STATS, mode="legacy"), ValueError, "got 'legacy'"),
    ],
)
def test_what_cannot_be_right_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


OLD = {  # as in checkpoints of early BERTs
    "encoder.0.LayerNorm.gamma": np.array([2.0, 3.0], np.float32),
    "encoder.0.LayerNorm.beta": np.array([0.5, -1.0], np.float32),
    "encoder.0.dense.weight": np.ones((2, 2), np.float32),
}


def test_gamma_and_beta_of_old_checkpoints_are_the_scale_and_the_bias():
    params, stats, options = interop.from_pytorch(OLD, "encoder.0.LayerNorm", epsilon=1e-12)
    assert (stats, options) == ({}, {"epsilon": 1e-12})
    x = np.array([[1.0, 3.0]], np.float32)
    near(jn.layer_norm(x, **params, **options), [[-1.5, 2.0]], 1e-6)
    variables, rest = interop.from_pytorch_all(OLD, {"encoder.?.LayerNorm": "layer_{}/norm"})
    for key, value in variables["params"]["layer_0"]["norm"].items():
        same_bits(value, params[key])
    assert list(rest) == ["encoder.0.dense.weight"]
    back = interop.to_pytorch_all(variables, {"encoder.?.LayerNorm": "layer_{}/norm"})
    same_bits(back["encoder.0.LayerNorm.weight"], OLD["encoder.0.LayerNorm.gamma"])
    same_bits(back["encoder.0.LayerNorm.bias"], OLD["encoder.0.LayerNorm.beta"])
    alone, _, options = interop.from_pytorch({"gamma": ONES})
    assert (list(alone), options) == (["scale"], {})


def test_two_names_of_one_array_are_an_error():
    twice = {"weight": ONES, "gamma": ONES, "bias": ONES, "beta": ONES}
    for call in (
        lambda: interop.from_pytorch(twice),
        lambda: interop.from_pytorch_all({f"n.{k}": v for k, v in twice.items()}, {"n": "n"}),
    ):
        with pytest.raises(ValueError, match="both gamma and weight and both beta and bias, two"):
            call()


DENSE = {"fc.weight": np.ones((3, 2)), "fc.bias": ONES}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interop.from_pytorch(DENSE, "bn"), r"'fc' \(with weight, bias\)"),
        (lambda: interop.from_pytorch({"state_dict": MODEL}, "bn"), r"'' \(with state_dict\)"),
        (lambda: interop.from_pytorch_all(DENSE, {"*": "{}"}), r"'fc' \(with weight, bias\)"),
        (
            lambda: interop.to_pytorch_all({"params": {"fc": {"kernel": ONES}}}, {"*": "{}"}),
            r"'params' \(with fc\)",
        ),
        (lambda: interop.from_keras({"m/fc/kernel": ONES}, "bn"), r"'m/fc' \(with kernel\)"),
        (lambda: interop.from_haiku({"fc": {"w": ONES, "b": ONES}}, {}), r"'fc' \(with w, b\)"),
        (lambda: interop.from_equinox({"fc.x": ONES}, "bn"), r"'fc' \(with x\)"),
    ],
)
def test_where_there_is_no_normalization_what_there_is_is_said(call, message):
    with pytest.raises(ValueError, match=rf" \[\]; others are {message}$"):
        call()


def test_of_a_bfloat16_tensor_the_error_tells_the_cure():
    torch = pytest.importorskip("torch")
    weights = {"weight": torch.ones(2, dtype=torch.bfloat16)}
    with pytest.raises(TypeError, match=r"tensor.detach\(\).cpu\(\).float\(\).numpy\(\)"):
        interop.from_pytorch(weights)
    with pytest.raises(TypeError, match="detach"):
        interop.from_pytorch({"weight": torch.nn.Parameter(torch.ones(2))})


def test_what_is_read_is_a_copy():
    weights = {"weight": np.ones(2, np.float32)}
    params, _, _ = interop.from_pytorch(weights)
    weights["weight"][:] = 5
    assert params["scale"].tolist() == [1, 1]


def resnet():
    """Build and train a small ResNet of PyTorch."""
    torch = pytest.importorskip("torch")
    from torch import nn

    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)

        def forward(self, x):
            y = self.bn1(self.conv1(x)).relu()
            return (self.bn2(self.conv2(y)) + x).relu()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(4, 6, 3, padding=1)
            self.bn1 = nn.BatchNorm2d(6)
            self.layer1 = nn.Sequential(Block(6), Block(6))
            self.fc = nn.Linear(6, 3)

        def forward(self, x):
            x = self.layer1(self.bn1(self.conv1(x)).relu())
            return self.fc(x.mean((2, 3)))

    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.rand_like(parameter))
        for batch in BATCHES:
            net(torch.from_numpy(np.moveaxis(batch, -1, 1).copy()))
    return net.eval()


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        norm = functools.partial(jnn.BatchNorm, use_running_average=True)
        y = norm(name="norm_1")(nn.Conv(6, (3, 3), use_bias=False, name="conv_1")(x))
        y = norm(name="norm_2")(nn.Conv(6, (3, 3), use_bias=False, name="conv_2")(nn.relu(y)))
        return nn.relu(x + y)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        norm = jnn.BatchNorm(use_running_average=True, name="norm")
        x = nn.relu(norm(nn.Conv(6, (3, 3), name="conv")(x)))
        for number in range(2):
            x = Block(name=f"block_1_{number}")(x)
        return nn.Dense(3, name="head")(x.mean((1, 2)))


NAMES = {"bn1": "norm", "layer?.?.bn?": "block_{}_{}/norm_{}"}


def with_kernels(params, rest):
    """Put the kernels of the convolutions and the head among the parameters."""

    def kernel(name):
        return np.transpose(rest[f"{name}.weight"].numpy(), (2, 3, 1, 0))

    blocks = {
        f"block_1_{b}": params[f"block_1_{b}"]
        | {f"conv_{c}": {"kernel": kernel(f"layer1.{b}.conv{c}")} for c in (1, 2)}
        for b in (0, 1)
    }
    head = {"kernel": rest["fc.weight"].numpy().T, "bias": rest["fc.bias"].numpy()}
    conv = {"kernel": kernel("conv1"), "bias": rest["conv1.bias"].numpy()}
    return {**params, **blocks, "conv": conv, "head": head}


@pytest.mark.long
def test_a_whole_pytorch_model_becomes_a_linen_model_and_goes_back():
    torch = pytest.importorskip("torch")
    net = resnet()
    x = drawn(5, 2, 3, 2, 4)
    expected = net(torch.from_numpy(np.moveaxis(x, -1, 1).copy())).detach().numpy()
    state_dict = net.state_dict()
    variables, rest = interop.from_pytorch_all(state_dict, NAMES)
    assert {key.rpartition(".")[2] for key in rest} == {"weight", "bias", "num_batches_tracked"}
    shapes = jax.eval_shape(Net().init, jax.random.key(0), x)
    assert jax.tree.structure(variables["batch_stats"]) == jax.tree.structure(shapes["batch_stats"])
    whole = variables | {"params": with_kernels(variables["params"], rest)}
    y = Net().apply(whole, x)
    near(y, expected, 1e-6 * np.abs(expected).max())
    back = {**rest, **interop.to_pytorch_all(whole, NAMES)}
    assert set(back) == set(state_dict)
    for key, value in state_dict.items():
        same_bits(back[key], value.numpy())
    net.load_state_dict({key: torch.as_tensor(value) for key, value in back.items()})


def test_patterns_find_normalizations_alone_and_leave_the_rest_as_it_came():
    model = MODEL | {"b.bn.weight": 2 * ONES, "head.weight": np.ones((3, 3)), "head.bias": ONES}
    variables, rest = interop.from_pytorch_all(model, {"?.*": "{}/{}"})
    assert jax.tree.map(np.shape, variables) == {
        "params": {"a": {"bn": {"scale": (3,)}}, "b": {"bn": {"scale": (3,)}}},
        "batch_stats": {"a": {"bn": {"mean": (3,), "var": (3,)}}},
    }
    assert list(rest) == ["a.conv.weight", "a.conv.bias", "head.weight", "head.bias"]
    back = interop.to_pytorch_all(variables, {"?.*": "{}/{}"})
    assert back.keys() | rest.keys() == model.keys()


def test_frozen_statistics_go_without_their_mark():
    frozen = jn.freeze_stats({"norm": STATS})
    back = interop.to_pytorch_all({"batch_stats": frozen}, TEMPLATES)
    assert list(back) == ["a.bn.running_mean", "a.bn.running_var"]


@given(st.lists(st.text("ab01_", min_size=1, max_size=3), min_size=3, max_size=3), st.booleans())
def test_a_pattern_is_undone(parts, single):
    *parts, last = parts
    last = last[0] if single else last
    names = {"m.*.x_*.n?": "m/{}/block_{}/n{}", "m.*.x_*.n*": "m/{}/block_{}/other_{}"}
    prefix = f"m.{parts[0]}.x_{parts[1]}.n{last}"
    path = patterns.ours(prefix, names)
    end = f"n{last}" if len(last) == 1 else f"other_{last}"
    assert path == f"m/{parts[0]}/block_{parts[1]}/{end}"
    assert patterns.theirs(path, names) == prefix


def test_pytorch_loads_what_has_no_steps():
    torch = pytest.importorskip("torch")
    own = interop.to_pytorch({"scale": ONES, "bias": ONES}, STATS)
    layer = torch.nn.BatchNorm1d(3)
    layer.load_state_dict({key: torch.from_numpy(value) for key, value in own.items()})
    assert layer.running_mean.tolist() == [1, 1, 1]
