"""The commands of the README and the docs run, in order, in one folder; an HTML comment before a block says how.

``skip``: not at all (it runs these tests). ``file NAME``: saved under that name. ``run``: as it stands. ``smoke``:
every `distill run` with --smoke and the options that follow. ``config``: a `distill run` or `validate` only reads its
configuration. ``quantize``: on a student's graph and rows of noise. ``prune``: on rows of noise,
untimed; of a model that a library has only the options are read. ``bench`` and ``gate``: timed for a moment.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill.benchmarks import make_inputs

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ("README.md", *(f"docs/{name}.md" for name in ("run", "data", "python", "prune", "quantize", "bench")))
"""In the order in which a reader follows them: a page may use what an earlier one left in the folder."""
OTHERS = tuple(
    sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md") if f"docs/{path.name}" not in PAGES)
)
BLOCK = re.compile(
    r"(?:<!-- test: (?P<how>.+?) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
INSTALL = "python3 -m venv .venv && . .venv/bin/activate && pip install -c constraints.txt . && python -m distill run"
TEST = (
    "python3 -m venv .venv && . .venv/bin/activate && pip install -c constraints.txt -e '.[test]' "
    "&& python -m pytest -n auto --maxprocesses 4 --dist loadfile"
)


@dataclass(frozen=True)
class Block:
    """A fenced block and the words of its comment."""

    how: tuple[str, ...]
    language: str
    text: str


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str = "README.md") -> list[Block]:
    return [Block(tuple((m["how"] or "").split()), m["language"], m["text"]) for m in BLOCK.finditer(read(page))]


def test_it_opens_with_the_two_commands() -> None:
    consoles = [block.text for block in blocks() if block.language == "console"]
    assert consoles[:2] == [f"{INSTALL}\n", f"{TEST}\n"]


@pytest.mark.parametrize("page", [*PAGES, *OTHERS])
def test_every_block_says_how_it_is_tested(page: str) -> None:
    unmarked = [block.text for block in blocks(page) if not block.how]
    assert not unmarked
    assert {block.language for block in blocks(page)} <= {"console", "yaml", "python"}
    assert page in PAGES or all(block.how == ("skip",) for block in blocks(page))


def test_the_readme_is_short() -> None:
    assert README.count("\n") <= 250


def test_the_tables_name_what_there_is() -> None:
    from distill.benchmarks import TARGETS
    from distill.config.loading import schema
    from distill.config.presets import presets
    from distill.errors import Exit
    from distill.models import MODELS

    page = read("docs/run.md")
    for name in (*presets(), *TARGETS):
        assert re.search(rf"^\| `{name}`[ |]", page, re.MULTILINE), name
    for name in (*MODELS, *set(schema()["properties"]) - {"extends"}):
        assert f"`{name}`" in page, name
    for code in Exit:
        assert re.search(rf"^\| {code.value} \|", README, re.MULTILINE) or f"{code.value} (" in README, code


def anchors(text: str) -> set[str]:
    """Return what GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *OTHERS])
def test_links_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", read(page)):
        path, _, anchor = link.partition("#")
        place = (ROOT / page).parent / path if path else ROOT / page
        assert link.startswith("https://") or place.exists(), link
        assert link.startswith("https://") or not anchor or anchor in anchors(place.read_text(encoding="utf-8")), link


@pytest.mark.usefixtures("own_imports")
def test_commands_run_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # Smoke runs are too small to share out: threads would only wait for each other.
    for module in ("pipeline", "estimate.costs"):
        monkeypatch.setattr(f"distill.{module}.usable_threads", lambda: 1)
    for block in (block for page in PAGES for block in blocks(page)):
        mode, *words = block.how
        if mode == "file":
            Path(words[0]).write_text(block.text, encoding="utf-8")
        elif mode != "skip" and block.language == "console":
            for line in block.text.splitlines():
                _run_line(line.rpartition(" && ")[2], mode, words)
        elif mode != "skip":
            _run_python(block.text, smoke=mode == "smoke")
    # What a reader who followed it has in the end.
    assert {path.parts[1].partition("-")[0] for path in Path().glob("runs/*/deploy/model.onnx")} >= {
        "digits",
        "compressed",
        "motor",
    }
    assert all(Path(name).is_file() for name in ("gate.json", "gate.xml", "gate/main.json", "distill.schema.json"))


