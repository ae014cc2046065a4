"""The counts of compiled programs for an H100 and a TPU v5e are those that are kept.

They change only with the library or with the compilers. Where a change is meant, `make bench
PART=compiled` counts everything again; the difference of counts.json shows what it brought.
"""

import pytest

pytest.importorskip("libtpu", reason="the compilers are installed by make test-compiled only")

from benchmarks.compiled import PLATFORMS
from benchmarks.compiled.cases import cases, program
from benchmarks.compiled.devices import counts
from benchmarks.compiled.kept import kept


def held(case):
    """Of ours every layer forward in float32, and with its gradients in bfloat16, unmasked."""
    if case.which == "forward":
        return case.library == "jaxnorm" and case.dtype == "f32"
    return case.library == "jaxnorm" and case.dtype == "bf16" and not case.masked


@pytest.mark.parametrize("case", list(filter(held, cases())), ids=str)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_counts_are_those_that_are_kept(platform, case):
    function, arguments = program(case, platform)
    assert counts(platform, function, *arguments) == kept()[f"{platform} {case}"]
