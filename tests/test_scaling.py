"""The model of docs/scaling.md says what compiled programs do, and the page what the model says."""

from pathlib import Path

import pytest

import jaxnorm.linen as jnn
from benchmarks import collectives, scaling

PAGE = Path(__file__).parent.parent / "docs" / "scaling.md"


@pytest.mark.long
@pytest.mark.parametrize("way", collectives.WAYS)
@pytest.mark.parametrize("devices", [2, 8])
def test_the_model_has_the_collectives_of_compiled_programs(devices, way):
    forward, both = map(
        collectives.collectives, collectives.step(jnn, way, devices, channels=16, batch=16)
    )
    modelled = scaling.forward(16, devices, way), scaling.backward(16)
    for found, expected in zip((forward, both[len(forward) :]), modelled, strict=True):
        assert [(c.kind, c.nbytes) for c in found] == [(c.kind, c.nbytes) for c in expected]


def test_from_a_mebibyte_on_means_are_reduced_first():
    kinds = [[c.kind for c in scaling.forward(256, devices)] for devices in (341, 342)]
    assert kinds == [["all-gather"], ["all-reduce", "all-reduce"]]


def test_the_page_has_the_models_figures():
    assert scaling._at_scale().markdown() in PAGE.read_text()
