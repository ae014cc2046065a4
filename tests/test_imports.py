"""The design's order of imports: down the list, never up."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = [
    "public",
    "dtypes",
    "axes",
    "checks",
    "states",
    "arrays",
    "segments",
    "kernels",
    "scope",
    "squares",
    "merged",
    "near",
    "forms",
    "statistics",
    "distributed",
    "affine",
    "operands",
    "sums",
    "projection",
    "standardize",
    "running",
    "batch_arguments",
    "batch",
    "sample",
    "weight_standardization",
    "online",
    "nested",
    "input_stats",
    "inputs",
    "returns",
    "layers",
    "fold",
    "popart",
    "pairs",
    "paths",
    "parameters",
    "trees",
    "tree_parts",
    "replicas",
    "evidence",
    "finding",
    "findings",
    "diagnosis",
    "diagnose",
    "flax_layers",
    "shells",
    "replacements",
    "linen",
    "nnx",
]
PACKAGES = {"kernels", "linen", "nnx"}
SHELLS = ["variables", "batch", "sample", "online", "inputs", "fold", "replace", "trees"]


def imported(path: Path) -> set[str]:
    """Every module that a file imports, at any depth of its code."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def files_of(module: str) -> list[Path]:
    """The files of a module or of a package."""
    package = ROOT / "jaxnorm"
    return sorted((package / module).glob("*.py")) or [package / f"{module}.py"]


def test_every_module_has_its_place():
    modules = {path.stem for path in (ROOT / "jaxnorm").glob("*.py")} - {"__init__", "__main__"}
    assert modules | PACKAGES == set(ORDER)
    for framework in ("linen", "nnx"):
        files = {path.stem for path in (ROOT / "jaxnorm" / framework).glob("*.py")}
        assert files == {"__init__", *SHELLS}, "a normalization stands at one place in both"


def test_modules_import_only_what_stands_above_them():
    for place, module in enumerate(ORDER):
        below = {f"jaxnorm.{name}" for name in ORDER[place:]}
        for path in files_of(module):
            assert module in PACKAGES or not imported(path) & below, path
            assert not imported(path) & below - {f"jaxnorm.{module}"}, path


def test_the_kernels_import_nothing_of_the_library_and_numpy_for_the_attributes_of_calls():
    for path in (ROOT / "jaxnorm" / "kernels").glob("*.py"):
        names = imported(path)
        own = {name for name in names if name.split(".")[0] == "jaxnorm"}
        assert all(name.startswith("jaxnorm.kernels") for name in own), path.name
        packages = {name.split(".")[0] for name in names}
        allowed = {"jax", "jaxnorm", "numpy", "__future__"} | set(sys.stdlib_module_names)
        assert packages <= allowed, path.name


def test_the_library_imports_jax_and_flax_only_and_numpy_for_values_on_the_host():
    allowed = {"jax", "jaxnorm", "__future__"} | set(sys.stdlib_module_names)
    others = dict.fromkeys(("flax_layers", "shells", "linen", "nnx"), "flax")
    others |= dict.fromkeys(
        ("evidence", "finding", "findings", "diagnose"), "numpy"
    )  # of values on the host
    for module in set(ORDER) - {"kernels"}:
        for path in files_of(module):
            packages = {name.split(".")[0] for name in imported(path)}
            assert packages <= allowed | {others.get(module)}, path


def test_interop_imports_numpy_only_and_nothing_of_the_library_imports_it():
    for path in (ROOT / "jaxnorm" / "interop").glob("*.py"):
        names = imported(path)
        own = {name for name in names if name.split(".")[0] == "jaxnorm"}
        below = own - {"jaxnorm.public", "jaxnorm.public.public_names"}
        assert all(name.startswith("jaxnorm.interop") for name in below), path.name
        packages = {name.split(".")[0] for name in names}
        allowed = {"jaxnorm", "numpy", "__future__"} | set(sys.stdlib_module_names)
        assert packages <= allowed, path.name
    for path in (ROOT / "jaxnorm").rglob("*.py"):
        if path.parent.name != "interop" and path != ROOT / "jaxnorm" / "__init__.py":
            assert "jaxnorm.interop" not in imported(path), path.name


def test_the_shells_of_one_framework_import_nothing_of_the_other():
    for framework, other in (("linen", "nnx"), ("nnx", "linen")):
        for path in files_of(framework):
            assert not {name for name in imported(path) if other in name}, path


def test_the_shells_import_each_other_in_one_order():
    for framework in ("linen", "nnx"):
        for place, module in enumerate(SHELLS):
            below = {f"jaxnorm.{framework}.{name}" for name in SHELLS[place:]}
            path = ROOT / "jaxnorm" / framework / f"{module}.py"
            assert not imported(path) & below, path


def test_no_file_of_the_library_has_more_than_400_lines():
    files = [p for end in ("py", "cc", "h") for p in (ROOT / "jaxnorm").rglob(f"*.{end}")]
    lengths = {str(path): len(path.read_text().splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_experiments_use_the_library_as_users_do():
    public = {"jaxnorm", "jaxnorm.linen", "jaxnorm.nnx"}
    for path in (ROOT / "experiments").rglob("*.py"):
        modules = {name for name in imported(path) if name.split(".")[0] == "jaxnorm"}
        assert all(name in public or name.rsplit(".", 1)[0] in public for name in modules), path


@pytest.mark.parametrize("package", ["experiments", "benchmarks"])
def test_imports_of_a_package_run_one_way(package):
    files = {}
    for path in (ROOT / package).rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    imports = {module: imported(path) & files.keys() for module, path in files.items()}
    TopologicalSorter(imports).prepare()  # raises a CycleError that names the modules


def test_importing_the_library_imports_no_framework():
    code = "import sys, jaxnorm; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    frameworks = {"flax", "hydra", "tensorflow_datasets", "optax", "safetensors"}
    others = {"torch", "tensorflow", "keras", "haiku", "equinox"}
    assert not (frameworks | others) & set(loaded.stdout.split())
