"""The benchmarks: the README's marks, and that every library is asked for the same thing."""

import re
from functools import partial
from importlib.util import find_spec

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import normals

import jaxnorm.linen as jnn
from benchmarks import models, networks, sweep, table
from benchmarks.__main__ import BENCHMARKS, ON_REQUEST
from benchmarks.forms import FORMS
from benchmarks.ours import NORMS, affine, normalization
from benchmarks.timing import PASSES, copies, interleaved, passes, programs
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


def test_a_table_says_what_it_was_measured_with_unless_the_page_does(tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text(
        "<!-- bench environment -->\njax 1\n<!-- end environment -->\n"
        "<!-- bench x -->\n<!-- end x -->\n"
    )
    monkeypatch.setattr(table, "ROOT", tmp_path)
    for version, shown in (("jax 1", "text"), ("jax 2", "text jax 2")):
        table.publish("x", "text", version)
        text = (tmp_path / "README.md").read_text()
        assert f"<!-- bench x -->\n{shown}\n<!-- end x -->" in text


@pytest.mark.parametrize("part", ["environment", *BENCHMARKS, *ON_REQUEST])
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


def test_the_copies_read_and_write_what_they_say():
    x, cotangent = normals(2, 3), normals(2, 3, seed=1)
    functions = copies(jnp.asarray(x), jnp.asarray(cotangent))
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
        native = name == "jaxnorm" and norm != "evaluation"
        for program in compiled.values():
            assert any(f'"{h}"' in program.as_text() for h in HANDLERS) == native
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
    assert forms.columns == threads.columns == ("elements", "layer forward", "layer both")
    assert forms.rows == [["100", "0.25", "0.25"], ["1,000", "0.25", "2.50"]]
    assert "At worst 2.50 (layer, both, 1,000 elements)" in forms.notes
    assert threads.rows == [["100", "4.00", "4.00"], ["1,000", "4.00", "4.00"]]


@with_kernels
@pytest.mark.long
def test_the_native_form_is_timed_in_a_process_with_so_many_threads():
    found = sweep.native(["layer", "group"], [100], 1)
    cases = [(norm, 100, which) for norm in ("layer", "group") for which in PASSES]
    assert list(found) == cases
    assert all(milliseconds > 0 for milliseconds in found.values())


SMALL = {
    "ResNet-20": ((2, 8, 8, 3), {"blocks": (1, 1), "width": 4}),
    "ResNet bottlenecks": ((2, 4, 4, 8), {"blocks": 1}),
    "transformer, LayerNorm": ((2, 8, 64), {"layers": 1}),
    "transformer, RMSNorm": ((2, 8, 64), {"layers": 1, "kind": "RMSNorm"}),
    "U-Net blocks, GroupNorm": ((2, 4, 4, 32), {"width": 32}),
    "ConvNeXt blocks, LayerNorm": ((2, 4, 4, 8), {"blocks": 1}),
    "perceptron, BatchNorm": ((8, 16), {}),
}


@pytest.mark.long
@with_kernels
@pytest.mark.parametrize("name", models.MODELS)
def test_a_model_is_flaxs_with_the_modules_of_every_library(monkeypatch, name):
    timed = []

    def interleaved(functions, rounds):
        timed.append(list(functions))
        return dict.fromkeys(functions, 1.0)

    monkeypatch.setattr(models, "interleaved", interleaved)
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    shape, sizes = SMALL[name]
    model = models.MODELS[name]._replace(shape=shape, sizes=sizes)
    training = models.trained(name, model, "float32", 1e-3)
    inference = list(models.evaluated(name, model, "float32", 1e-3))
    folded = ["folded"] * bool(model.pairs)
    assert timed[0] == list(models.LIBRARIES)
    assert timed[1:] == [[*models.LIBRARIES, *folded]] * (1 + model.one)
    assert [row["shape"][0] for row in inference] == [shape[0], 1][: 1 + model.one]
    assert training["compile"] > 0


def test_models_have_the_same_variables_with_every_library():
    x = jnp.ones((2, 8))

    def variables(norms):
        network = networks.Perceptron(norms, "float32", layers=1)
        shapes = jax.eval_shape(partial(networks.initial, network), x)[0]
        return jax.tree.map(lambda leaf: leaf.shape, shapes)

    assert variables(networks.NNX()) == variables(jnn) == variables(nn)
    without = variables(networks.Nothing())
    assert list(without) == ["params"]
    assert list(without["params"]) == ["Dense_0", "Dense_1"]


def test_a_model_that_differs_is_an_error():
    right, wrong = (jnp.float32(1), {"a": jnp.ones(2)}), (jnp.float32(1), {"a": jnp.ones(2) * 1.1})
    models.check_alike("model", "float32", {"Flax": right, "plain": right})
    with pytest.raises(ValueError, match="model in float32 with plain differs"):
        models.check_alike("model", "float32", {"Flax": right, "plain": wrong})


def test_a_table_of_models_has_the_ratios_their_means_and_the_noise():
    def row(name, ours, itself):
        times = {"Flax": 2.0, "jaxnorm": ours, "plain": 2.0, "NNX": 2.0, "none": 1.0}
        return {"model": name, "dtype": "bfloat16", "shape": (2, 3), "compile": 0.5} | {
            "times": times | {"again": itself}
        }

    found = models._table(
        "Models: inference", [row("a", 1.0, 2.0), row("b", 4.0, 1.6)], ("compile",)
    )
    assert found.columns[3:] == (
        *(f"{name} / Flax" for name in (*models.RATIOS, "compile")),
        "Flax ms",
    )
    assert found.rows == [
        ["a", "2x3", "bf16", "0.50", "1.00", "1.00", "-", "0.50", "1.00", "0.50", "2.00"],
        ["b", "2x3", "bf16", "2.00", "1.00", "1.00", "-", "0.50", "0.80", "0.50", "2.00"],
    ]
    assert found.notes.startswith("Inference: median times")
    assert "means: jaxnorm 1.00, plain 1.00, none 0.50." in found.notes
    assert "The largest ratio of jaxnorm is 2.00 (b, bf16)." in found.notes
    assert "differs from itself by up to 25%" in found.notes


@with_peers
@pytest.mark.parametrize("name", ["perceptron, BatchNorm", "ConvNeXt blocks, LayerNorm"])
def test_a_model_of_pytorch_has_as_many_parameters(name):
    from benchmarks import torch_models

    shape, _ = SMALL[name]
    x = jnp.ones(shape)
    network = models.MODELS[name].network(nn, "float32")
    variables, _ = jax.eval_shape(partial(networks.initial, network), x)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    torch_model = torch_models.MODELS[name](shape[-1])
    assert sum(each.numel() for each in torch_model.parameters()) == count
    for train in (True, False):
        torch_models.call(name, shape, "bfloat16", train)()


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
def test_speed_gives_ratios_of_what_it_shows():
    from benchmarks import speed

    with jax.numpy_dtype_promotion("standard"):
        rows = speed.measured("layer", (8, 64), "float32", 1)
    assert [row[:4] for row in rows] == [["layer", "8x64", "f32", which] for which in PASSES]
    assert all(re.fullmatch(r"\d+\.\d\d", cell) for row in rows for cell in row[4:])
    assert all(len(row) == 6 + len(speed.COLUMNS) for row in rows)


@with_peers
def test_the_first_cells_are_the_ratios():
    from benchmarks import speed

    own = dict.fromkeys(speed.COLUMNS, 8.0) | {"jaxnorm": 2.0, "Flax Linen": 4.0, "copy": 1.0}
    assert speed._cells(own)[:3] == ["0.50", "0.25", "2.00"]


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
