"""Data sets whose files a package installs."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from experiments.data.card import Examples, Source
from experiments.data.source import DataSource
from experiments.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PackagedSource(DataSource):
    """A data set whose files a package installs. Once prepared, it does not need them.

    Attributes:
        package: the package.
        holds: the content of the source.
    """

    package: ClassVar[str]
    holds: ClassVar[Source]

    def absent(self) -> str | None:
        """Return what is not installed and the command that installs it; None if all is there."""
        raise NotImplementedError

    def parse(self) -> dict[str, Examples]:
        """Return the examples of the splits `train` and `test`, as the files hold them."""
        raise NotImplementedError

    @property
    def place(self) -> str:
        """Where the files are, for error messages."""
        return self.package

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
                f"{self.place} has {found[0]} training and {found[1]} test examples of "
                f"{self.title}, not {expected[0]} and {expected[1]}; install another version of "
                f"{self.package}"
            )
        return splits

    def _missing(self) -> Iterator[str]:
        if absent := self.absent():
            yield (
                f"{absent}, prepare {self.title} on a machine that has it and copy "
                f"{self.prepared().folder}, or give another data=..."
            )
