"""What cannot be right is an error that says what was given and what would work."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import NORMS, STATEFUL, every_norm, fresh, normals

import jaxnorm as jn

pytestmark = pytest.mark.core

X = normals(6, 5, 8)
GROUPED = ("group", "instance")
# What every function asks of an argument each asks once; what else may be wrong with it is asked of
# one function that keeps statistics and of one that keeps none, by whose two paths all others go.
BOTH_PATHS = ("batch", "layer")
FLAXS_WORDS = (  # on which users' code may match
    "The channel axes cannot include the leading dimension as this is assumed to be the batch axis."
)


def call(name, x=X, scale=None, bias=None, stats=None, **options):
    """Give a function of nothing that calls a normalization with its usual options and these."""
    function, base = NORMS[name].function, NORMS[name].options
    options = {**base, **options}
    parameters = {k: v for k, v in {"scale": scale, "bias": bias}.items() if v is not None}
    if name not in STATEFUL:
        return functools.partial(function, x, **parameters, **options)
    stats = fresh(name, 8) if stats is None else stats
    return functools.partial(function, x, stats, **parameters, **options)


def wrong(names, error, words, **arguments):
    """Give the case of one wrong call to each of the functions."""
    for name in names:
        what = "-".join(f"{k}={v}" for k, v in arguments.items() if np.isscalar(v))
        yield pytest.param(
            call(name, **arguments), error, words, id=f"{name}-{what or next(iter(arguments))}"
        )


AXES = itertools.chain(
    wrong(("batch", "ghost", "renorm"), ValueError, ["channel_axis", "3"], channel_axis=3),
    wrong(GROUPED, ValueError, ["channel_axis", "-4"], channel_axis=-4),
    wrong(("ghost", *GROUPED), ValueError, ["channel_axis", "0"], channel_axis=0),
    wrong(("ghost", *GROUPED), ValueError, ["channel_axis"], channel_axis=-3),
    wrong(("batch", "group"), TypeError, ["channel_axis", "1.0"], channel_axis=1.0),
    wrong(
        ("batch", "ghost", "instance"), ValueError, ["channel_axis", "twice"], channel_axis=(1, -2)
    ),
    wrong(("batch", "instance"), ValueError, ["channel_axis", "no axis"], channel_axis=()),
    wrong(("ghost", "instance"), ValueError, ["channel_axis", "0"], channel_axis=(0, 2)),
    wrong(("group",), TypeError, ["channel_axis", "one int"], channel_axis=(1, 2)),
    wrong(("layer", "rms"), ValueError, ["reduction_axes", "5"], reduction_axes=5),
    wrong(("layer", "rms"), ValueError, ["reduction_axes"], reduction_axes=(1, -4)),
    wrong(("layer", "rms"), ValueError, ["reduction_axes", "twice"], reduction_axes=(2, -1)),
    wrong(("layer", "rms"), ValueError, ["feature_axes", "3"], feature_axes=3),
    wrong(("layer", "rms"), ValueError, ["feature_axes", "twice"], feature_axes=(1, 1)),
    wrong(("layer", "rms"), TypeError, ["reduction_axes"], reduction_axes="last"),
    wrong(("group",), ValueError, ["reduction_axes", "3"], reduction_axes=3),
    wrong(("group",), ValueError, ["reduction_axes", "twice"], reduction_axes=(-1, 2)),
    wrong(every_norm, ValueError, ["axis", "scalar", "x[None]"], x=np.float32(1.0)),
    wrong(GROUPED, ValueError, [FLAXS_WORDS], channel_axis=0),
    wrong(("ghost",), ValueError, [FLAXS_WORDS], channel_axis=0, stats=fresh("ghost", 6)),
)

SPLITS = itertools.chain(
    wrong(("group",), ValueError, ["num_groups", "3", "8"], num_groups=3),
    wrong(("group",), ValueError, ["num_groups", "32", "8"], num_groups=32),
    wrong(("group",), ValueError, ["num_groups", "0"], num_groups=0),
    wrong(("group",), ValueError, ["num_groups", "-2"], num_groups=-2),
    wrong(("group",), ValueError, ["group_size", "3", "8"], num_groups=None, group_size=3),
    wrong(("group",), ValueError, ["group_size", "0"], num_groups=None, group_size=0),
    wrong(("group",), ValueError, ["num_groups", "group_size"], num_groups=2, group_size=4),
    wrong(("group",), ValueError, ["num_groups", "group_size"], num_groups=None),
    wrong(("group",), TypeError, ["num_groups", "2.0"], num_groups=2.0),
    wrong(("ghost",), ValueError, ["num_ghosts", "4", "6"], num_ghosts=4),
    wrong(("ghost",), ValueError, ["num_ghosts", "0"], num_ghosts=0),
    wrong(("ghost",), ValueError, ["ghost_size", "5", "6"], num_ghosts=None, ghost_size=5),
    wrong(("ghost",), ValueError, ["ghost_size", "-1"], num_ghosts=None, ghost_size=-1),
    wrong(("ghost",), ValueError, ["num_ghosts", "ghost_size"], num_ghosts=2, ghost_size=3),
    wrong(("ghost",), ValueError, ["num_ghosts", "ghost_size"], num_ghosts=None),
    wrong(("ghost",), TypeError, ["ghost_size", "1.5"], num_ghosts=None, ghost_size=1.5),
)

ARRAYS = itertools.chain(
    wrong(every_norm, ValueError, ["scale", "(7,)", "(8,)"], scale=np.ones(7, np.float32)),
    wrong(BOTH_PATHS, ValueError, ["scale", "()"], scale=np.float32(1.0)),
    wrong(BOTH_PATHS, ValueError, ["scale", "(5, 8)"], scale=np.ones((5, 8), np.float32)),
    wrong(
        [n for n in every_norm if NORMS[n].has_bias],
        ValueError,
        ["bias", "(1,)", "(8,)"],
        bias=np.ones(1, np.float32),
    ),
    wrong(every_norm, ValueError, ["mask", "(6,)", "(6, 5, 8)"], where=np.ones(6, bool)),
    wrong(BOTH_PATHS, ValueError, ["mask", "(2, 6, 5, 8)"], where=np.ones((2, 6, 5, 8), bool)),
    wrong(BOTH_PATHS, ValueError, ["mask[..., None]"], where=np.ones((6, 5), bool)),
    wrong(BOTH_PATHS, ValueError, ["mask[..., None, None]"], where=np.ones(6, bool)),
    wrong(every_norm, TypeError, ["'mask'", "where=..."], mask=np.ones((6, 5, 1), bool)),
    wrong(every_norm, TypeError, ["dict", "mean", "exchange"], x=fresh("batch", 8)),
    wrong(
        BOTH_PATHS,
        TypeError,
        ["dict", "['a', 'b']", "{key: f(x[key], stats[key])", "for key in x}"],
        x={"b": X, "a": X},
    ),
    wrong(every_norm, TypeError, ["int32"], x=np.ones((6, 5, 8), np.int32)),
    wrong(BOTH_PATHS, TypeError, ["bool"], x=np.ones((6, 5, 8), bool)),
    wrong(STATEFUL, ValueError, ["(7,)", "8 channels"], stats=fresh("renorm", 7)),
    wrong(("batch",), ValueError, ["(8,)", "(5, 8)"], channel_axis=(1, 2)),
    wrong(STATEFUL, ValueError, ["mean", "var"], stats={"var": np.ones(8, np.float32)}),
    wrong(("batch",), ValueError, ["mean", "scale"], stats={"scale": np.ones(8, np.float32)}),
    wrong(("renorm",), ValueError, ["steps", "mean", "var"], stats=fresh("batch", 8)),
    wrong(
        STATEFUL,
        TypeError,
        ["mean", "array", "[0.0, 0.0]", "jnp.asarray"],
        stats={**fresh("renorm", 8), "mean": [0.0, 0.0]},
    ),
    wrong(
        STATEFUL,
        TypeError,
        ["count", "array", "3.0"],
        momentum=None,
        stats={**fresh("renorm", 8, momentum=None), "count": 3.0},
    ),
    wrong(
        STATEFUL,
        ValueError,
        ["count", "(7,)", "() or (8,)"],
        momentum=None,
        stats={**fresh("renorm", 8, momentum=None), "count": np.ones(7, np.float32)},
    ),
    wrong(
        ("renorm",),
        ValueError,
        ["steps", "(8,)", "need ()"],
        stats={**fresh("renorm", 8), "steps": np.ones(8, np.int32)},
    ),
    wrong(STATEFUL, ValueError, ["count", "mean", "var"], momentum=None, stats=fresh("renorm", 8)),
)

NUMBERS = itertools.chain(
    wrong(STATEFUL, ValueError, ["momentum", "1.5"], momentum=1.5),
    wrong(("batch",), ValueError, ["momentum", "-0.1"], momentum=-0.1),
    wrong(("batch",), ValueError, ["momentum", "nan"], momentum=float("nan")),
    wrong(("batch",), TypeError, ["momentum", "0.9"], momentum="0.9"),
    wrong(every_norm, ValueError, ["epsilon", "-1e-05"], epsilon=-1e-5),
    wrong(BOTH_PATHS, ValueError, ["epsilon", "nan"], epsilon=float("nan")),
    wrong(BOTH_PATHS, TypeError, ["epsilon", "small"], epsilon="small"),
    wrong(BOTH_PATHS, TypeError, ["epsilon"], epsilon=None),
    wrong(STATEFUL, TypeError, ["train", "1"], train=1),
    wrong(("batch",), TypeError, ["train", "None"], train=None),
    wrong(("batch",), TypeError, ["train", "yes"], train="yes"),
    wrong(STATEFUL, TypeError, ["skip_nonfinite", "no"], skip_nonfinite="no"),
    wrong(("rms",), ValueError, ["scale_offset", "1.0", "scale"], scale_offset=1.0),
    wrong(("rms",), ValueError, ["scale_offset", "inf"], scale_offset=float("inf")),
    wrong(("rms",), TypeError, ["scale_offset", "one"], scale_offset="one"),
    wrong(("renorm",), ValueError, ["r_max", "0.5"], r_max=0.5),
    wrong(("renorm",), ValueError, ["d_max", "-1.0"], d_max=-1.0),
    wrong(("renorm",), TypeError, ["r_max", "paper"], r_max="paper"),
)

TOO_FEW = itertools.chain(
    wrong(("batch", "renorm"), ValueError, ["one value", "(1, 8)"], x=normals(1, 8)),
    wrong(("batch", "renorm"), ValueError, ["one value"], x=normals(1, 1, 1, 8)),
    wrong(("ghost",), ValueError, ["one value"], x=normals(6, 8), num_ghosts=6),
)

DEVICES = itertools.chain(
    wrong(every_norm, ValueError, ["axis_index_groups", "axis_name"], axis_index_groups=[[0, 1]]),
    wrong(every_norm, ValueError, ["axis_name", "absent"], axis_name="absent"),
    wrong(BOTH_PATHS, ValueError, ["absent"], axis_name=("absent", "missing")),
    wrong(BOTH_PATHS, TypeError, ["axis_name", "['i']", "tuple", "('i', 'j')"], axis_name=["i"]),
    wrong(BOTH_PATHS, TypeError, ["axis_name", "(['i'],)"], axis_name=(["i"],)),
)

STATISTICS = [
    pytest.param(functools.partial(function, *args, **options), error, words, id=label)
    for label, error, words, function, args, options in [
        ("moments-axis", ValueError, ["axis", "3"], jn.moments, (X, 3), {}),
        ("moments-twice", ValueError, ["axis", "twice"], jn.moments, (X, (0, -3)), {}),
        (
            "moments-where",
            ValueError,
            ["mask", "(6,)"],
            jn.moments,
            (X, 0),
            {"where": np.ones(6, bool)},
        ),
        (
            "moments-mask",
            TypeError,
            ["'mask'", "where=..."],
            jn.moments,
            (X, 0),
            {"mask": np.ones(6, bool)},
        ),
        ("moments-integer", TypeError, ["int32"], jn.moments, (np.ones(3, np.int32), 0), {}),
        ("merge-axis", ValueError, ["axis", "5"], jn.merge_moments_axis, (jn.moments(X, 0), 5), {}),
        ("sync", ValueError, ["absent"], jn.sync_moments, (jn.moments(X, 0), "absent"), {}),
        ("init-width", ValueError, ["-1"], jn.init_batch_stats, (-1,), {}),
        ("init-kind", TypeError, ["8.0"], jn.init_batch_stats, (8.0,), {}),
        ("init-shape", ValueError, ["0"], jn.init_batch_stats, ((8, 0),), {}),
        (
            "init-momentum",
            ValueError,
            ["momentum", "2"],
            jn.init_batch_stats,
            (8,),
            {"momentum": 2},
        ),
        (
            "init-dtype",
            TypeError,
            ["int32", "float32"],
            jn.init_batch_stats,
            (6,),
            {"dtype": "int32"},
        ),
        ("init-renorm", ValueError, ["-1"], jn.init_renorm_stats, (-1,), {}),
    ]
]

CASES = [*AXES, *SPLITS, *ARRAYS, *NUMBERS, *TOO_FEW, *DEVICES, *STATISTICS]


@pytest.mark.parametrize(("function", "error", "words"), CASES)
def test_a_wrong_call_is_an_error_that_names_the_cure_also_under_jit(function, error, words):
    messages = []
    for attempt in (function, jax.jit(function)):
        with pytest.raises(error) as caught:
            attempt()
        assert caught.type is error
        messages.append(str(caught.value))
    for word in words:
        assert word in messages[0]
    assert messages[0] == messages[1]


@pytest.mark.parametrize("name", every_norm)
def test_wrong_arrays_are_errors_also_when_they_are_traced(name):
    args = (X, fresh(name, 8)) if name in STATEFUL else (X,)
    function, options = NORMS[name].function, NORMS[name].options
    with pytest.raises(ValueError, match=r"scale.*\(7,\)"):
        jax.jit(functools.partial(function, **options))(*args, scale=np.ones(7, np.float32))
    with pytest.raises(TypeError, match="int32"):
        jax.jit(functools.partial(function, **options))(args[0].astype(np.int32), *args[1:])


@pytest.mark.parametrize("name", STATEFUL)
def test_a_traced_train_is_an_error(name):
    def traced(train):
        return NORMS[name].function(X, fresh(name, 8), **{**NORMS[name].options, "train": train})

    with pytest.raises(TypeError, match="train"):
        jax.jit(traced)(True)


@pytest.mark.parametrize("name", STATEFUL)
def test_the_message_lists_the_statistics_that_were_found(name):
    stats = {"mean": jnp.zeros(8), "variance": jnp.ones(8)}
    with pytest.raises(ValueError, match="variance"):
        call(name, stats=stats)()


@pytest.mark.long
@pytest.mark.parametrize("name", STATEFUL)
def test_a_count_for_each_channel_is_as_good_as_one(name):
    stats = fresh(name, 8, momentum=None)
    _, each = call(name, stats={**stats, "count": jnp.zeros(8)}, momentum=None)()
    _, one = call(name, stats=stats, momentum=None)()
    np.testing.assert_array_equal(each["count"], np.full(8, 30.0))
    np.testing.assert_array_equal(each["var"], one["var"])


@pytest.mark.parametrize("name", STATEFUL)
def test_what_only_training_needs_is_no_error_in_evaluation(name):
    one = call(name, x=normals(1, 8), train=False, axis_name="absent")()
    assert one[0].shape == (1, 8)


@pytest.mark.parametrize("name", STATEFUL)
def test_an_option_that_does_not_exist_is_pythons_own_error(name):
    with pytest.raises(TypeError, match="momentun"):
        call(name, momentun=0.9)()
