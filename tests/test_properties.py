"""Any call that can be drawn: the oracle's result, or an error that names what is wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from cases import NORMS, STATEFUL, fresh, near, normals, relative, wider
from environment import FLOAT16, generator
from hypothesis import given
from hypothesis import strategies as st

import jaxnorm as jn

pytestmark = pytest.mark.numerical

SIZES = st.integers(1, 4)
HALVES = [jnp.bfloat16, np.float16] if FLOAT16 else [jnp.bfloat16]
REAL_DTYPES = st.sampled_from([np.float32, np.float32, *HALVES])
DTYPES = REAL_DTYPES | st.just(np.complex64)
MASK_DTYPES = st.sampled_from([np.bool_, np.int32, np.float32])
SCALES = st.sampled_from([1e-3, 1.0, 1e3])


def divisors(number):
    """Draw a divisor."""
    return st.sampled_from([n for n in range(1, max(number, 1) + 1) if number % n == 0])


@st.composite
def masks(draw, shape):
    """Draw a mask of a shape and a dtype that broadcasts, or none."""
    if draw(st.booleans()):
        return None
    tail = shape[draw(st.integers(0, len(shape))) :]
    tail = tuple(draw(st.sampled_from([1, n])) for n in tail)
    seed, share = draw(st.integers(0, 99)), draw(st.sampled_from([0.0, 0.5, 0.9]))
    keep = generator(seed).random(tail) < share
    return np.where(keep, 2, 0).astype(draw(MASK_DTYPES))


@st.composite
def inputs(draw, min_ndim=1, dtypes=DTYPES):
    """Draw an input, at an epsilon that bounds what rounding can do, and its mask."""
    inner = draw(st.lists(SIZES, min_size=min_ndim - 1, max_size=3))
    shape = (draw(st.sampled_from([0, 1, 2, 4, 6])), *inner)
    std, dtype = draw(SCALES), draw(dtypes)
    if dtype == np.float16:
        std = min(std, 1.0)
    mean = draw(st.sampled_from([0.0, -3.0, 40.0])) * std
    complex_ = dtype == np.complex64
    x = normals(*shape, mean=mean, std=std, seed=draw(st.integers(0, 99)), dtype=np.complex64)
    x = (x if complex_ else x.real).astype(dtype)
    return x, draw(masks(shape)), 0.1 * std**2


def parameter(draw, shape):
    """Draw a scale or bias of the shape, or none."""
    return draw(st.sampled_from([None, normals(*shape, mean=1.0, seed=len(shape))]))


@st.composite
def sample_calls(draw):
    """Draw a valid call of a function that keeps no state."""
    name = draw(st.sampled_from(["layer", "rms", "group", "instance"]))
    x, where, epsilon = draw(inputs(min_ndim=1 if name in ("layer", "rms") else 3))
    axes = st.integers(-x.ndim, x.ndim - 1)
    options = {"epsilon": epsilon}
    if name in ("layer", "rms"):
        several = st.lists(axes, min_size=1, unique_by=lambda a: a % x.ndim).map(tuple)
        options["reduction_axes"] = draw(axes | several)
        options["feature_axes"] = features = draw(axes)
        shape = (x.shape[features],)
    else:
        options["channel_axis"] = draw(axes.filter(lambda a: a % x.ndim != 0))
        shape = (x.shape[options["channel_axis"]],)
    if name == "group":
        parts = draw(divisors(shape[0]))
        size = draw(st.booleans())
        options.update(num_groups=None if size else parts, group_size=parts if size else None)
    args = [parameter(draw, shape) for _ in range(2 if NORMS[name].has_bias else 1)]
    return name, (x, *args), where, options


@st.composite
def stateful_calls(draw):
    """Draw a valid call of a function with running statistics."""
    name = draw(st.sampled_from(STATEFUL))
    # How the corrections of complex numbers are clipped is nobody's promise.
    dtypes = REAL_DTYPES if name == "renorm" else DTYPES
    x, where, epsilon = draw(inputs(min_ndim=2, dtypes=dtypes))
    axes = st.integers(-x.ndim, x.ndim - 1)
    axis = draw(axes.filter(lambda a: a % x.ndim != 0 or (name != "ghost" and len(x) > 0)))
    channels = x.shape[axis]
    options = {"epsilon": epsilon, "channel_axis": axis, "train": draw(st.booleans())}
    options["momentum"] = draw(st.sampled_from([0.0, 0.5, 0.99, 1, None]))
    if options["momentum"] is None:  # the count is one for all channels
        where = None
    if name == "ghost":
        parts, size = draw(divisors(len(x))), draw(st.booleans())
        options.update(num_ghosts=None if size else parts, ghost_size=parts if size else None)
    if name == "renorm":
        options.update(r_max=draw(st.sampled_from([1, 1.5, 1e3])))
        options.update(d_max=draw(st.sampled_from([0, 0.5, 1e3])))
    dtype = wider(np.float32, x.dtype)
    stats = fresh(name, channels, momentum=options["momentum"], dtype=dtype)
    args = [parameter(draw, (channels,)) for _ in range(2)]
    return name, (x, stats, *args), where, options


def erased(name, x, **options):
    """Say whether a call standardizes each value by itself."""
    labels = NORMS[name].labels(x.shape, **options)
    return not NORMS[name].about_zero and x.size > 0 and len(np.unique(labels)) == x.size


def too_few(name, x, channel_axis, train, num_ghosts=None, ghost_size=None, **_):
    """Say whether a call trains on one value per channel."""
    shape = list(x.shape)
    shape[channel_axis] = 1
    if name == "ghost":
        shape[0] = ghost_size or len(x) // num_ghosts
    return train and np.prod(shape) == 1


def tolerance(x, epsilon):
    """Give what rounding to the dtype, and one ulp of the mean, can come to."""
    size = np.abs(reference.widen(x)).max(initial=0)
    rounding = {"float16": 2.0**-10, "bfloat16": 2.0**-7}.get(x.dtype.name, 0)
    slack = 2e-5 + 2.0**-22 * size / np.sqrt(epsilon)
    return lambda y: slack * 4 + rounding * np.abs(y)


def compare(name, args, where, options):
    """Hold a call to the oracle's result."""
    function, oracle = NORMS[name].function, NORMS[name].oracle
    result = jax.jit(lambda *args: function(*args, where=where, **options))(*args)
    wide = (np.asarray(reference.widen(args[0])), *args[1:])
    expected = oracle(*wide, where=where, **options)
    x, stats = args[0], None
    if name in STATEFUL:
        (result, stats), (expected, expected_stats) = result, expected
    assert (result.shape, result.dtype) == (x.shape, x.dtype)
    allowed = tolerance(x, options["epsilon"])(expected)
    near(reference.widen(result) / allowed, expected / allowed, 1.0)
    if stats is not None:
        size = np.abs(wide[0]).max(initial=1)
        for key in stats:
            near(stats[key], expected_stats[key], 2e-5 * size ** (2 if key == "var" else 1))


