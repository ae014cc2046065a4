"""Every test runs on eight fake CPU devices, with strict dtype promotion and repeatable draws."""

import contextlib
import os
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What one process has compiled the others read, and the next run; it stays on the machine.
PROGRAMS = Path(tempfile.gettempdir(), f"jaxnorm-programs-{os.getuid()}")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(PROGRAMS))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
FLAGS = os.environ.get("XLA_FLAGS", "")
if "xla_force_host_platform_device_count" not in FLAGS:
    os.environ["XLA_FLAGS"] = f"{FLAGS} --xla_force_host_platform_device_count=8".strip()

import hypothesis  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from compiled import drop_programs, note_programs, programs  # noqa: E402
from environment import FLOAT16, NO_FLOAT16, SEED  # noqa: E402

from jaxnorm.kernels.target import as_on  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
MADE = note_programs()
TESTS = Path(__file__).parent
MOST_HELD = 400  # programs of a file, which are some 2 MB each

# HYPOTHESIS_PROFILE=thorough draws fifteen times as many cases.
QUIET = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": [hypothesis.HealthCheck.too_slow],
}
hypothesis.settings.register_profile("default", max_examples=40, **QUIET)
hypothesis.settings.register_profile("thorough", max_examples=600, **QUIET)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(scope="module", autouse=True)
def programs_of_a_file():
    """Drop what a file has compiled; what the next one shares with it is on the disk."""
    yield
    drop_programs()


@pytest.fixture(autouse=True)
def programs_of_a_test():
    """Drop them sooner where a file compiles many."""
    yield
    if programs() > MOST_HELD:
        drop_programs()


@pytest.fixture(params=["native", "cpu", "gpu", "tpu"])
def in_every_form(request):
    """Run a test as it is, and with the plain forms of each kind of device."""
    with contextlib.nullcontext() if request.param == "native" else as_on(request.param):
        yield request.param


def takes_float16(item):
    """Say whether float16 is among the parameters of a test."""
    parameters = getattr(item, "callspec", None) and list(item.callspec.params.values())
    leaves = jax.tree.leaves(parameters)
    return any(leaf is dtype for leaf in leaves for dtype in (np.float16, jnp.float16))


def pytest_addoption(parser):
    parser.addoption("--first", action="store_true", help="one case of every test, and all of core")
    parser.addoption("--fast", action="store_true", help="--first, without long tests and doctests")
    parser.addoption("--rest", action="store_true", help="all but what --fast runs")
    parser.addoption("--most-programs", type=int, help="fail where more programs are compiled")


def first_cases(items):
    """Give the first of the cases of every test, and every case of the core."""
    tests = {item.nodeid.partition("[")[0]: item for item in reversed(items)}
    first = set(tests.values())
    return [item for item in items if item in first or item.get_closest_marker("core")]


def is_fast(item):
    """Say whether --fast may take a test. It leaves out doctests and what is long or slow."""
    marked = item.get_closest_marker("long") or item.get_closest_marker("slow")
    return item.path.is_relative_to(TESTS) and not marked


@pytest.hookimpl(trylast=True)  # of those that -m leaves
def pytest_collection_modifyitems(config, items):
    """Seed what Hypothesis draws, and leave float16 out where XLA has none."""
    if config.getoption("first"):
        items[:] = first_cases(items)
    fast = first_cases([*filter(is_fast, items)])
    if config.getoption("fast"):
        items[:] = fast
    if config.getoption("rest"):
        left_out = set(fast)
        items[:] = [item for item in items if item not in left_out]
    for item in items:
        test = getattr(item, "obj", None)
        if hypothesis.is_hypothesis_test(test):
            hypothesis.seed(SEED)(test)
        if not FLOAT16 and takes_float16(item):
            item.add_marker(pytest.mark.skip(reason=NO_FLOAT16))


def pytest_collection_finish():
    """Count from here: every worker imports all files."""
    MADE.clear()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Take over what a worker of pytest-xdist has compiled."""
    MADE.extend(getattr(node, "workeroutput", {}).get("programs", []))


def pytest_sessionfinish(session):
    """Fail where more programs were compiled than --most-programs."""
    config, most = session.config, session.config.getoption("most_programs")
    if hasattr(config, "workeroutput"):
        config.workeroutput["programs"] = MADE
    elif most is not None and len(MADE) > most:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    most = config.getoption("most_programs")
    if most is not None:
        terminalreporter.write_line(f"{len(MADE)} programs were compiled, of at most {most}")
