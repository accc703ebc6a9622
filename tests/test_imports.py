"""What may import what, and what must not be loaded."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import distill

ROOT = Path(distill.__file__).parent
PACKAGES = ("benchmarks", "export", "quantize", "prune")
# What every part may import: it imports nothing of the product itself.
LEAVES = ("bounds", "clean", "documents", "errors", "files", "intervals", "state_dicts", "types", "versions", "wording")
# What every part may import as well: it imports leaves, and of these only what stands before it.
SHARED = (
    "plain_yaml",
    "scratch",
    "interruptions",
    "output_paths",
    "sealed_files",
    "outputs",
    "references",
    "console",
    "rendering",
)
# What each may import of the product besides itself and these.
ALLOWED = {
    "benchmarks": set(),
    "export": {"benchmarks"},
    "quantize": {"benchmarks", "export"},
    "prune": {"benchmarks"},
}
# A part may import those before it and those beside it on its level.
ORDER = (
    LEAVES,
    SHARED,
    PACKAGES,
    ("models", "tasks"),
    ("training", "distillation"),
    ("config",),
    ("runtime",),
    ("stages", "deploy", "report", "single_stage"),
    ("study", "outcome"),
    ("pipeline",),
    ("estimate",),
    ("verbs", "templates"),
    ("cli", "__main__"),
)


def imports_of(path: Path, package: str) -> set[str]:
    """Return the dotted names within distill that a file imports, also inside functions; not for type checkers."""
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.dump(branch.test)
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                module = importlib.util.resolve_name("." * node.level + module, package)
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name.split(".")[0] == "distill"}


def part(dotted: str) -> str | None:
    """Return the second word of a dotted name: the module or package of the product that it lies in."""
    words = dotted.split(".")
    return words[1] if len(words) > 1 else None


def files_of(name: str) -> list[Path]:
    place = ROOT / name
    return sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]


def package_of(path: Path) -> str:
    inside = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("distill", *(inside[:-1])))


def parts_of(name: str) -> set[str]:
    known = {path.stem for path in ROOT.iterdir()} - {"versus"}
    return {
        found
        for path in files_of(name)
        for dotted in imports_of(path, package_of(path))
        if (found := part(dotted)) in known and found != name
    }


@pytest.mark.parametrize("package", PACKAGES)
def test_a_stage_package_knows_nothing_of_the_product(package: str) -> None:
    assert parts_of(package) - {*LEAVES, *SHARED} <= ALLOWED[package]


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_leaf_imports_nothing(leaf: str) -> None:
    assert parts_of(leaf) == set()


def test_every_part_has_its_place() -> None:
    parts = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert parts - {"__init__", "__pycache__", "versus", "py"} == {name for level in ORDER for name in level}


def test_every_part_imports_only_what_stands_before_it() -> None:
    before: set[str] = set()
    for level in ORDER:
        before |= set(level)
        for name in level:
            assert parts_of(name) <= before, name


def test_nothing_imports_a_stage_package_by_its_bare_name() -> None:
    for path in sorted(ROOT.rglob("*.py")) + [file for name in PACKAGES for file in files_of(name)]:
        if "templates" in path.parts:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not {name.split(".")[0] for name in names} & {*PACKAGES, "tests"}, path


def loaded_by(code: str, cwd: Path) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(' '.join(sys.modules), file=sys.stderr)"],
        cwd=cwd, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return set(done.stderr.splitlines()[-1].split())


def test_importing_a_stage_package_brings_no_pipeline(tmp_path: Path) -> None:
    code = "import distill.prune, distill.quantize, distill.export"
    ours = {name for name in loaded_by(code, tmp_path) if name.startswith("distill.")}
    assert {part(name) for name in ours} <= {*PACKAGES, *LEAVES, *SHARED}


def test_importing_benchmarks_brings_no_torch(tmp_path: Path) -> None:
    found = loaded_by("import distill.benchmarks", tmp_path)
    assert not found & {"torch", "distill.pipeline", "distill.training", "distill.export"}
    assert "distill.benchmarks" in found


HELP = """
sys.argv = ['distill', *{words!r}]
from distill.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code
"""


@pytest.mark.parametrize(
    "words",
    [["--help"], ["run", "--help"], ["presets"], ["init", "--help"], ["quantize", "--help"], ["prune", "--help"]],
)
def test_help_loads_nothing_heavy(words: list[str], tmp_path: Path) -> None:
    heavy = {"torch", "onnx", "onnxruntime", "sklearn", "optuna", "plotly", "numpy"}
    assert not loaded_by(HELP.format(words=words), tmp_path) & heavy


def test_help_is_quick(tmp_path: Path) -> None:
    """Its time on the processor: a busy machine does not count."""
    before = os.times()
    for _ in range(3):
        subprocess.run([sys.executable, "-m", "distill", "--help"], cwd=tmp_path, capture_output=True, check=True)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert spent / 3 < 0.5


def test_public_names_load_on_first_use(tmp_path: Path) -> None:
    found = loaded_by("import distill; assert distill.UserError; assert 'run' in distill.__all__", tmp_path)
    assert "torch" not in found
    assert all(hasattr(distill, name) for name in distill.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        distill.no_such_name  # noqa: B018


def test_tests_are_not_shipped() -> None:
    assert not (ROOT / "tests").exists()
