"""Record what stable-baselines3's VecNormalize gives: `python tests/baselines_vectors.py`.

It needs stable-baselines3, and writes baselines_vectors.npz beside itself: rewards and ends of
episodes (steps, environments), and after every step the mean and the variance of the discounted
returns and the scaled rewards.
"""

from importlib.metadata import version
from pathlib import Path

import numpy as np

PATH = Path(__file__).with_suffix(".npz")
STEPS, ENVIRONMENTS = 60, 5
DISCOUNT, BOUND = 0.9, 2.0


def stream():
    """Draw rewards, larger in every environment than in the one before, and ends of episodes."""
    draws = np.random.default_rng(0)
    rewards = draws.normal(1.0, 3.0, (STEPS, ENVIRONMENTS)) * np.arange(1, ENVIRONMENTS + 1)
    return rewards.astype(np.float32), draws.random((STEPS, ENVIRONMENTS)) < 0.15


def replayed(rewards, dones):
    """Give environments whose rewards and ends are these, whatever is done."""
    from gymnasium.spaces import Box
    from stable_baselines3.common.vec_env.base_vec_env import VecEnv

    class Replayed(VecEnv):
        def step_wait(self):
            self.at += 1
            info = [{} for _ in range(ENVIRONMENTS)]
            return np.zeros((ENVIRONMENTS, 1)), rewards[self.at], dones[self.at], info

        def reset(self):
            self.at = -1
            return np.zeros((ENVIRONMENTS, 1))

        def get_attr(self, name, indices=None):
            return [None] * ENVIRONMENTS

        def env_is_wrapped(self, wrapper, indices=None):
            return [False] * ENVIRONMENTS

        def _unused(self, *args, **options):
            raise NotImplementedError

        step_async = lambda self, actions: None  # noqa: E731
        close = set_attr = env_method = _unused

    space = Box(-1, 1, (1,))
    return Replayed(ENVIRONMENTS, space, space)


def record():
    """Give all that is written."""
    from stable_baselines3.common.vec_env.vec_normalize import VecNormalize

    rewards, dones = stream()
    peer = VecNormalize(replayed(rewards, dones), norm_obs=False, clip_reward=BOUND, gamma=DISCOUNT)
    peer.reset()
    steps = []
    for _ in rewards:
        _, scaled, _, _ = peer.step(np.zeros((ENVIRONMENTS, 1)))
        steps.append((peer.ret_rms.mean, peer.ret_rms.var, scaled))
    mean, var, scaled = (np.stack(values) for values in zip(*steps, strict=True))
    vectors = {"rewards": rewards, "dones": dones, "mean": mean, "var": var, "scaled": scaled}
    of = {"discount": DISCOUNT, "bound": BOUND, "version": version("stable-baselines3")}
    return vectors | {key: np.array(value) for key, value in of.items()}


if __name__ == "__main__":
    np.savez_compressed(PATH, **record())
