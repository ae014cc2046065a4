"""Preparing a data set once under a directory, and what is read of it afterwards.

TFDS writes the examples. Decoding them takes seconds for tens of thousands, so that they are kept
beside as arrays too, which every later process maps into its memory.
"""

import contextlib
import fcntl
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.data.card import Examples

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

CHUNK = 1024  # examples that are decoded at once


def prepare(builder: "tfds.core.DatasetBuilder", directory: Path) -> None:
    """Write the files of a builder; one process writes, others wait for it."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    with lock(directory / f"{builder.name}.lock"), contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare()


def arrays(directory: Path, builder: Callable[[], "tfds.core.DatasetBuilder"]) -> Path:
    """Return the folder of the arrays, made where it is not there yet."""
    folder = directory / "arrays"
    return folder


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock; the system releases it even if the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def decode(builder: "tfds.core.DatasetBuilder", split: str) -> Examples:
    """Return all examples of a split."""
    source = builder.as_data_source(split=split)
    key, label = builder.info.supervised_keys
    inputs, labels = None, np.empty(len(source), np.int32)
    for start in range(0, len(source), CHUNK):
        stop = min(start + CHUNK, len(source))
        examples = source.__getitems__(range(start, stop))
        if inputs is None:
            inputs = np.empty((len(source), *examples[0][key].shape), examples[0][key].dtype)
        inputs[start:stop] = [example[key] for example in examples]
        labels[start:stop] = [example[label] for example in examples]
    return Examples(inputs, labels)


def write_arrays(folder: Path, split: str, examples: Examples) -> None:
    """Write the arrays of a split, each at once or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in examples._asdict().items():
        path = folder / f"{split}-{name}.npy"
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            np.save(file, array)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def read_arrays(folder: Path, split: str) -> Examples:
    """Return the arrays of a split, mapped into memory."""
    return Examples(
        *(np.load(folder / f"{split}-{name}.npy", mmap_mode="r") for name in Examples._fields)
    )
