"""Prepared data sets. The first process that needs one prepares it, once for each directory.

TFDS writes the examples. Decoding tens of thousands takes seconds, so decoded arrays are stored
next to them. Later processes read these without TFDS.
"""

import contextlib
import errno
import fcntl
import io
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.errors import ConfigError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

CHUNK = 1024  # the number of examples that are decoded together
_DIRECTORY_ERRORS = (  # error numbers that deleting the folder does not solve
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
)


class Prepared:
    """A prepared data set. One process writes a file, and the others wait for it.

    Attributes:
        title: the name for error messages.
        folder: the folder of its files.
    """

    def __init__(
        self, title: str, folder: Path, make_builder: Callable[[], "tfds.core.DatasetBuilder"]
    ) -> None:
        self.title, self.folder = title, folder
        self._make_builder = make_builder
        self._builder: tfds.core.DatasetBuilder | None = None

    def is_there(self) -> bool:
        """Return whether the files of TFDS are written."""
        return (self.folder / "dataset_info.json").exists()

    def builder(self) -> "tfds.core.DatasetBuilder":
        """Return the builder, after preparing its files if necessary."""
        if self._builder is None:
            with self._as_config_error("prepared"), _silent():
                if not self.is_there():
                    with self._lock("tfds"):
                        self._remove_incomplete()
                        self._make_builder().download_and_prepare()
                self._builder = self._make_builder()
        return self._builder

    def arrays(
        self, name: str, make: Callable[[], Mapping[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """Return named arrays. If they do not exist yet, make and write them."""
        path = self.folder / "arrays" / f"{name}.npz"
        if not path.exists():
            with self._lock("arrays"):
                if not path.exists():
                    made = make()
                    with self._as_config_error("written"):
                        _write(path, made)
        with self._as_config_error("read"), path.open("rb") as file, np.load(file) as arrays:
            return dict(arrays)

    def records(self, split: str) -> "Records":
        """Return the examples of a split, which are read when they are accessed."""
        builder = self.builder()
        with self._as_config_error("read"):
            return Records(self, builder.as_data_source(split=split), builder.info)

    def _remove_incomplete(self) -> None:
        """Remove the files of a process that was killed during preparation. Needs the lock."""
        for folder in self.folder.parent.glob(f"incomplete.*_{self.folder.name}"):
            shutil.rmtree(folder)

    @contextlib.contextmanager
    def _as_config_error(self, what: str) -> Iterator[None]:
        """Raise a `ConfigError` that describes what is wrong with a file."""
        try:
            yield
        except ConfigError:
            raise
        except Exception as error:  # TFDS, array_record and NumPy have no common exception
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise ConfigError(
                f"{self.title} cannot be {what} in {self.folder} ({reason}); {_cure(error)}"
            ) from error

    @contextlib.contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        """Hold an exclusive lock. The system releases it even if the process dies."""
        with self._as_config_error("prepared"):
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            file = (self.folder.parent / f"{self.folder.name}.{name}.lock").open("w")
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


class Records:
    """Inputs as the source stores them. They are decoded when they are accessed."""

    def __init__(self, prepared: Prepared, source: Any, info: "tfds.core.DatasetInfo") -> None:
        self._prepared, self._source = prepared, source
        self._input, self._label = info.supervised_keys
        feature = info.features[self._input]
        self.shape = (len(source), *feature.shape)
        self.dtype = np.dtype(feature.np_dtype)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, examples: np.ndarray) -> np.ndarray:
        return self.read(examples)["inputs"]

    def read(self, examples: np.ndarray) -> dict[str, np.ndarray]:
        """Return inputs and labels of some examples."""
        with self._prepared._as_config_error("read"):
            decoded = self._source.__getitems__(examples.tolist())
        inputs = np.empty((len(examples), *self.shape[1:]), self.dtype)
        for place, example in enumerate(decoded):
            inputs[place] = example[self._input]
        labels = np.array([example[self._label] for example in decoded], np.int32)
        return {"inputs": inputs, "labels": labels}

    def chunks(self) -> Iterator[dict[str, np.ndarray]]:
        """Yield inputs and labels of all examples, `CHUNK` at a time."""
        for start in range(0, len(self), CHUNK):
            yield self.read(np.arange(start, min(start + CHUNK, len(self))))


def _cure(error: Exception) -> str:
    full = os.strerror(errno.ENOSPC) in str(error)  # the error of array_record has no number
    if full or (isinstance(error, OSError) and error.errno in _DIRECTORY_ERRORS):
        return "free space there, or give another data.directory=..."
    return "delete this folder to prepare it again"


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Suppress the progress messages of TFDS. It raises errors as exceptions."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    logging.getLogger("absl").addFilter(_is_not_from_tfds)  # for good: it also warns in reading
    with contextlib.redirect_stdout(io.StringIO()):  # it prints "Unknown size"
        yield


def _is_not_from_tfds(record: logging.LogRecord) -> bool:
    return "tensorflow_datasets" not in record.pathname


def _write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays atomically."""
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".incomplete")
    with temporary.open("wb") as file:
        np.savez(file, **arrays)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