@pytest.mark.long
@given(sample_calls())
def test_a_call_without_state_gives_the_oracles_result_or_says_why_not(call):
    name, args, _, options = call
    if erased(name, args[0], **options):
        with pytest.raises(ValueError, match="one value"):
            compare(*call)
    else:
        compare(*call)


@given(stateful_calls())
def test_a_call_with_state_gives_the_oracles_result_or_says_why_not(call):
    name, args, _, options = call
    if too_few(name, args[0], **options):
        with pytest.raises(ValueError, match="one value"):
            compare(*call)
    else:
        compare(*call)


# Options that cannot be right, drawn into calls that are

WRONG_AXES = st.sampled_from([7, -9, 1.5, "last"])
SPOILED = {
    "epsilon": st.sampled_from([-1.0, float("nan"), float("inf"), "1e-5", None, 1j]),
    "channel_axis": WRONG_AXES | st.none(),
    "reduction_axes": WRONG_AXES | st.sampled_from([(0, 0), (0, 9), (), [0.5]]),
    "feature_axes": WRONG_AXES | st.sampled_from([(0, 0), (0, 9)]),
    "num_groups": st.sampled_from([0, -1, 5, 2.0, "2"]),
    "group_size": st.sampled_from([0, -1, 5, 2.0, "2"]),
    "num_ghosts": st.sampled_from([0, -1, 5, 2.0, "2"]),
    "ghost_size": st.sampled_from([0, -1, 5, 2.0, "2"]),
    "momentum": st.sampled_from([1.5, -1, float("nan"), "0.9", 1j, [0.9]]),
    "train": st.sampled_from([None, 0, 1, "train", np.bool_(True)]),
    "skip_nonfinite": st.sampled_from([None, 2, "no"]),
    "r_max": st.sampled_from([0.5, -1, float("nan"), "3", None]),
    "d_max": st.sampled_from([-0.5, float("nan"), "3", None]),
    "axis_name": st.sampled_from(["nowhere", ("nowhere", "never"), 3]),
    "axis_index_groups": st.sampled_from([[[0]], [[0, 1], [2, 3]], []]),
    "where": st.sampled_from([np.ones(9, bool), np.ones((2,) * 6, bool)]),
    "scale": st.sampled_from([np.ones(9, np.float32), np.ones((1, 9), np.float32)]),
    "bias": st.sampled_from([np.ones(9, np.float32), np.ones((1, 9), np.float32)]),
    "x": st.sampled_from([np.ones((4, 3, 2), np.int32), np.ones((4, 3, 2), bool)]),
    "stats": st.sampled_from([{}, {"mean": np.zeros(9, np.float32)}, fresh("renorm", 9)]),
}
NAMED = {"where": "mask|where", "x": "dtype", "stats": "running", "axis_name": "nowhere|never|3"}


