"""What came of the verb `prune`, as plain data: the source of table, reports and JSON; and its folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from distill import files, interruptions
from distill.documents import plain, read_json
from distill.errors import Exit, UserError
from distill.intervals import Estimate
from distill.prune.record import PruneRecord
from distill.prune.sparse.sparsify import SparseRecord

RECORD = "prune.json"
FORMAT = "distill prune 1"
CHECKPOINT = ".checkpoint"
"""How the name of a file ends from which a training goes on."""
FILES = frozenset({"model.onnx", "model.safetensors", "model.json", RECORD, "report.md", "report.html"})
Status = Literal["done", "missed", "slower"]


@dataclass(frozen=True)
class Latency:
    """Both files, which took turns, in the number format that was timed: medians in seconds, and before over after."""

    target: str
    provider: str
    format: str
    batch: int
    threads: int
    before_s: float
    after_s: float
    speedup: Estimate
    session_pairs: int
    contended_share: float


@dataclass(frozen=True)
class Quality:
    """What became of the answers on rows: a measure before and after, or the share that changed.

    `measure` is what is measured with labels: accuracy, F1, R² or the user's own; `labelled` says whether it was.
    `drop` is absolute, with its interval; `apart` says whether these rows were kept from learning. `judged` says as
    what the outputs were judged, `remark` what makes the comparison prove little.
    """

    rows: int
    labelled: bool
    before: float | None
    after: float | None
    drop: Estimate
    apart: bool
    measure: str = "accuracy"
    judged: str = ""
    remark: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What was done and found. `why` is a sentence on `status`; only what is done is written.

    `unmeasured` says why nothing was timed; `file_bytes` are those of the float32 ONNX files before and after.
    """

    model: str
    command: str
    status: Status
    why: str
    target: str
    record: PruneRecord
    machine: Mapping[str, Any]
    file_bytes: tuple[int, int] | None = None
    latency: Latency | None = None
    unmeasured: str | None = None
    quality: Quality | None = None
    sparse: SparseRecord | None = None
    epochs: int = 0
    warnings: tuple[str, ...] = field(default=())

    @property
    def exit_code(self) -> Exit:
        """What the process ends with."""
        return Exit.OK if self.status == "done" else Exit.VERDICT_NO

    def to_json(self) -> str:
        """Write it down; what is not finite is null."""
        values = {"format": FORMAT, **plain(self)}
        values["record"]["achieved"] = self.record.achieved
        return json.dumps(values, indent=1, allow_nan=False) + "\n"


def require_place(out: Path, inputs: Iterable[Path]) -> None:
    """Find out before any work whether the folder can be written.

    A folder that is there has to be empty, or to hold nothing but an earlier output of this verb, which is replaced.

    Raises:
        UserError: it is a file, lies nowhere or where nothing may be written, or holds what would be lost.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UserError(f"--out {out}: is a {'link' if out.is_symlink() else 'file'}; give the name of a folder")
    why = files.why_closed(out.absolute().parent)
    if why is not None:
        raise UserError(f"--out {out}: {why}")
    if not out.exists():
        return
    if Path.cwd().is_relative_to(out.resolve()):
        raise UserError(f"--out {out}: is the current folder or holds it; give the name of a new folder")
    names = sorted(path.name for path in out.iterdir())
    strange = [name for name in names if name not in FILES]
    if strange or (names and not _is_ours(out / RECORD)):
        raise UserError(f"--out {out}: holds {(strange or names)[0]}, which is no output of prune; give a new folder")
    for path in inputs:
        if path.exists() and path.resolve().is_relative_to(out.resolve()):
            raise UserError(f"--out {out}: holds {path.name}, which is read; give a new folder")


@contextmanager
def work_folder(out: Path | None) -> Iterator[Path | None]:
    """Yield where trainings keep their state: a hidden folder beside ``out``, which only an interruption leaves.

    Raises:
        UserError: something else has its name.
    """
    if out is None:
        yield None
        return
    folder = out.absolute().with_name(f".{out.name}.work")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(f"{folder}: is no folder, and training keeps its state there; remove it")
    with ExitStack() as stack:
        stack.callback(_clear, folder)
        try:
            yield folder
        except KeyboardInterrupt:  # the same command goes on from there
            if any(folder.glob(f"*{CHECKPOINT}")):
                interruptions.REMAINS.append(folder)
                stack.pop_all()
            raise


def _clear(folder: Path) -> None:
    if folder.is_dir():
        files.sweep(folder)
        for path in folder.glob(f"*{CHECKPOINT}"):
            path.unlink()
        with suppress(OSError):  # what else lies in it is not ours
            folder.rmdir()


def _is_ours(path: Path) -> bool:
    try:
        document = read_json(path)
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and document.get("format") == FORMAT