def _run_line(line: str, mode: str, extra: Sequence[str]) -> None:
    line, _, into = line.partition(" > ")
    words = shlex.split(line)
    if words[0] == "cp":
        (source,) = Path().glob(words[1])
        shutil.copyfile(source, words[2])
        return
    assert words[:3] == ["python", "-m", "distill"], line
    verb, rest = words[3], words[4:]
    if verb == "bench":
        _bench(mode, rest)
        return
    if mode == "quantize":
        (source,) = sorted(Path().glob("runs/digits-*/stages/03-student/core.onnx"))[-1:]
        shutil.copyfile(source, "model.onnx")
        np.savez("rows.npz", **make_inputs("model.onnx", 64))
        _distill(verb, *rest, "--pairs", "2", "--seconds", "0.02", "--max-drop", "1")
        return
    if mode == "prune":
        _prune(rest)
        return
    if mode == "config" and verb in ("run", "validate"):
        _read_config(verb, rest)
        return
    told = _distill(verb, *rest, *(["--smoke", *extra] if verb == "run" and mode == "smoke" else []))
    if into:
        Path(into).write_text(told, encoding="utf-8")


def _bench(mode: str, words: Sequence[str]) -> None:
    """Time for a moment; a gate is run on files of one's own, and `*` stands for what a shell would find."""
    found = [str(path) for word in words for path in (sorted(Path().glob(word))[-1:] if "*" in word else [word])]
    if mode == "gate":
        for name in ("old.onnx", "new.onnx"):
            (source,) = sorted(Path().glob("runs/digits-*/deploy/model.onnx"))[-1:]
            shutil.copyfile(source, name)
    if "--rejudge" in found:
        _distill("bench", *found)
        return
    code = 3 if "--strict" in found else 0
    timed = ["--time-identical"] if "--baseline" in found else []
    _distill("bench", *found, "--seconds", "0.02", "--pairs", "2", *timed, code=code)


def _prune(words: Sequence[str]) -> None:
    """Prune on noise, and time nothing; importing a library of models would take longer than all else here."""
    from distill.single_stage.options import PruneOptions
    from distill.single_stage.pruning.request import read_request

    def stop(options: PruneOptions, progress: Any = None) -> None:
        read_request(options)
        raise SystemExit(0)

    noise = np.random.default_rng(0).normal
    np.savez("signals.npz", signal=noise(size=(40, 1, 128)).astype("f"), load=noise(size=(40, 1)).astype("f"))
    with pytest.MonkeyPatch.context() as patch:
        if any(word.startswith("timm:") for word in words):
            patch.setattr("distill.single_stage.prune_model.run", stop)
        _distill("prune", *words, "--quiet", "--no-timing")


def _read_config(verb: str, words: Sequence[str]) -> None:
    """Let the command line read its options and the configuration, and go no further."""
    from distill.config.loading import load_config

    class ReadError(Exception):
        pass

    def stop(config: Any, *rest: Any, overrides: Sequence[str] = (), **others: Any) -> None:
        load_config(config, overrides)
        raise SystemExit(0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distill.pipeline.run", stop)
        patch.setattr("distill.estimate.forecast.estimate", stop)
        _distill(verb, *words)


def _distill(*words: str, code: int = 0) -> str:
    from distill.cli import main

    told = io.StringIO()
    with pytest.raises(SystemExit) as ended, contextlib.redirect_stdout(told):
        main(words)
    assert ended.value.code == code, (words, told.getvalue())
    return told.getvalue()


def _run_python(text: str, *, smoke: bool) -> None:
    import distill
    from distill.pipeline import run

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr(distill, "run", functools.partial(run, smoke=smoke), raising=False)
        patch.setattr(sys, "argv", ["example.py"])
        exec(compile(text, "README.md", "exec"), {"__name__": "__main__"})
