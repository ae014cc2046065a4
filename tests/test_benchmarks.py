"""The benchmarks: the README's marks, and that every library is asked for the same thing."""

from importlib.util import find_spec

import jax
import numpy as np
import pytest
from cases import normals

from benchmarks import table

PEERS = ("torch", "haiku", "equinox", "keras")


def test_a_table_replaces_what_stands_between_its_marks(tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- bench x -->\nold\n<!-- end x -->\nafter\n")
    monkeypatch.setattr(table, "ROOT", tmp_path)
    rows = table.Table("Title", ("a", "b"), [("1", "2")], "Note.").markdown()
    table.publish("x", rows)
    lines = readme.read_text().splitlines()
    shown = ["| a | b |", "| --- | --- |", "| 1 | 2 |", "", "Note."]
    assert lines == ["before", "<!-- bench x -->", *shown, "<!-- end x -->", "after"]
    with pytest.raises(ValueError, match="the mark"):
        table.publish("y", rows)


@pytest.mark.skipif(
    not all(map(find_spec, PEERS)), reason="the peers are installed by the extra bench only"
)
@pytest.mark.filterwarnings("default")  # the peers' own
@pytest.mark.parametrize("norm", ["batch", "layer", "rms", "group", "instance"])
def test_every_library_computes_the_same(norm):
    from benchmarks import precision

    x = normals(4, 3, 3, 64)
    x = x[:, 0, 0] if norm in ("layer", "rms") else x
    with jax.numpy_dtype_promotion("standard"):  # Haiku promotes
        outputs = dict(precision.outputs(norm, x))
    for library, y in outputs.items():
        np.testing.assert_allclose(y, precision.oracle(norm, x), atol=1e-5, err_msg=library)
