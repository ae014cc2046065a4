"""The benchmarks: the README's marks, and that every library is asked for the same thing."""

from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import normals

from benchmarks import fold, resnet, sweep, table
from benchmarks.__main__ import BENCHMARKS, ON_REQUEST
from benchmarks.forms import FORMS
from benchmarks.ours import NORMS, affine, normalization
from benchmarks.timing import PASSES, floor, interleaved, passes, programs
from jaxnorm.kernels.library import HANDLERS
from jaxnorm.kernels.library import library as kernels

PEERS = ("torch", "haiku", "equinox", "keras")
with_peers = pytest.mark.skipif(
    not all(map(find_spec, PEERS)), reason="the peers are installed by the extra bench only"
)
with_kernels = pytest.mark.skipif(not kernels().loaded, reason="there are no native kernels here")


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


@pytest.mark.parametrize("part", [*BENCHMARKS, *ON_REQUEST])
def test_a_part_has_its_marks(part):
    pages = [table.ROOT / "README.md", *(table.ROOT / "docs").glob("*.md")]
    marked = [page for page in pages if f"<!-- bench {part} -->" in page.read_text()]
    assert len(marked) == 1
    assert marked[0].read_text().count(f"<!-- end {part} -->") == 1


def test_every_function_is_called_as_often_and_in_alternating_order():
    calls = []
    times = interleaved({name: lambda name=name: calls.append(name) for name in "ab"}, 3)
    assert "".join(calls) == "abab" + "ab" + "ba" + "ab"
    assert all(milliseconds >= 0 for milliseconds in times.values())


def test_the_floor_reads_and_writes_what_it_says():
    x, cotangent = normals(2, 3), normals(2, 3, seed=1)
    functions = floor(jnp.asarray(x), jnp.asarray(cotangent))
    np.testing.assert_array_equal(functions["forward"](), x + 1)
    first, second = functions["both"]()
    np.testing.assert_array_equal(first, x + 1)
    np.testing.assert_array_equal(second, x + cotangent)


