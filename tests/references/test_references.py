from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import task_samples as samples

from distill.errors import UserError
from distill.references.functions import call_user, load_reference, source_hash


@pytest.fixture(autouse=True)
def own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test starts in a folder of its own and leaves no module behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    samples.forget(tmp_path)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_may_import_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path / "train" / "shared_parts.py", "VALUE = 3")
    write(tmp_path / "train" / "mine_a.py", "from shared_parts import VALUE\ndef make(): return VALUE")
    assert load_reference("./train/mine_a.py:make")() == 3
    assert load_reference("mine_a.py:make", folder=tmp_path / "train")() == 3


def test_a_module_is_found_in_the_current_folder(tmp_path: Path) -> None:
    write(tmp_path / "my_pkg" / "__init__.py", "")
    write(tmp_path / "my_pkg" / "models.py", "class Zoo:\n    @staticmethod\n    def make(): return 4")
    assert load_reference("my_pkg.models:Zoo.make")() == 4


def test_a_file_is_loaded_once(tmp_path: Path) -> None:
    write(tmp_path / "mine_once.py", "class A: pass\ndef make(): return A")
    assert load_reference("./mine_once.py:make")() is load_reference("./mine_once.py:make")()
    assert load_reference("./mine_once.py:make")() is load_reference("mine_once:make")()


def test_two_files_of_one_name_stay_apart(tmp_path: Path) -> None:
    for folder, value in (("one", 1), ("two", 2)):
        write(tmp_path / folder / "mine_twin.py", f"def make(): return {value}")
    assert [load_reference(f"./{folder}/mine_twin.py:make")() for folder in ("one", "two")] == [1, 2]


def test_a_neighbour_of_a_taken_name_is_refused(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write(tmp_path / folder / "mine_user.py", "from mine_utils import VALUE\ndef make(): return VALUE")
        write(tmp_path / folder / "mine_utils.py", f"VALUE = {folder!r}")
    assert load_reference("./one/mine_user.py:make")() == "one"
    with pytest.raises(UserError, match=r"imports .*two/mine_utils.py, but the name 'mine_utils' is already taken"):
        load_reference("./two/mine_user.py:make")


def test_a_file_with_the_name_of_a_loaded_library_does_not_replace_it(tmp_path: Path) -> None:
    library = importlib.import_module("colorsys")
    write(tmp_path / "sub" / "colorsys.py", "def make(): return 'mine'")
    assert load_reference("./sub/colorsys.py:make")() == "mine"
    assert importlib.import_module("colorsys") is library


def test_the_users_module_names_stay_theirs(tmp_path: Path) -> None:
    code = (
        "import distill.benchmarks, distill.export, distill.tasks.base\n"
        "from distill.references.functions import load_reference as load\n"
    )
    for name in ("export", "benchmarks", "prune", "tests"):
        write(tmp_path / f"{name}.py", f"def make(): return 'my {name}'")
        write(tmp_path / f"user_{name}.py", f"from {name} import make")
        code += "".join(
            f"assert load({reference!r})() == 'my {name}'\n"
            for reference in (f"{name}:make", f"./user_{name}.py:make", f"./{name}.py:make")
        )
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": root, "PATH": ""},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("nothing", "expected pkg.mod:function"),
        (":f", "expected pkg.mod:function"),
        ("./absent.py:make", "no file .*absent.py"),
        ("./god.py:make", "did you mean 'good.py'"),
        ("./good.py:mak", "has no 'mak'; did you mean 'make'"),
        ("./good.py:VALUE", "is a int; expected a function"),
        ("no_such_pkg.models:make", "no module 'no_such_pkg'"),
        ("./raises.py:make", r"raised ValueError: first line \(.*raises.py:2\)"),
        ("./needs.py:make", "install 'not_installed_lib'"),
        ("./syntax.py:make", r"SyntaxError: .*syntax.py:1"),
        ("./exits.py:make", "SystemExit"),
        ("json.decoder:nothing", "has no 'nothing'"),
        ("./loop.py:make", "no file .*loop.py"),
        ("./ze\0ro.py:make", "no file .*ze"),
        ("~nobody-of-this-name/mine.py:make", "no file .*mine.py"),
        ("./huge.py:make", "huge.py is larger than"),
    ],
)
def test_what_goes_wrong_is_told_in_one_line(tmp_path: Path, reference: str, said: str) -> None:
    write(tmp_path / "good.py", "VALUE = 1\ndef make(): return 1")
    write(tmp_path / "raises.py", "def boom():\n    raise ValueError('first line\\nsecond')\nboom()")
    write(tmp_path / "needs.py", "import not_installed_lib")
    write(tmp_path / "syntax.py", "def make(:")
    write(tmp_path / "exits.py", "import sys\nsys.exit(3)")
    (tmp_path / "loop.py").symlink_to("loop.py")
    with (tmp_path / "huge.py").open("wb") as file:
        file.truncate(2**33)
    with pytest.raises(UserError, match=said) as caught:
        load_reference(reference, field="teacher.model")
    assert str(caught.value).startswith("teacher.model=")
    assert "\n" not in str(caught.value)


def test_a_file_that_failed_can_be_mended_and_loaded(tmp_path: Path) -> None:
    path = write(tmp_path / "mended.py", "raise ValueError")
    with pytest.raises(UserError):
        load_reference("./mended.py:make")
    write(path, "def make(): return 'well, a longer text'")
    assert load_reference("./mended.py:make")() == "well, a longer text"


def test_a_name_that_python_has_taken_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "json.py", "def make(): return 1")
    with pytest.raises(UserError, match=r"'json' is already taken"):
        load_reference("json:make")


def test_an_error_in_a_users_function_names_their_line(tmp_path: Path) -> None:
    write(tmp_path / "faulty.py", "def make():\n    import json\n    return json.loads('{')")
    with pytest.raises(UserError, match=r"make raised JSONDecodeError: .*\(.*faulty.py:3\)"):
        call_user(load_reference("./faulty.py:make"), "make")


def test_the_source_hash_follows_the_users_imports_only(tmp_path: Path) -> None:
    neighbour = write(tmp_path / "parts_b.py", "VALUE = 1")
    other = write(tmp_path / "unrelated.py", "x = 1")
    write(tmp_path / "mine_b.py", "import json\ndef make():\n    from parts_b import VALUE\n    return VALUE")
    first = source_hash("./mine_b.py:make")
    other.write_text("x = 2")
    assert source_hash("./mine_b.py:make") == first
    neighbour.write_text("VALUE = 2")
    assert source_hash("./mine_b.py:make") != first
    assert source_hash("mine_b:make") == source_hash("./mine_b.py:make")


def test_the_source_hash_follows_packages(tmp_path: Path) -> None:
    write(tmp_path / "pkg_c" / "__init__.py", "")
    inner = write(tmp_path / "pkg_c" / "inner.py", "A = 1")
    write(tmp_path / "pkg_c" / "data.py", "from . import inner\ndef make(): return inner.A")
    load_reference("pkg_c.data:make")
    first = source_hash("pkg_c.data:make")
    inner.write_text("A = 2")
    assert source_hash("pkg_c.data:make") != first
