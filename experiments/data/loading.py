"""Preparing a data set once, and reading it into NumPy arrays."""

import contextlib
import fcntl
import functools
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from experiments.data.digits import Digits

BUILDERS: dict[str, type[Digits]] = {"digits": Digits}


class Split(NamedTuple):
    """Examples: `images` is float32 (examples, height, width, channels), `labels` int32."""

    images: np.ndarray
    labels: np.ndarray


class Dataset(NamedTuple):
    """A data set whose images are standardized by the mean and deviation of the training set."""

    train: Split
    test: Split
    num_classes: int


@functools.cache
def load(name: str, directory: str) -> Dataset:
    """Return the data set `name`, preparing it under `directory` if it is not there yet."""
    builder = _prepare(name, Path(directory))
    train, test = (_read(builder, split) for split in ("train", "test"))
    mean = train.images.mean(axis=(0, 1, 2))
    deviation = train.images.std(axis=(0, 1, 2))
    train, test = (
        split._replace(images=(split.images - mean) / deviation) for split in (train, test)
    )
    return Dataset(train, test, builder.info.features["label"].num_classes)


def _prepare(name: str, directory: Path) -> tfds.core.DatasetBuilder:
    """Return the builder with its files written; one process writes, others wait for it."""
    directory.mkdir(parents=True, exist_ok=True)
    tfds.disable_progress_bar()
    with _lock(directory / f"{name}.lock"):
        builder = BUILDERS[name](data_dir=directory, file_format="array_record")
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces "Unknown size"
            builder.download_and_prepare()
    return builder


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock; the system releases it even if the process dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read(builder: tfds.core.DatasetBuilder, split: str) -> Split:
    source = builder.as_data_source(split=split)
    examples = source.__getitems__(range(len(source)))
    images = np.stack([example["image"] for example in examples])
    labels = np.array([example["label"] for example in examples])
    return Split(images.astype(np.float32), labels.astype(np.int32))
