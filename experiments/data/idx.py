"""Files in the idx format of MNIST, plain or compressed with gzip.

References:
    LeCun, Cortes and Burges, "The MNIST database of handwritten digits": the format.
"""

import contextlib
import functools
import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from experiments.errors import ConfigError

UNSIGNED_BYTE = 8


class Header(NamedTuple):
    """The header of a file.

    Attributes:
        path: the path of the file.
        shape: the shape of its array of unsigned bytes.
    """

    path: Path
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """The size of the whole file, uncompressed."""
        return 4 + 4 * len(self.shape) + math.prod(self.shape)


def read_header(path: Path, num_axes: int) -> Header:
    """Return the header of a file with `num_axes` axes, without reading the values.

    Raises:
        ConfigError: the file has another format, or its size does not match its header.
    """
    with _as_config_error(path), _open(path) as file:
        start = file.read(4 + 4 * num_axes)
    magic = struct.pack(">BBBB", 0, 0, UNSIGNED_BYTE, num_axes)
    if start[:4] != magic:
        raise ConfigError(
            f"{path} starts with {start[:4].hex(' ') or 'nothing'}, but an idx file of "
            f"{num_axes} axes of unsigned bytes starts with {magic.hex(' ')}; give files in the "
            "format of MNIST"
        )
    if len(start) < 4 + 4 * num_axes:
        raise _truncated(path, len(start), 4 + 4 * num_axes)
    header = Header(path, struct.unpack(f">{num_axes}I", start[4:]))
    if path.suffix == ".gz":
        if _size_in_gzip(path) != header.num_bytes % 2**32:
            read(header)  # a file can have several gzip members: reading it finds the error, if any
    elif path.stat().st_size != header.num_bytes:
        raise _truncated(path, path.stat().st_size, header.num_bytes)
    return header


def read(header: Header) -> np.ndarray:
    """Return the array of a file.

    Raises:
        ConfigError: the file is truncated or corrupt.
    """
    with _as_config_error(header.path), _open(header.path) as file:
        content = file.read()
    if len(content) != header.num_bytes:
        raise _truncated(header.path, len(content), header.num_bytes)
    offset = 4 + 4 * len(header.shape)
    return np.frombuffer(content, np.uint8, offset=offset).reshape(header.shape)


def content_digest(path: Path) -> str:
    """Return the SHA-256 digest of a file. A process reads an unchanged file once.

    Raises:
        ConfigError: the file cannot be read.
    """
    with _as_config_error(path):
        stat = path.stat()
        return _content_digest(path, stat.st_size, stat.st_mtime_ns)


@functools.cache
def _content_digest(path: Path, size: int, time: int) -> str:
    del size, time  # only part of the cache key
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _size_in_gzip(path: Path) -> int:
    """Return the uncompressed size, modulo 2^32, that a gzip file ends with."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 4, 0))
        return int.from_bytes(file.read(4), "little")


def _truncated(path: Path, held: int, expected: int) -> ConfigError:
    return ConfigError(
        f"{path} has {held:,} bytes, but its header requires {expected:,}; "
        "it is truncated or corrupt; download it again"
    )


@contextlib.contextmanager
def _as_config_error(path: Path) -> Iterator[None]:
    """Raise a `ConfigError` that describes what is wrong with a file."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ConfigError(
            f"{path} is truncated or corrupt ({' '.join(str(error).split())}); download it again"
        ) from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
