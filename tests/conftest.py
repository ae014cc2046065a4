"""Every test runs on eight fake CPU devices, with strict dtype promotion and repeatable draws."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
FLAGS = os.environ.get("XLA_FLAGS", "")
if "xla_force_host_platform_device_count" not in FLAGS:
    os.environ["XLA_FLAGS"] = f"{FLAGS} --xla_force_host_platform_device_count=8".strip()

import hypothesis  # noqa: E402
import jax  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")

# HYPOTHESIS_PROFILE=thorough draws ten times as many cases.
QUIET = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": [hypothesis.HealthCheck.too_slow],
}
hypothesis.settings.register_profile("default", max_examples=60, **QUIET)
hypothesis.settings.register_profile("thorough", max_examples=600, **QUIET)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
