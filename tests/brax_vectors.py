"""Record what brax's running statistics give: `python tests/brax_vectors.py` (needs brax).

It writes brax_vectors.npz beside itself: a stream of observations (steps, environments, features),
weights of 0 and 1, and after every step the mean, the deviation and the normalized observations, in
float32, with all observations and with those of weight 1.
"""

from importlib.metadata import version
from pathlib import Path

import numpy as np

PATH = Path(__file__).with_suffix(".npz")
STEPS, ENVIRONMENTS = 40, 6
BOUND = 2.0  # of normalized observations


def stream():
    """Draw observations on four scales, of which the last is a constant."""
    draws = np.random.default_rng(0)
    x = draws.normal(size=(STEPS, ENVIRONMENTS, 4)) * [1.0, 20.0, 3e5, 0] + [0.0, -5.0, 1e5, 3.0]
    return x.astype(np.float32), (draws.random((STEPS, ENVIRONMENTS)) < 0.7).astype(np.float32)


def remembered(observations, weights):
    """Give the mean, the deviation and the normalized observations of every step."""
    import jax.numpy as jnp
    from brax.training.acme import running_statistics

    state, steps = running_statistics.init_state(jnp.zeros(observations.shape[-1])), []
    for step, x in enumerate(observations):
        weight = None if weights is None else jnp.asarray(weights[step])
        state = running_statistics.update(state, jnp.asarray(x), weights=weight)
        y = running_statistics.normalize(jnp.asarray(x), state, max_abs_value=BOUND)
        steps.append((state.mean, state.std, y))
    names = ("mean", "std", "y")
    return dict(zip(names, map(np.stack, zip(*steps, strict=True)), strict=True))


def record():
    """Give all that is written, by "all/what" and "weighted/what"."""
    x, weights = stream()
    results = {"all": remembered(x, None), "weighted": remembered(x, weights)}
    vectors = {f"{name}/{key}": v for name, result in results.items() for key, v in result.items()}
    return vectors | {"x": x, "weights": weights, "version": np.array(version("brax"))}


if __name__ == "__main__":
    np.savez_compressed(PATH, **record())
