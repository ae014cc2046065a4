"""What is counted in the text of a program, and that the page shows what is kept."""

from pathlib import Path

from benchmarks.compiled.kept import kept
from benchmarks.compiled.read import Counts, read
from benchmarks.compiled.table import tables

TESTS = Path(__file__).parent
ROWS = 8192 * 512  # of each of eight devices, in float32


def counted(text, elements=ROWS):
    return read(text, elements, 4 * elements)


def test_a_program_for_a_gpu():
    """RMS normalization: the sum of squares reads x, as does what writes y."""
    found = counted((TESTS / "compiled_gpu.txt").read_text())
    small = 4 * (5 * 8192 + 512)  # sums: written, reduced (one read, two named), read; the scale
    assert found == Counts(
        streams=3.0,
        moved=3 * 4 * ROWS + small,
        kernels=3,
        cycles=0,
        collectives={"all-reduce": [4 * 8192]},
    )


def test_a_program_for_a_tpu():
    """Its gradients: x is read, and copied onto the chip; the cotangent is read, and copied there
    in four slices; y and the gradient are written."""
    found = counted((TESTS / "compiled_tpu.txt").read_text())
    assert found == Counts(
        streams=6.0,
        moved=6 * 4 * ROWS + 4 * 3 * 512,  # the scale is read twice, and its gradient written
        kernels=7,
        cycles=76516 + 1894 + 119052 + 1975 + 156040,
        collectives={"all-reduce": [4 * 8192, 4 * 8192]},
    )


LOOP = """\
%part (p: f32[64,8], i: s32[]) -> f32[8] {
  %p = f32[64,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %c = s32[] constant(0)
  %slice.1 = f32[1,8]{1,0} dynamic-slice(%p, %i, %c), dynamic_slice_sizes={1,8}
  ROOT %bitcast.1 = f32[8]{0} bitcast(%slice.1)
}

%body (state: (s32[], f32[64,8])) -> (s32[], f32[64,8]) {
  %state = (s32[], /*index=1*/f32[64,8]{1,0}) parameter(0)
  %step = s32[] get-tuple-element(%state), index=0
  %x = f32[64,8]{1,0} get-tuple-element(%state), index=1
  %row = f32[8]{0} fusion(%x, %step), kind=kLoop, calls=%part
  ROOT %next = (s32[], f32[64,8]{1,0}) tuple(%step, %x)
}

ENTRY %main (x: f32[64,8]) -> f32[128,8] {
  %x = f32[64,8]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %first = (s32[], f32[64,8]{1,0}) tuple(%zero, %x)
  %loop = (s32[], f32[64,8]{1,0}) while(%first), condition=%test, body=%body
  %gather-start = (f32[64,8]{1,0}, f32[128,8]{1,0}) all-gather-start(%x), dimensions={0}
  ROOT %gather-done = f32[128,8]{1,0} all-gather-done(%gather-start)
}
"""


def test_the_body_of_a_loop_counts_once_and_a_slice_of_an_array_by_its_size():
    found = counted(LOOP, 64 * 8)
    gathered = 64 * 8 + 64 * 8 + 128 * 8  # what the start reads, and names as its results
    assert found.kernels == 2
    assert found.streams == round(8 / (64 * 8) + gathered / (64 * 8), 2)
    assert found.moved == 4 * (8 + 1 + 8 + gathered)
    assert found.collectives == {"all-gather": [4 * 128 * 8]}


CONDITIONAL = """\
%part (p: f32[64,8]) -> f32[64,8] {
  %p = f32[64,8]{1,0} parameter(0)
  ROOT %sine = f32[64,8]{1,0} sine(%p)
}

%far (x: f32[64,8]) -> f32[64,8] {
  %x = f32[64,8]{1,0} parameter(0)
  %once = f32[64,8]{1,0} fusion(%x), kind=kLoop, calls=%part
  ROOT %twice = f32[64,8]{1,0} fusion(%once), kind=kLoop, calls=%part
}

%near (x: f32[64,8]) -> f32[64,8] {
  %x = f32[64,8]{1,0} parameter(0)
  ROOT %once = f32[64,8]{1,0} fusion(%x), kind=kLoop, calls=%part
}

ENTRY %main (which: s32[], x: f32[64,8]) -> f32[64,8] {
  %which = s32[] parameter(0)
  %x = f32[64,8]{1,0} parameter(1)
  %y = f32[64,8]{1,0} conditional(%which, %x, %x), branch_computations={%far, %near}
  ROOT %z = f32[64,8]{1,0} fusion(%x), kind=kLoop, calls=%part
}
"""


def test_of_a_conditional_the_branch_of_the_true_condition_counts():
    found = counted(CONDITIONAL, 64 * 8)
    assert (found.kernels, found.streams) == (2, 4.0)


def test_what_a_gpu_moves_is_what_xla_says_is_accessed():
    """Of layers, as XLA says nothing of what it calls in libraries.

    It counts all of what devices gathered where a kernel reads a slice of it.
    """
    for name, found in kept().items():
        if name.startswith("gpu ") and not name.startswith("gpu step "):
            gathered = sum(found["collectives"].get("all-gather", []))
            off = abs(found["moved"] - found["accessed"])
            assert off < 0.005 * found["accessed"] + gathered, name


def test_the_page_shows_what_is_kept():
    page = (TESTS.parent / "docs" / "accelerators.md").read_text()
    for table in tables(kept()):
        assert table.markdown() in page
