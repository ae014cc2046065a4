"""Data sets that TFDS downloads and prepares."""

import functools
import importlib.util
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from experiments.data.card import Card, Source
from experiments.data.images import ImageSource
from experiments.errors import ConfigError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

TIMEOUT = 20  # seconds; TFDS itself tries for minutes
NEEDED = {"tensorflow": "tensorflow", "PIL": "pillow"}  # module: package


@dataclass(frozen=True, kw_only=True)
class CatalogSource(ImageSource):
    """A data set of TFDS. TFDS has its description and citation."""

    holds: ClassVar[Source]
    url: ClassVar[str]  # the address of one of its files

    def source(self) -> Source:
        return self.holds

    def problems(self, batch_size: int) -> Iterator[str]:
        if not self.prepared().is_there():
            yield from _hindrances(self.title, self.url, self.prepared().folder)
        yield from super().problems(batch_size)

    def builder(self) -> "tfds.core.DatasetBuilder":
        prepared = self.prepared()
        if not prepared.is_there():
            for hindrance in _hindrances(self.title, self.url, prepared.folder):
                raise ConfigError(hindrance)
        import tensorflow_datasets as tfds

        return tfds.builder(
            f"{self.card.name}:{self.card.version}",
            data_dir=Path(self.directory).expanduser(),
            file_format="array_record",
        )


def _hindrances(title: str, url: str, folder: Path) -> Iterator[str]:
    """Yield the reasons why TFDS cannot prepare a data set on this machine."""
    missing = [name for module, name in NEEDED.items() if not importlib.util.find_spec(module)]
    if missing:
        names = " and ".join(missing)
        yield (
            f"TFDS needs {names} to prepare {title}, and this machine does not have them; "
            f"pip install {' '.join(missing)}, or give another data=..."
        )
    elif reason := _unreachable(url):
        yield (
            f"TFDS downloads {title} from {url}, which this machine cannot reach ({reason}); "
            f"prepare it on a machine that can and copy {folder}, or give another data=..."
        )


@functools.cache
def _unreachable(url: str) -> str:
    """Return why an address cannot be reached, or "" if it can."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=TIMEOUT).close()
    except OSError as error:  # includes URLError
        return str(error)
    return ""


@dataclass(frozen=True, kw_only=True)
class Mnist(CatalogSource):
    """70,000 handwritten digits of 28x28 pixels."""

    card: ClassVar[Card] = Card("mnist", "3.0.1")
    holds: ClassVar[Source] = Source((28, 28, 1), 10, 60_000, 10_000)
    url: ClassVar[str] = (
        "https://storage.googleapis.com/cvdf-datasets/mnist/t10k-labels-idx1-ubyte.gz"
    )


@dataclass(frozen=True, kw_only=True)
class FashionMnist(CatalogSource):
    """70,000 images of clothes of 28x28 pixels."""

    card: ClassVar[Card] = Card("fashion_mnist", "3.0.1")
    holds: ClassVar[Source] = Source((28, 28, 1), 10, 60_000, 10_000)
    url: ClassVar[str] = (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/t10k-labels-idx1-ubyte.gz"
    )


@dataclass(frozen=True, kw_only=True)
class Cifar10(CatalogSource):
    """60,000 photographs of 32x32 pixels in 10 classes."""

    card: ClassVar[Card] = Card("cifar10", "3.0.2")
    holds: ClassVar[Source] = Source((32, 32, 3), 10, 50_000, 10_000)
    url: ClassVar[str] = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"


@dataclass(frozen=True, kw_only=True)
class Cifar100(CatalogSource):
    """60,000 photographs of 32x32 pixels in 100 classes."""

    card: ClassVar[Card] = Card("cifar100", "3.0.2")
    holds: ClassVar[Source] = Source((32, 32, 3), 100, 50_000, 10_000)
    url: ClassVar[str] = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
