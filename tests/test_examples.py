"""Every program of examples/ runs as its page says, and reaches what it shows."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import PATIENCE

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
PROGRAMS = sorted(EXAMPLES.glob("*.py"))


def output_of(program, *arguments):
    """What a program prints, started as a user starts it."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    ended = subprocess.run(
        [sys.executable, str(EXAMPLES / program), *arguments],
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def numbers(text, before):
    """The numbers that follow a text."""
    found = re.findall(rf"{before} (-?[\d.]+(?:e[+-]\d+)?)\b", text)
    assert found, f"no {before!r} in {text!r}"
    return [float(number) for number in found]


def test_the_page_and_the_tests_name_every_program():
    page = (EXAMPLES / "README.md").read_text()
    named = re.findall(r"^\| \[(\w+\.py)\]\((\w+\.py)\)", page, re.M)
    assert named == [(program.name, program.name) for program in PROGRAMS]
    tested = re.findall(r'"(\w+\.py)"', Path(__file__).read_text())
    assert sorted(tested) == [program.name for program in PROGRAMS]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
def test_a_program_tells_what_it_is_for(program):
    docstring = re.match(r'"""(.*?)"""', program.read_text(), re.DOTALL)[1]
    headings = re.findall(r"^(\w+): ", docstring, re.M)
    assert headings == ["Shows", "Run", "Needs", "Prints"]
    assert f"python examples/{program.name}" in docstring


@pytest.mark.slow
def test_functional_cnn():
    output = output_of("functional_cnn.py")
    losses, accuracies = numbers(output, "loss"), numbers(output, "accuracy")
    assert losses[-1] < losses[0] / 10
    assert accuracies[-1] > 0.97


@pytest.mark.slow
@pytest.mark.parametrize("program", ["linen_resnet.py", "nnx_resnet.py"])
def test_resnets(program):
    output = output_of(program)
    never_stopped, restored = numbers(output, "test accuracy, [a-z ]+:")
    assert never_stopped == restored > 0.95
    assert "equal bit for bit: True" in output


@pytest.mark.slow
def test_transformer_padded():
    output = output_of("transformer_padded.py")
    assert numbers(output, "test accuracy") > [0.9]
    assert re.findall("^padded with (.*):", output, re.M) == ["0.0", "1000000.0", "nan"]
    # What is left is the order of sums: float32 in the loss, bfloat16 in the gradients.
    assert max(numbers(output, "loss differs by")) < 1e-4
    assert max(numbers(output, "gradients by")) < 3e-2


@pytest.mark.slow
def test_crossq():
    returns = numbers(output_of("crossq.py", "--steps", "3000"), "mean return")
    assert len(returns) == 4
    assert returns[0] < -1000
    assert returns[-1] > -500


@pytest.mark.slow
def test_fsdp():
    output = output_of("fsdp.py")
    assert "8 devices, each holds 0.1250 of the state" in output
    assert max(numbers(output, "differ by")) < 1e-5
    assert numbers(output, "test accuracy") > [0.93]


@pytest.mark.slow
def test_serving():
    output = output_of("serving.py")
    assert "served without jaxnorm: True" in output
    assert max(numbers(output, "differ by")) < 1e-5
    assert numbers(output, "test accuracy") > [0.95]


@pytest.mark.slow
def test_sync_batch_norm():
    output = output_of("sync_batch_norm.py")
    assert len(numbers(output, "differ by")) == 3
    assert max(numbers(output, "differ by")) < 1e-4
    assert numbers(output, "test accuracy") > [0.93]
