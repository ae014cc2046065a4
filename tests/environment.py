"""What the environment says of a run of the tests: its seed, and whether XLA has float16."""

import os

import numpy as np

# Shifts every random draw, so that no test passes by the luck of its numbers.
SEED = int(os.environ.get("JAXNORM_TEST_SEED", "0"))

# Instruction sets before F16C, on which XLA calls conversions that it does not find.
FLOAT16 = not any(
    flag in ("--xla_cpu_max_isa=SSE4_2", "--xla_cpu_max_isa=AVX")
    for flag in os.environ.get("XLA_FLAGS", "").split()
)
NO_FLOAT16 = "XLA has no float16 on this instruction set: Failed to materialize symbols"


def generator(*numbers):
    """Give a generator of random numbers, which are others for other numbers."""
    return np.random.default_rng([SEED, *numbers])
