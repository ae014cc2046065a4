"""Images of a folder in MNIST's idx format, such as Fashion-MNIST as Debian packages it."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

from experiments import errors
from experiments.data import idx
from experiments.data.card import Card, Examples, Source
from experiments.data.images import ImageSource
from experiments.errors import ConfigError

DEBIAN = {  # folder: the Debian package that installs it
    Path("/usr/share/datasets/fashion-mnist"): "dataset-fashion-mnist",
}
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


class _Headers(NamedTuple):
    images: idx.Header
    labels: idx.Header


@dataclass(frozen=True, kw_only=True)
class IdxImages(ImageSource):
    """Gray images uint8 (height, width, 1) and their labels, from a folder.

    The folder is prepared again when the path, size or time of one of its files changes.

    Attributes:
        folder: contains train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte
            and t10k-labels-idx1-ubyte, each uncompressed or with .gz.
        classes: the number of classes; labels count from 0.
    """

    folder: str
    classes: int

    card: ClassVar[Card] = Card(
        name="idx_images",
        version="1.0.0",
        notes="A folder's train and t10k files.",
        description="""\
Gray images of a folder in MNIST's idx format. The train files are the training set, the t10k files
the test set.
""",
        homepage="https://github.com/zalandoresearch/fashion-mnist",
        citation="""\
@article{xiao2017fashion,
  author = {Xiao, Han and Rasul, Kashif and Vollgraf, Roland},
  title = {Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms},
  journal = {arXiv preprint arXiv:1708.07747},
  year = {2017},
}
""",
    )

    @property
    def title(self) -> str:
        return self.folder

    @property
    def key(self) -> str:
        files = [
            (path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self._files()
        ]
        content = repr((str(self._folder.resolve()), files, self.classes))
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def fingerprint(self) -> str:
        digests = [idx.content_digest(path) for path in self._files()]
        return hashlib.sha256(repr(digests).encode()).hexdigest()[:16]

    @property
    def _folder(self) -> Path:
        return Path(self.folder).expanduser()

    def problems(self, batch_size: int) -> Iterator[str]:
        yield from errors.at_least("data.classes", self.classes, 2)
        yield from super().problems(batch_size)

    def source(self) -> Source:
        train, test = (self._headers(split) for split in ("train", "test"))
        if train.images.shape[1:] != test.images.shape[1:]:
            raise ConfigError(
                f"{train.images.path} has images of {_size(train)}, but {test.images.path} of "
                f"{_size(test)}; both must have the same size"
            )
        shape = (*train.images.shape[1:], 1)
        return Source(shape, self.classes, train.images.shape[0], test.images.shape[0])

    def read(self) -> dict[str, Examples]:
        return {split: self._examples(split) for split in FILES}

    def _headers(self, split: str) -> _Headers:
        """Return the headers of a split, after checking its labels."""
        images, labels = FILES[split]
        headers = _Headers(
            idx.read_header(self._file(images), num_axes=3),
            idx.read_header(self._file(labels), num_axes=1),
        )
        if headers.images.shape[0] != headers.labels.shape[0]:
            raise ConfigError(
                f"{headers.images.path} has {headers.images.shape[0]} images, but "
                f"{headers.labels.path} {headers.labels.shape[0]} labels; "
                "they do not belong together; download both again"
            )
        if 0 in headers.images.shape:
            raise ConfigError(f"{headers.images.path} contains no image; give another folder")
        most = int(idx.read(headers.labels).max())
        if most >= self.classes:
            raise ConfigError(
                f"{headers.labels.path} has the label {most}, but data.classes is "
                f"{self.classes}; give data.classes={most + 1} or more"
            )
        return headers

    def _examples(self, split: str) -> Examples:
        headers = self._headers(split)
        return Examples(idx.read(headers.images)[..., None], idx.read(headers.labels))

    def _files(self) -> list[Path]:
        return [self._file(name) for names in FILES.values() for name in names]

    def _file(self, name: str) -> Path:
        """Return the path of a file, compressed or not."""
        paths = (self._folder / name, self._folder / f"{name}.gz")
        for path in paths:
            if path.is_file():
                return path
        package = DEBIAN.get(self._folder)
        cure = "give the folder of the four files as data.folder=..."
        raise ConfigError(
            f"{paths[0]} does not exist, with or without .gz; "
            + (f"apt install {package}, or {cure}" if package else cure)
        )


def _size(headers: _Headers) -> str:
    height, width = headers.images.shape[1:]
    return f"{height}x{width}"
