"""Digests of the code and the data that determine the result of a run."""

import ast
import contextlib
import functools
import hashlib
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from experiments.config import COMPONENTS, Config, component
from experiments.errors import ConfigError

TRAINING = "experiments.training.fit"
PACKAGES = ("experiments", "jaxnorm")
KERNELS = "jaxnorm.kernels"
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def made_from(config: Config) -> dict[str, str]:
    """Return digests of the code that trains a run and of the files of its data.

    There is no digest of the data if its files are not available.
    """
    digests = {"code": code_digest(config)}
    with contextlib.suppress(ConfigError):
        digests["data"] = component("data", config.data)().fingerprint()
    return digests


def code_digest(config: Config) -> str:
    """Return a digest of the code of a run: training, its components, and all their imports.

    A new model or data set, a report, a docstring or a comment does not change the digest.
    """
    targets = [getattr(config, group)["_target_"].rpartition(".")[0] for group in COMPONENTS]
    return _digest((TRAINING, *targets))


def read_training_code() -> None:
    """Read what is common to the digests of all runs, so that a copy of this process need not."""
    _digest((TRAINING,))


@functools.cache
def _digest(roots: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for name, path in sorted(_imported(roots).items()):
        digest.update(name.encode())
        digest.update(_code(path))
        if name == KERNELS:
            for source in sorted((path.parent / "src").glob("*")):
                digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _imported(roots: Iterable[str]) -> dict[str, Path]:
    """Return the files of the modules and of all their imports from `PACKAGES`."""
    found: dict[str, Path] = {}
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        path = _file(name)
        if path is not None and name not in found:
            found[name] = path
            waiting += [name.rpartition(".")[0], *_imports(path)]
    return found


@functools.cache
def _imports(path: Path) -> list[str]:
    """Return the names of modules that a file imports, or of their objects."""
    names: list[str] = []
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


@functools.cache
def _code(path: Path) -> bytes:
    return ast.dump(_tree(path)).encode()


@functools.cache
def _tree(path: Path) -> ast.Module:
    """Return the syntax tree of a file without docstrings."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree


@functools.cache
def _file(name: str) -> Path | None:
    """Return the file of a module of `PACKAGES`; None for any other name."""
    if name.partition(".")[0] not in PACKAGES:
        return None
    try:
        spec = find_spec(name)
    except ModuleNotFoundError:  # the name of an object in a module
        return None
    return Path(spec.origin) if spec and spec.origin else None
