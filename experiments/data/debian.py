"""Data sets whose files a package of Debian installs."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from experiments.data.packaged import PackagedSource


@dataclass(frozen=True, kw_only=True)
class DebianSource(PackagedSource):
    """A data set whose files a package of Debian installs.

    Attributes:
        files: the files.
    """

    files: ClassVar[tuple[Path, ...]]

    @property
    def place(self) -> str:
        return str(self.files[0].parent)

    def absent(self) -> str | None:
        for path in self.files:
            if not path.is_file():
                return (
                    f"{path} does not exist; run make data or apt install "
                    f"--no-install-recommends {self.package}"
                )
        return None