@st.composite
def spoiled_calls(draw):
    """Draw a call of which one argument cannot be right."""
    name = draw(st.sampled_from(list(NORMS)))
    given_ = NORMS[name].function.__kwdefaults__.keys() | {"x", "scale", "train"}
    given_ |= {"stats", "bias"} if name in STATEFUL else set()
    given_ -= set() if name in STATEFUL else {"train"}
    option = draw(st.sampled_from(sorted(given_ & SPOILED.keys())))
    return name, option, draw(SPOILED[option])


@given(spoiled_calls())
def test_a_call_that_cannot_be_right_is_an_error_that_names_the_argument(call):
    name, option, value = call
    arguments = {"x": normals(4, 3, 2), **NORMS[name].options}
    if name in STATEFUL:
        arguments["stats"] = fresh(name, 2)
    if option in ("group_size", "ghost_size"):
        arguments["num_groups" if name == "group" else "num_ghosts"] = None
    arguments[option] = value
    with pytest.raises((ValueError, TypeError), match=NAMED.get(option, option)):
        NORMS[name].function(**arguments)


# Moments


@jax.jit
def whole_and_merged(x, keep, pieces):
    """Measure x at once, and in the pieces that the masks give."""
    parts = jax.vmap(lambda piece: jn.moments(x, 0, where=piece & keep))(pieces)
    rest = jn.merge_moments_axis(jax.tree.map(lambda leaf: leaf[1:], parts), 0)
    by_two = jn.merge_moments(jax.tree.map(lambda leaf: leaf[0], parts), rest)
    return jn.moments(x, 0, where=keep), by_two, jn.merge_moments_axis(parts, 0)


@pytest.mark.long
@given(inputs(), st.integers(0, 99))
def test_moments_and_every_way_of_merging_them_give_the_oracles(drawn, seed):
    x, where, _ = drawn
    keep, expected = reference.counted(x, where), reference.moments(x, 0, where=where)
    piece = generator(seed).integers(0, 3, x.shape)
    pieces = np.stack([piece == i for i in range(3)])
    size = np.sqrt(np.abs(expected.mean) ** 2 + expected.var)
    unit = np.where(size == 0, 1, size)
    for moments in whole_and_merged(x, keep, pieces):
        actual = reference.Moments(*map(np.asarray, moments))
        near(actual.count, expected.count, 0)
        near(actual.mean / unit, expected.mean / unit, 2e-6)
        near(np.sqrt(actual.var) / unit, np.sqrt(expected.var) / unit, 2e-4)
        clear = expected.var > 1e-2 * size**2
        relative(np.where(clear, actual.var, 0), np.where(clear, expected.var, 0), 4e-6)
