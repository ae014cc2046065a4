"""Data sets whose files a package of Debian installs."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from experiments.data.card import Examples, Source
from experiments.data.source import DataSource
from experiments.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DebianSource(DataSource):
    """A data set whose files a package of Debian installs. Once prepared, it does not need them.

    Attributes:
        package: the package.
        files: the files.
        holds: the content of the source.
    """

    package: ClassVar[str]
    files: ClassVar[tuple[Path, ...]]
    holds: ClassVar[Source]

    def parse(self) -> dict[str, Examples]:
        """Return the examples of the splits `train` and `test`, as the files hold them."""
        raise NotImplementedError

    def source(self) -> Source:
        return self.holds

    def problems(self, batch_size: int) -> Iterator[str]:
        if not self.prepared().is_there():
            yield from self._missing()
        yield from super().problems(batch_size)

    def read(self) -> dict[str, Examples]:
        for problem in self._missing():
            raise ConfigError(problem)
        splits = self.parse()
        found = tuple(len(splits[name].labels) for name in ("train", "test"))
        expected = self.holds.num_train, self.holds.num_test
        if found != expected:
            raise ConfigError(
                f"{self.files[0].parent} has {found[0]} training and {found[1]} test examples of "
                f"{self.title}, not {expected[0]} and {expected[1]}; install another version of "
                f"{self.package}"
            )
        return splits

    def _missing(self) -> Iterator[str]:
        for path in self.files:
            if not path.is_file():
                yield (
                    f"{path} does not exist; run make data or apt install "
                    f"--no-install-recommends {self.package}, prepare {self.title} on a machine "
                    f"that has it and copy {self.prepared().folder}, or give another data=..."
                )
                return
