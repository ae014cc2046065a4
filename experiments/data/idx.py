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
    """What a file says that it holds.

    Attributes:
        path: of the file.
        shape: of its array of unsigned bytes.
    """

    path: Path
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """The length of the whole file when it is not compressed."""
        return 4 + 4 * len(self.shape) + math.prod(self.shape)


def read_header(path: Path, num_axes: int) -> Header:
    """Return what a file of as many axes holds, without reading its values.

    Raises:
        ConfigError: it is of another format, or its size is not what its header asks for.
    """
    with _as_config_error(path), _open(path) as file:
        start = file.read(4 + 4 * num_axes)
    magic = struct.pack(">BBBB", 0, 0, UNSIGNED_BYTE, num_axes)
    if start[:4] != magic:
        raise ConfigError(
            f"{path} starts with {start[:4].hex(' ') or 'nothing'}, but an idx file of "
            f"{num_axes} axes of unsigned bytes with {magic.hex(' ')}; give files of MNIST's format"
        )
    if len(start) < 4 + 4 * num_axes:
        raise _truncated(path, len(start), 4 + 4 * num_axes)
    header = Header(path, struct.unpack(f">{num_axes}I", start[4:]))
    if path.suffix == ".gz":
        if _size_in_gzip(path) != header.num_bytes % 2**32:
            read(header)  # says what is wrong, where it is more than one gzip in a file
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
    """Return the SHA-256 of a file as it is, read once in a process while it stays the same.

    Raises:
        ConfigError: the file cannot be read.
    """
    with _as_config_error(path):
        stat = path.stat()
        return _content_digest(path, stat.st_size, stat.st_mtime_ns)


@functools.cache
def _content_digest(path: Path, size: int, time: int) -> str:
    del size, time  # another file
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _size_in_gzip(path: Path) -> int:
    """Return the size that the end of a gzip file says its content has, modulo 2^32."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 4, 0))
        return int.from_bytes(file.read(4), "little")


def _truncated(path: Path, held: int, expected: int) -> ConfigError:
    return ConfigError(
        f"{path} holds {held:,} bytes, but by its header it has {expected:,}; "
        "it is truncated or corrupt, fetch it again"
    )


@contextlib.contextmanager
def _as_config_error(path: Path) -> Iterator[None]:
    """Tell what is wrong with a file as one error."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ConfigError(
            f"{path} is truncated or corrupt ({' '.join(str(error).split())}); fetch it again"
        ) from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
