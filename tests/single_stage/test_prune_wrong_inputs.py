"""Everything that a user of `prune` can get wrong: the exit code, words that help, and nothing lost or left over."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prune_nets import SHAPE, forget, rows, settle, skip_exports, typed, use_a_clock

from distill.errors import UserError
from distill.prune.reload import load, save
from distill.references.models import build
from distill.single_stage.inputs import told_of

MAKE = ("--model", "net.py:make")
OUT = ("--out", "out")
HALF = ("--ratio", 0.5)
DATA = ("--data", "bad.npz")
Prepare = Callable[[], Any]


@dataclass(frozen=True)
class Wrong:
    """What is written first, what is said, and words that the message must hold."""

    name: str
    says: tuple[str, ...]
    words: tuple[Any, ...]
    prepare: Prepare | None = None
    code: int = 2


def option(name: str, says: tuple[str, ...], *words: Any, **more: Any) -> Wrong:
    return Wrong(f"option-{name}", says, (*MAKE, *OUT, *SHAPE, *words), **more)


def model(name: str, says: tuple[str, ...], reference: str, *words: Any, **more: Any) -> Wrong:
    return Wrong(f"model-{name}", says, ("--model", reference, *OUT, *SHAPE, *HALF, *words), **more)


def shape(name: str, says: tuple[str, ...], *said: str) -> Wrong:
    given = [word for one in said for word in ("--input", one)]
    return Wrong(f"input-{name}", says, (*MAKE, *OUT, *HALF, *given))


def data(name: str, says: tuple[str, ...], *words: Any, **arrays: Any) -> Wrong:
    def write() -> None:
        np.savez("bad.npz", **arrays)

    return Wrong(f"data-{name}", says, (*MAKE, *OUT, *HALF, *DATA, *words), write)


def out(name: str, says: tuple[str, ...], prepare: Prepare, place: str = "there") -> Wrong:
    return Wrong(f"out-{name}", says, (*MAKE, *SHAPE, *HALF, "--out", place), prepare)


def weights(name: str, says: tuple[str, ...], prepare: Prepare) -> Wrong:
    return Wrong(f"weights-{name}", says, (*MAKE, *OUT, *SHAPE, *HALF, "--weights", "w.pt"), prepare)


def strange_folder() -> None:
    Path("there").mkdir()
    Path("there/notes.txt").write_text("mine")


def foreign_record() -> None:
    Path("there").mkdir()
    Path("there/prune.json").write_text('{"format": "another"}')


FOREIGN = {"a": torch.ones(1)}
SOME, KINDS = rows(6), np.array([0, 1, 2, 3, 0, 1])
EMPTY, BROKEN = rows(0), np.where(np.arange(6)[:, None, None, None] == 2, np.nan, SOME).astype(np.float32)
CASES = (
    option("ratio above one", ("--ratio 1.2", "less than 1"), "--ratio", 1.2),
    option("ratio below nothing", ("--ratio -0.1",), "--ratio", -0.1),
    option("ratio that empties a layer", ("ratio=0.9 is above max_ratio=0.7", "raise max_ratio"), "--ratio", 0.9),
    option("layers emptied", ("--max-ratio 1", "less than 1"), *HALF, "--max-ratio", 1),
    option("two targets", ("--ratio and --macs: give one",), *HALF, "--macs", 0.5),
    option("no target", ("say how much is to go", "--macs 0.5", "--speedup 2")),
    option("nothing to remove", ("--ratio 0: removes nothing",), "--ratio", 0),
    option("nothing faster", ("--speedup 1: removes nothing",), "--speedup", 1),
    option("slower", ("--speedup 0.5",), "--speedup", 0.5),
    option("macs above all", ("--macs 2.0",), "--macs", 2),
    option("macs that are no number", ("--macs",), "--macs", "half"),
    option("macs that are NaN", ("--macs nan",), "--macs", "nan"),
    option("unknown importance", ("--importance best", "taylor"), *HALF, "--importance", "best"),
    option("taylor without data", ("--importance taylor: needs --data",), *HALF, "--importance", "taylor"),
    option("epochs without data", ("--epochs: needs --data",), *HALF, "--epochs", 3),
    option("labels without data", ("--labels: needs --data",), *HALF, "--labels", "y"),
    option("pattern", ("--sparsity 4:2", "2:4"), *HALF, "--sparsity", "4:2"),
    option("sparsity above one", ("--sparsity 1.5",), *HALF, "--sparsity", "1.5"),
    option("unknown module", ("--ignore", "no module 'head'", "its modules are"), *HALF, "--ignore", "head"),
    option("the output asked for", ("--only",), *HALF, "--only", "7"),
    option("format", ("--format int3", "float32 or int8"), *HALF, "--format", "int3"),
    option("target", ("target='toaster'", "x86"), *HALF, "--target", "toaster"),
    option("depth", ("--depth deep", "auto"), *HALF, "--depth", "deep"),
    option("steps", ("--steps 99",), *HALF, "--steps", 99),
    option("device", ("--device tpu",), *HALF, "--device", "tpu"),
    option("speed that nothing times", ("--speedup and --no-timing",), "--speedup", 2, "--no-timing"),
    option("argument without a value", ("--arg width", "name=value"), *HALF, "--arg", "width"),
    option("target far away", ("--speedup 2", "the target is arm"), "--speedup", 2, "--target", "arm", code=5),
    option("learning rate", ("--learning-rate -1",), *HALF, "--learning-rate", -1),
    model("no reference", ("--model resnet18: no such model", "timm:NAME"), "resnet18"),
    model("no file", ("--model none.py:make: no file", "none.py"), "none.py:make"),
    model("no module", ("no module 'nowhere'",), "nowhere:make"),
    model("no function", ("net.py has no 'mak'", "did you mean 'make'?"), "net.py:mak"),
    model("a number", ("'NUMBER' is a int; expected a function",), "net.py:NUMBER"),
    model("no module returned", ("returns list", "torch.nn.Module"), "net.py:no_module"),
    model("argument missing", ("called with no arguments", "classes"), "net.py:needs"),
    model("argument unknown", ("depth=3", "unexpected keyword"), "net.py:make", "--arg", "depth=3"),
    model("fails", ("OSError: no weights here", "net.py:"), "net.py:fails"),
    model("TorchScript", ("is TorchScript", "nn.Module that it was made from"), "net.py:scripted"),
    model("no gradient", ("torch.no_grad()",), "net.py:Blind", "--no-timing"),
    model("no logits", ("returns a tuple of 2", "--logits"), "net.py:Boxes"),
    model("logits elsewhere", ("holds no tensor 'scores'", "--logits"), "net.py:Boxes", "--logits", "scores"),
    model("NaN weights", ("NaN or infinite", "its weight", "holds NaN"), "net.py:broken"),
    model("too narrow", ("nothing was removed", "round_to=8"), "net.py:Thin", "--no-timing", code=1),
    shape("unknown", ("--input 3,32,32", "--data")),
    shape("wrong", ("forward fails: ", "was called with input=float32 [2, 1, 8, 8]", "in its layer "), "1,8,8"),
    shape("no numbers", ("--input big", "3,224,224"), "big"),
    shape("beyond any memory", ("--input 9999999999,9999999999", "too large"), "9999999999,9999999999"),
    shape("nothing", ("--input 0,8,8",), "0,8,8"),
    shape("names unknown", ("does not take picture",), "picture=3,8,8", "b=2"),
    shape("names missing", ("each needs its name",), "3,8,8", "2"),
    data("no rows", ("bad.npz: has rows", "two at least"), input=EMPTY),
    data("lengths differ", ("same number",), input=SOME, y=KINDS[:3]),
    data("float64", ("is float64", ".astype('float32')"), input=SOME.astype(np.float64)),
    data("NaN", ("first in row 2",), input=BROKEN),
    data("other shapes", ("was called with input=float32 [6, 2, 8, 8]",), input=SOME[:, :2]),
    data("labels unknown", ("--labels kind", "not in the data"), "--labels", "kind", input=SOME),
    data("labels of no class", ("go from 0 to 9", "classes 0 to 3"), input=SOME, y=KINDS * 3),
    data("labels one-hot", ("must be class numbers",), input=SOME, y=np.eye(4)[KINDS]),
    data("an input too many", ("does not take",), input=SOME, other=SOME),
    data("shape said twice", ("--input 3,8,8: the rows",), *SHAPE, input=SOME),
    Wrong("data-missing", ("--data none.npz", "cannot be read"), (*MAKE, *OUT, *HALF, "--data", "none.npz")),
    Wrong("data-text", ("--data net.py",), (*MAKE, *OUT, *HALF, "--data", "net.py")),
    out("a file", ("--out there: is a file",), lambda: Path("there").write_text("mine")),
    out("a folder in use", ("--out there: holds notes.txt",), strange_folder),
    out("a foreign record", ("--out there: holds prune.json",), foreign_record),
    out("the current folder", ("--out .: is the current folder",), lambda: None, "."),
    out("nowhere", ("does not exist; make it first",), lambda: None, "no/where"),
    weights("missing", ("--weights w.pt: no such file",), lambda: None),
    weights("of another", ("--weights w.pt: weights of another model",), lambda: torch.save(FOREIGN, "w.pt")),
    weights("pickled", ("besides tensors, and nothing is unpickled",), lambda: torch.save(Wrong, "w.pt")),
)  # fmt: skip


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give the current folder, and a folder for what passes; nothing is exported, which takes seconds."""
    folder = tmp_path / "place"
    for one in (folder, tmp_path / "passing"):
        one.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "passing"))
    skip_exports(monkeypatch)
    settle(folder, monkeypatch)
    yield folder
    forget()
    assert not list((tmp_path / "passing").glob("distill*"))


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder but what Python and the cache of times leave."""
    found = (one for one in sorted(folder.rglob("*")) if one.is_file())
    return {
        str(one.relative_to(folder)): one.read_bytes() for one in found if not {"__pycache__", "cache"} & {*one.parts}
    }


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_what_is_wrong_is_told_and_nothing_is_lost(case: Wrong, place: Path, capsys: Any) -> None:
    if case.prepare is not None:
        case.prepare()
    before = contents(place)
    code = typed(*case.words)
    told, err = capsys.readouterr()
    assert code == case.code, err
    said = " ".join((err if case.code != 1 else told).split())
    assert [word for word in case.says if word not in said] == [], said
    assert "Traceback" not in err
    assert (told == "") is (case.code != 1)
    assert contents(place) == before


def test_the_corpus_is_large_and_its_names_differ() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 60


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--macs", 0.01), "macs=0.01 cannot be reached"),
        (("--parameters", 0.01), "parameters=0.01 cannot be reached"),
        (("--speedup", 50), "speedup=50 cannot be reached"),
    ],
)
def test_what_cannot_be_reached_names_the_best_that_can(
    words: tuple[Any, ...], says: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    use_a_clock(monkeypatch)
    before = contents(place)
    assert typed(*MAKE, *OUT, *SHAPE, *words) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert says in said
    assert "the best is " in said or "the least that can be left is " in said
    assert "out was not written" in said
    assert contents(place) == before


def test_a_model_that_differs_from_build_to_build_is_refused(place: Path, capsys: Any) -> None:
    before = contents(place)
    assert typed("--model", "net.py:Restless", *OUT, *SHAPE, *HALF, "--no-timing") == 2
    assert "values that are no parameters or buffers" in capsys.readouterr().err
    assert contents(place) == before


@pytest.mark.parametrize("where", ["distill.single_stage.prune_model.prune_channels", "distill.files.replace_folder"])
def test_ctrl_c_leaves_nothing(where: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    before = contents(place)
    monkeypatch.setattr(where, interrupt)
    assert typed(*MAKE, *OUT, *SHAPE, *HALF, "--no-timing") == 130
    assert "interrupted" in capsys.readouterr().err
    assert contents(place) == before


def test_an_earlier_output_survives_an_interrupted_one(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (*MAKE, *OUT, *SHAPE, "--no-timing")
    assert typed(*words, *HALF) == 0
    before = contents(place)

    def stumble(*_: Path) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr("distill.files._exchanged", stumble)
    assert typed(*words, "--ratio", 0.25) == 130
    assert contents(place) == before


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("distill.references.libraries.importlib.import_module", missing)
    assert typed("--model", "timm:resnet18", *OUT, *HALF) == 2
    assert "timm is not installed; pip install timm" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("model.json", "{", "is damaged"),
        ("model.json", "{}", "describes no pruned model"),
        ("model.json", '{"format": "distill pruned model 1"}', "no arguments, reference, structure"),
        ("model.safetensors", "no", "is no safetensors file"),
        ("model.json", None, "cannot be read"),
    ],
)
def test_what_cannot_be_loaded_says_why(name: str, text: str | None, says: str, place: Path) -> None:
    save(place, build("net.py:make"), "net.py:make", {})
    if text is None:
        Path(name).unlink()
    else:
        Path(name).write_text(text)
    with pytest.raises(UserError, match=says):
        load(place, trust="net.py:make")
    save(place, build("net.py:make"), "net.py:make", {})
    with pytest.raises(UserError, match="of another model"):
        load(place, "net.py:Blocks")


def test_an_error_calls_settings_by_their_options() -> None:
    with pytest.raises(UserError, match=r"^--learning-rate=0\.1: the loss became nan"), told_of("net.py:make"):
        raise UserError("prune.learning_rate=0.1: the loss became nan")
