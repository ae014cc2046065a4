"""Rewards are scaled by the deviation of all discounted returns, as in float64, over devices."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import chances, identical, near, normals, relative, ulp
from devices import WAYS, mapped, mesh
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxnorm as jn

pytestmark = pytest.mark.numerical

BASELINES = Path(__file__).with_name("baselines_vectors.npz")  # which baselines_vectors.py recorded
DISCOUNT = 0.9
STEPS, ENVIRONMENTS = 12, 5
update = jax.jit(
    functools.partial(jn.update_return_stats, discount=DISCOUNT), static_argnames="time_axis"
)


def episodes(*shape, mean=1.0, std=3.0):
    """Draw rewards, and where episodes end."""
    return normals(*shape, mean=mean, std=std), chances(*shape, share=0.2)


def discounted(rewards, dones, where=None, discount=DISCOUNT):
    """Give the returns of every step in float64, NaN where none was made, and those after it."""
    rewards = np.asarray(rewards, np.float64)
    made = np.ones(rewards.shape, bool) if where is None else np.broadcast_to(where, rewards.shape)
    running, returns = np.zeros(rewards.shape[1:]), np.full(rewards.shape, np.nan)
    for step in range(len(rewards)):
        now = made[step]
        running[now] = discount * running[now] + rewards[step][now]
        returns[step][now] = running[now]
        running[dones[step]] = 0
    return returns, running


def fits(actual, returns, running=None, weights=None):
    """Hold a fit to all returns in float64."""
    seen = ~np.isnan(returns)
    values, weights = (
        returns[seen],
        np.broadcast_to(1.0 if weights is None else weights, seen.sum()),
    )
    mean = np.average(values, weights=weights)
    size = np.abs(values).max()
    near(actual["count"], weights.sum(), 1e-6 * weights.sum())
    near(actual["mean"], mean, 8 * ulp(np.float32(size)))
    relative(actual["var"], np.average((values - mean) ** 2, weights=weights), 4e-6)
    near(actual["min"], values.min(), 4 * ulp(np.float32(size)))
    near(actual["max"], values.max(), 4 * ulp(np.float32(size)))
    if running is not None:
        near(actual["returns"], running, 4 * ulp(np.float32(size)))


@functools.cache
def rollout():
    """Give a rollout, which steps were made, NaN in place of the others, and the fits of a scan."""
    rewards, dones = episodes(STEPS, ENVIRONMENTS)
    where = chances(STEPS, ENVIRONMENTS, seed=1, share=0.8)
    where[0] = True
    holed = np.where(where, rewards, np.float32(np.nan))

    def step(fit, inputs):
        reward, done, where = inputs
        fit = jn.update_return_stats(fit, reward, done, discount=DISCOUNT, where=where)
        return fit, fit

    scan = jax.jit(lambda fit, inputs: jax.lax.scan(step, fit, inputs))
    every = scan(jn.init_return_stats(ENVIRONMENTS), (holed, dones, where))[1]
    return holed, dones, where, every


def at(step, fits):
    """Give one of several fits."""
    return jax.tree.map(lambda leaf: leaf[step], fits)


# Fitting


def test_a_fresh_fit_has_seen_nothing_and_changes_no_reward():
    fit = jn.init_return_stats((2, 3))
    values = {"count": 0.0, "mean": 0.0, "var": 1.0, "min": np.inf, "max": -np.inf}
    expected = {key: jnp.float32(value) for key, value in values.items()}
    identical(fit, expected | {"returns": jnp.zeros((2, 3))})
    rewards, _ = episodes(2, 3)
    identical(jn.scale_rewards(rewards, fit), jnp.asarray(rewards))


def test_a_scan_over_time_is_the_whole_in_float64_at_every_step():
    rewards, dones, where, every = rollout()
    for step in range(STEPS):
        until = slice(0, step + 1)
        fits(at(step, every), *discounted(rewards[until], dones[until], where[until]))


def test_steps_are_taken_one_by_one_or_along_an_axis_of_time():
    rewards, dones, where, every = rollout()
    expected = discounted(rewards, dones, where)
    fit = jn.init_return_stats(ENVIRONMENTS)
    fits(update(fit, rewards, dones, where=where, time_axis=0), *expected)
    turned = update(fit, rewards.T, dones.T, where=where.T, time_axis=-1)
    fits(turned, *expected)
    fits(update(at(6, every), rewards[7:], dones[7:], where=where[7:], time_axis=0), *expected)
    identical(update(fit, rewards[:0], dones[:0], time_axis=0), fit)


def test_environments_that_made_no_step_change_nothing():
    rewards, _, _, every = rollout()
    fit = at(4, every)
    unmoved = update(fit, rewards[5], False, where=np.zeros(ENVIRONMENTS, bool))
    identical(unmoved, fit)


def test_an_episode_ends_at_a_reward_that_does_not_count_too():
    rewards, dones = np.float32([[1], [1], [np.nan], [1]]), np.bool_([[0], [0], [1], [0]])
    whole = jn.update_return_stats(
        jn.init_return_stats(1),
        rewards,
        dones,
        discount=1.0,
        where=np.isfinite(rewards),
        time_axis=0,
    )
    near(whole["returns"], np.ones(1), 0)
    near(whole["mean"], np.mean([1, 2, 1]), 1e-6)
    near(whole["count"], np.float64(3), 0)


@pytest.mark.long
def test_rewards_of_any_shape_and_dtype_are_fitted_in_float32():
    rewards, dones = episodes(STEPS, 2, 3)
    half = jnp.asarray(rewards).astype(jnp.bfloat16)
    fit = jn.init_return_stats((2, 3))
    fits(update(fit, half, dones.astype(np.float32), time_axis=0), *discounted(half, dones))
    alone = jn.init_return_stats(())
    rewards, dones = rewards[:, 0, :1], dones[:, 0, :1]
    for reward, done in zip(rewards[:, 0], dones[:, 0], strict=True):
        alone = update(alone, reward, done)
    returns, running = discounted(rewards, dones)
    fits(alone, returns, running[0])


@pytest.mark.parametrize("mean", [1e3, 1e5])
def test_a_mean_far_above_the_deviation_does_not_hide_it(mean):
    rewards, _ = episodes(STEPS, ENVIRONMENTS, mean=mean)
    dones = np.ones(rewards.shape, bool)  # the returns are the rewards
    fits(update(jn.init_return_stats(ENVIRONMENTS), rewards, dones, time_axis=0), rewards * 1.0)


def test_a_fit_that_forgets_weighs_steps_by_their_age():
    rewards, dones = episodes(STEPS, ENVIRONMENTS)
    fit = jn.init_return_stats(ENVIRONMENTS)
    for reward, done in zip(rewards, dones, strict=True):
        fit = update(fit, reward, done, decay=0.5)
    weights = np.repeat(0.5 ** np.arange(STEPS)[::-1], ENVIRONMENTS)
    fits(fit, *discounted(rewards, dones), weights=weights)


def test_a_frozen_fit_is_used_and_left():
    rewards, dones, _, every = rollout()
    frozen = jn.freeze_stats(at(-1, every))
    identical(jn.update_return_stats(frozen, rewards[0], dones[0], discount=DISCOUNT), frozen)
    identical(jn.scale_rewards(rewards, frozen), jn.scale_rewards(rewards, at(-1, every)))


# Scaling


def test_rewards_are_divided_clipped_and_come_back():
    rewards, dones, where, every = rollout()
    returns, _ = discounted(rewards, dones, where)
    deviation = np.sqrt(np.nanvar(returns) + 0.5)
    fit, rewards = at(-1, every), np.nan_to_num(rewards)
    y = jn.scale_rewards(rewards, fit, epsilon=0.5)
    relative(y[where], (rewards / deviation)[where], 4e-6)
    back = jn.scale_rewards(y, fit, epsilon=0.5, invert=True)
    near(back, rewards, 2 * ulp(np.abs(rewards).max()))
    bounded = jn.scale_rewards(rewards, fit, epsilon=0.5, clip=0.3)
    near(bounded, np.clip(y, -0.3, 0.3), 0)
    assert float(np.abs(y).max()) > 0.3
    half = jn.scale_rewards(jnp.asarray(rewards).astype(jnp.bfloat16), fit)
    assert half.dtype == jnp.bfloat16


def test_equal_returns_leave_rewards_as_they_are():
    """Where peers divide by the root of epsilon, or nearly so."""
    reward, fit = np.full(ENVIRONMENTS, 0.1, np.float32), jn.init_return_stats(ENVIRONMENTS)
    for _ in range(3):
        fit = update(fit, reward, True)
        near(fit["var"], 0.0, 0)
        identical(jn.scale_rewards(reward, fit), jnp.asarray(reward))


def test_no_gradient_goes_through_the_fit():
    rewards, dones, _, every = rollout()
    fit, reward = at(0, every), rewards[0]

    def through(reward):
        new = jn.update_return_stats(fit, reward, dones[0], discount=DISCOUNT)
        return jn.scale_rewards(reward, new).sum()

    deviation = np.sqrt(update(fit, reward, dones[0])["var"])
    near(jax.grad(through)(reward), np.full(ENVIRONMENTS, 1 / deviation), 1e-6)


# Beside peers


def prior(environments):
    """Give a fit that starts as those of gymnasium and stable-baselines3 do."""
    return jn.init_return_stats(environments) | {"count": jnp.float32(1e-4)}


def test_stable_baselines3s_vec_normalize_agrees_at_every_step():
    recorded = np.load(BASELINES)
    rewards, discount, bound = (
        recorded["rewards"],
        *map(float, map(recorded.get, ("discount", "bound"))),
    )

    def step(fit, inputs):
        fit = jn.update_return_stats(fit, *inputs, discount=discount)
        return fit, (fit, jn.scale_rewards(inputs[0], fit, clip=bound))

    fit = prior(rewards.shape[1])
    _, (every, y) = jax.lax.scan(step, fit, (rewards, recorded["dones"]))
    near(every["mean"], recorded["mean"], 1e-5)
    relative(every["var"], recorded["var"], 4e-6)
    near(y, recorded["scaled"], 1e-5)
    ours = jn.init_return_stats(rewards.shape[1])
    ours = jn.update_return_stats(ours, rewards, recorded["dones"], discount=discount, time_axis=0)
    fits(ours, *discounted(rewards, recorded["dones"], discount=discount))
    relative(ours["var"], recorded["var"][-1], 1e-5)  # the prior is 1e-4 of 300


def played(gymnasium, rewards, ends, truncates=False):
    """Give an environment with these rewards, whose episodes end there."""

    class Played(gymnasium.Env):
        observation_space = action_space = gymnasium.spaces.Box(-1, 1, (1,))
        at = -1

        def reset(self, **options):
            return np.zeros(1, np.float32), {}

        def step(self, action):
            self.at += 1
            end = bool(ends[self.at])
            reward = float(rewards[self.at])
            return np.zeros(1, np.float32), reward, end and not truncates, end and truncates, {}

    return Played()


def test_gymnasiums_wrapper_agrees_where_the_return_is_cut_before_the_reward():
    gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed")
    rewards, ends = (array[:, 0] for array in episodes(30, 1))
    peer = gymnasium.wrappers.NormalizeReward(played(gymnasium, rewards, ends), gamma=DISCOUNT)
    fit = prior(())
    peer.reset()
    for reward, terminated in zip(rewards, ends, strict=True):
        _, y, *_ = peer.step(peer.action_space.sample())
        cut = fit | {"returns": fit["returns"] * (1 - terminated.astype(np.float32))}
        fit = update(cut, reward, False)
        relative(fit["var"], peer.return_rms.var, 1e-5)
        near(jn.scale_rewards(reward, fit), np.float64(y), 1e-5 * abs(y))
    assert ends.any()


def test_gymnasiums_vector_wrapper_agrees_where_episodes_are_truncated():
    gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed")
    rewards, ends = episodes(20, 3)
    makes = [
        functools.partial(played, gymnasium, rewards[:, one], ends[:, one], truncates=True)
        for one in range(3)
    ]
    mode = gymnasium.vector.AutoresetMode.SAME_STEP
    peers = gymnasium.vector.SyncVectorEnv(makes, autoreset_mode=mode)
    peers = gymnasium.wrappers.vector.NormalizeReward(peers, gamma=DISCOUNT)
    peers.reset()
    fit = prior(3)
    for reward, done in zip(rewards, ends, strict=True):
        _, y, *_ = peers.step(peers.action_space.sample())
        fit = update(fit, reward, done)
        relative(fit["var"], peers.return_rms.var, 1e-5)
        relative(jn.scale_rewards(reward, fit), y, 1e-5)


# Devices


@functools.cache
def shards():
    """Give rollouts of eight devices, of which unequal numbers of environments made a step."""
    rewards, dones = episodes(8, 4, 3)
    return rewards, dones, np.arange(3) < np.array([3, 0, 1, 2, 3, 3, 1, 2])[:, None, None]


@pytest.mark.parametrize("way", WAYS)
def test_devices_share_the_moments_and_keep_their_own_returns(way):
    rewards, dones, where = shards()

    def step(rewards, dones, where):
        options = {"discount": DISCOUNT, "time_axis": 0, "axis_name": "i"}
        fit = jn.init_return_stats(3)
        return jn.update_return_stats(fit, rewards, dones, where=where, **options)

    fit = mapped(way, step)(rewards, dones, where)
    of_time = (
        np.moveaxis(array, 1, 0)
        for array in (rewards, dones, np.broadcast_to(where, rewards.shape))
    )
    returns, running = discounted(*of_time)
    for device in range(8):
        fits(at(device, fit), returns, running=None)
        near(fit["returns"][device], running[device], 4 * ulp(np.float32(30)))


@pytest.mark.long
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_environments_are_fitted_without_a_name(kind):
    grid = mesh(kind)
    rewards, dones = episodes(4, 16)

    @jax.jit
    def step(fit, rewards, dones):
        fit = jn.update_return_stats(fit, rewards, dones, discount=DISCOUNT, time_axis=0)
        return fit, jn.scale_rewards(rewards, fit)

    with jax.set_mesh(grid):
        split = [jax.device_put(one, NamedSharding(grid, P(None, "i"))) for one in (rewards, dones)]
        fit = jn.init_return_stats(16)
        fit["returns"] = jax.device_put(fit["returns"], NamedSharding(grid, P("i")))
        fit, y = step(fit, *split)
        returns, running = discounted(rewards, dones)
        fits(jax.device_get(fit), returns, running)
        relative(y, rewards / returns.std(), 4e-6)


@pytest.mark.long
def test_replicas_that_fitted_alone_are_merged_and_fits_are_batched_by_vmap():
    rewards, dones, where = shards()
    where = np.broadcast_to(where, rewards.shape)
    fresh = jn.init_return_stats(3)
    options = {"discount": DISCOUNT, "time_axis": 0}
    alone = jax.vmap(
        lambda *arrays: jn.update_return_stats(fresh, *arrays[:2], where=arrays[2], **options)
    )(rewards, dones, where)
    merged = mapped("vmap", lambda fit: jn.sync_batch_stats(fit, "i"))(alone)
    every = [discounted(rewards[one], dones[one], where[one]) for one in range(8)]
    identical(merged["returns"], alone["returns"])
    fits(at(3, merged), np.stack([returns for returns, _ in every]))
    fits(at(4, alone), *every[4])
    identical(at(1, alone), fresh)


# Errors


R, FIT = np.ones(3, np.float32), jn.init_return_stats(3)
CALL = functools.partial(jn.update_return_stats, discount=0.9)
BAD = [
    (TypeError, ["int32", "astype"], CALL, (FIT, R.astype(np.int32), False), {}),
    (TypeError, ["complex64"], CALL, (FIT, R.astype(np.complex64), False), {}),
    (
        TypeError,
        ["['a', 'b']", "update_return_stats(fit[key]"],
        CALL,
        (FIT, {"a": R, "b": R}, 0),
        {},
    ),
    (TypeError, ["exchange the two"], CALL, (R, FIT, False), {}),
    (TypeError, ["exchange the two"], jn.scale_rewards, (FIT, R), {}),
    (
        ValueError,
        ["(3,)", "`reward` has shape (4, 3)", "time_axis=0"],
        CALL,
        (FIT, np.ones((4, 3), np.float32), 0),
        {},
    ),
    (ValueError, ["init_return_stats(2)"], CALL, (FIT, R[:2], False), {}),
    (ValueError, ["(3,)", "has shape (); start"], CALL, (FIT, R, False), {"time_axis": 0}),
    (ValueError, ["time_axis=1", "range"], CALL, (FIT, R, False), {"time_axis": 1}),
    (TypeError, ["time_axis", "one int"], CALL, (FIT, R, False), {"time_axis": (0,)}),
    (ValueError, ["`done`", "(2,)"], CALL, (FIT, R, np.zeros(2)), {}),
    (ValueError, ["`where`", "(2,)"], CALL, (FIT, R, False), {"where": np.zeros(2)}),
    (TypeError, ["'mask'", "where=..."], CALL, (FIT, R, False), {"mask": R}),
    (ValueError, ["discount=1.1"], CALL, (FIT, R, False), {"discount": 1.1}),
    (ValueError, ["decay=-1"], CALL, (FIT, R, False), {"decay": -1.0}),
    (ValueError, ["'absent'", "mapped"], CALL, (FIT, R, False), {"axis_name": "absent"}),
    (ValueError, ["axis_index_groups"], CALL, (FIT, R, False), {"axis_index_groups": [[0]]}),
    (
        ValueError,
        ["['returns']", "init_return_stats(number"],
        jn.scale_rewards,
        (R, jn.init_input_stats(())),
        {},
    ),
    (ValueError, ["['count'", "'returns'"], CALL, ({"mean": R}, R, False), {}),
    (
        ValueError,
        ["returns", "bfloat16"],
        CALL,
        (FIT | {"returns": jnp.zeros(3, jnp.bfloat16)}, R, False),
        {},
    ),
    (ValueError, ["clip=0", "above 0"], jn.scale_rewards, (R, FIT), {"clip": 0}),
    (ValueError, ["clip=-1", "above 0"], jn.scale_rewards, (R, FIT), {"clip": -1}),
    (ValueError, ["clip=inf", "finite"], jn.scale_rewards, (R, FIT), {"clip": np.inf}),
    (
        ValueError,
        ["clip=2.0", "inverted"],
        jn.scale_rewards,
        (R, FIT),
        {"clip": 2.0, "invert": True},
    ),
    (TypeError, ["invert", "bool"], jn.scale_rewards, (R, FIT), {"invert": 1}),
    (ValueError, ["epsilon=-1"], jn.scale_rewards, (R, FIT), {"epsilon": -1.0}),
    (TypeError, ["dict", "ndarray"], jn.scale_rewards, (R, R), {}),
    (ValueError, ["num_environments=0"], jn.init_return_stats, (0,), {}),
    (ValueError, ["bfloat16"], jn.init_return_stats, (3,), {"dtype": jnp.bfloat16}),
]


@pytest.mark.parametrize(("error", "words", "function", "args", "options"), BAD)
def test_a_wrong_call_is_an_error_that_names_the_cure(error, words, function, args, options):
    with pytest.raises(error) as caught:
        function(*args, **options)
    assert all(word in str(caught.value) for word in words), str(caught.value)