@with_kernels
@pytest.mark.parametrize("norm", [*NORMS, "evaluation"])
def test_each_form_is_what_is_measured(norm):
    x, cotangent = jnp.asarray(normals(4, 3, 64)), jnp.asarray(normals(4, 3, 64, seed=1))
    apply, results = normalization(norm, 64), {}  # one function: nothing lowered is kept of it
    for name, form in FORMS.items():
        with form():
            compiled = programs(apply, affine(norm, 64), x, cotangent)
            functions = passes(apply, affine(norm, 64), x, cotangent)
        for program in compiled.values():
            assert any(f'"{h}"' in program.as_text() for h in HANDLERS) == (name == "jaxnorm")
        results[name] = functions["both"]()
        jax.tree.map(np.testing.assert_array_equal, functions["forward"]()[0], results[name][0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *results.values())


@pytest.mark.parametrize("norm", NORMS)
def test_a_size_of_the_sweep_is_about_what_it_says(norm):
    for values in sweep.SIZES:
        assert 0.9 < np.prod(sweep.shape_of(norm, values)) / values < 1.3


def test_the_sweep_shows_ratios_and_says_the_worst(monkeypatch):
    def times(norm, values, forms):
        plain = {("plain", "forward"): 4.0, ("plain", "both"): 8.0}
        return plain | {("jaxnorm", "forward"): 1.0, ("jaxnorm", "both"): values / 50}

    def native(norms, sizes, threads):
        return {(norm, s, p): s / threads for norm in norms for s in sizes for p in PASSES}

    monkeypatch.setattr(sweep, "times", times)
    monkeypatch.setattr(sweep, "native", native)
    monkeypatch.setattr(sweep.os, "cpu_count", lambda: 4)
    forms, threads = sweep.tables(["layer"], [100, 1000])
    assert forms.columns == threads.columns == ("values", "layer forward", "layer both")
    assert forms.rows == [["100", "0.25", "0.25"], ["1,000", "0.25", "2.50"]]
    assert "At worst 2.50 (layer, both, 1,000 values; asked: at most 1.10)" in forms.notes
    assert threads.rows == [["100", "4.00", "4.00"], ["1,000", "4.00", "4.00"]]


@with_kernels
@pytest.mark.long
def test_the_native_form_is_timed_in_a_process_with_so_many_threads():
    found = sweep.native(["layer", "group"], [100], 1)
    cases = [(norm, 100, which) for norm in ("layer", "group") for which in PASSES]
    assert list(found) == cases
    assert all(milliseconds > 0 for milliseconds in found.values())


@pytest.mark.long
def test_inference_is_the_same_folded(monkeypatch):
    def interleaved(functions, rounds):
        assert list(functions) == ["folded", "jaxnorm", "Flax"]
        return {"folded": 2.0, "jaxnorm": 3.0, "Flax": 5.0}

    monkeypatch.setattr(fold, "interleaved", interleaved)
    row = fold._row((2, 8, 8, 1), 1, depth=8, width=4)
    assert row == ["2", "1.50", "2.50", "2.00", "3.00", "5.00"]
    with pytest.raises(ValueError, match="logits of folded"):
        fold._check_alike({"folded": jnp.ones(2) * 1.1, "Flax": jnp.ones(2)})


@pytest.mark.long
@with_kernels
def test_a_step_is_flaxs_in_both_forms(monkeypatch):
    def interleaved(functions, rounds):
        for function in functions.values():
            function()
        return {"jaxnorm": 1.0, "plain": 2.0, "Flax": 4.0}

    monkeypatch.setattr(resnet, "interleaved", interleaved)
    monkeypatch.setattr("experiments.models.resnet.STAGES", 1)
    row = resnet._row("BatchNorm", "float32", (2, 6, 6, 1), 1, depth=4, width=4)
    assert row == ["BatchNorm", "f32", "0.25", "0.50", "1.0", "2.0", "4.0"]


def test_a_step_that_differs_is_an_error():
    state = {"params": {"kernel": jnp.ones(2)}}
    other = {"params": {"kernel": jnp.array([1.0, 1.1])}}
    loss = jnp.float32(1)
    resnet._check_alike({"plain": (loss, state), "Flax": (loss, state)}, "float32")
    with pytest.raises(ValueError, match="a step with plain differs"):
        resnet._check_alike({"plain": (loss, other), "Flax": (loss, state)}, "float32")


@with_peers
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


@with_peers
@with_kernels
@pytest.mark.filterwarnings("default")  # the peers' own
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("norm", [*NORMS, "evaluation"])
def test_every_candidate_has_the_same_gradients(norm, dtype):
    from benchmarks import candidates, speed

    shape = (8, 64) if norm in ("layer", "rms") else (4, 3, 3, 64)
    with jax.numpy_dtype_promotion("standard"):  # the peers promote
        several = list(candidates.candidates(norm, shape, dtype))
    assert [candidate.library for candidate in several] == speed.COLUMNS[:-1]
    candidates.check_alike(several, norm, dtype)


@with_peers
@with_kernels
@pytest.mark.filterwarnings("default")  # the peers' own
def test_speed_gives_ratios_of_what_it_shows_and_what_is_asked():
    from benchmarks import speed

    with jax.numpy_dtype_promotion("standard"):
        rows = speed.measured("layer", (8, 64), "float32", 1)
    assert [row[:4] for row in rows] == [["layer", "8x64", "f32", which] for which in PASSES]
    assert [row[4][-6:] for row in rows] == ["(0.70)", "(0.30)"]
    assert rows[0][5].replace(".", "").isdigit()
    assert rows[1][5].endswith("(0.80)")
    assert all(len(row) == 7 + len(speed.COLUMNS) for row in rows)


@with_peers
def test_a_cell_is_a_ratio_and_its_limit():
    from benchmarks import speed

    own = dict.fromkeys(speed.COLUMNS, 8.0) | {"jaxnorm": 2.0, "Flax Linen": 4.0, "floor": 1.0}
    limits = speed.asked("group", "float32")
    forward, both = (speed._cells(own, limits, which)[:4] for which in PASSES)
    assert forward == ["0.50 (0.15)", "0.25", "2.00", "2.00"]
    assert both == ["0.50 (0.30)", "0.25 (0.90)", "2.00", "2.00"]
    assert speed.asked("group", "bfloat16") == (0.9, 0.5, 1.0)
    assert speed.asked("evaluation", "bfloat16") == (1.0, 1.0, 1.0)


@with_peers
@pytest.mark.parametrize("at", range(4))
def test_a_library_that_computes_something_else_is_an_error(at):
    from benchmarks import candidates

    def candidate(library, arrays):
        return candidates.Candidate(library, lambda: None, lambda: arrays, lambda arrays: arrays)

    right = [normals(8, seed=seed) for seed in range(4)]
    wrong = [array + (index == at) for index, array in enumerate(right)]
    several = [candidate("jaxnorm", right), candidate("Flax NNX", wrong)]
    with pytest.raises(ValueError, match=f"{candidates.RESULTS[at]} of Flax NNX differs"):
        candidates.check_alike(several, "batch", "bfloat16")
    if at >= 2:  # its gradients of scale and bias are rounded here
        candidates.check_alike(several, "evaluation", "bfloat16")
