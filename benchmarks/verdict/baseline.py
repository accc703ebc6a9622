"""The life of a baseline: kept by a run that passed, replaced by none that failed, slower on purpose with a reason."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext, suppress
from pathlib import Path

from distill import files
from distill.benchmarks.parse import document
from distill.benchmarks.records import Report, save_reports
from distill.benchmarks.verdict.baseline_files import model_beside, replacing_model, settle
from distill.errors import NotComparableError, UserError

_HEX = 64


def require_own_place(path: Path, model: Path) -> None:
    """Refuse, before anything is measured, a place where saving would overwrite what no baseline of that name wrote.

    Raises:
        UserError: the path is not a .json, a folder stands in its way, or another file has the model's name.
    """
    if path.suffix != ".json":
        raise UserError(f"--save-baseline {path}: must end in .json; the model is kept beside it as .onnx")
    if path.is_dir():
        raise UserError(f"--save-baseline {path}: is a folder; give the name of a file")
    folder = path.with_suffix(".model")
    for place in (path, path.with_suffix(".onnx")):
        if place.exists() and not place.is_file():
            raise UserError(f"--save-baseline {path}: {place} is no regular file; choose another name")
    other = folder if folder.is_symlink() or (folder.exists() and not (folder / "model.onnx").is_file()) else None
    earlier = model_beside(path)
    if other is None and earlier is not None and not path.exists() and not earlier.samefile(model):
        other = earlier
    if other is not None:
        raise UserError(
            f"--save-baseline {path}: {other} is there already, and was not kept by it; choose another name"
        )


def save_baseline(path: Path, report: Report, model: Path) -> None:
    """Write the report of the measured file, and the file itself beside it, under one name.

    One takes the place of the other as a whole: whenever the process is killed, there is the old baseline or the new.

    Raises:
        UserError: the place is not its own, or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            with suppress(UserError, NotComparableError):  # damaged: it is replaced
                for measured in Report.load(path).models[-1:]:
                    settle(path, measured.facts.sha256)
        require_own_place(path, model)
        before = model_beside(path)
        is_kept = before is not None and before.samefile(model)
        with nullcontext() if is_kept else replacing_model(path, model):
            save_reports(path, [only_last(report)])
    except OSError as error:
        if files.disk_is_full(error):
            raise
        raise UserError(f"--save-baseline {path}: cannot be written ({error.strerror})") from error


def only_last(report: Report) -> Report:
    """Keep of a report what concerns its last file, the candidate, as if that had been measured alone."""
    if len(report.models) == 1:
        return dataclasses.replace(report, gates=())
    cases = []
    for case in report.cases:
        arm = len(case.rows) - 1
        pairs = [{**pair, **_only(pair, arm)} for pair in case.pairs]
        row = dataclasses.replace(case.rows[arm], ratio=None, quiet_ratio=None)
        cases.append(dataclasses.replace(case, arms=(0,), shapes=[case.shapes[arm]], rows=(row,), pairs=pairs))
    return dataclasses.replace(report, models=report.models[-1:], cases=tuple(cases), gates=())


def _only(pair: dict[str, object], arm: int) -> dict[str, object]:
    """Keep one arm of a session pair; its turns are paired among themselves."""
    turns = [[0, *turn[1:]] for turn in pair["turns"] if turn[0] == arm]  # type: ignore[attr-defined]
    turns = turns[: len(turns) // 2 * 2]
    fields = {key: [pair[key][arm]] for key in ("load_s", "finite", "calls")}  # type: ignore[index]
    whole = pair["end_to_end_s"]
    return {
        **fields,
        "first": 0,
        "end_to_end_s": [whole[arm]] if whole else [],  # type: ignore[index]
        "turns": turns,
        "throttled": [False] * (len(turns) // 2),
    }


def read_accepted(path: Path) -> dict[str, str]:
    """Read the list of files that may be slower: entries of `sha256` and `reason`, as YAML or JSON.

    Raises:
        UserError: the file is missing, or an entry lacks one of the two.
    """
    entries = document("--accept", path)[1]
    if entries is None:
        return {}
    if not isinstance(entries, list):
        raise UserError(f"--accept {path}: must be a list of entries with sha256 and reason")
    accepted = {}
    for number, entry in enumerate(entries, start=1):
        values = entry if isinstance(entry, dict) else {}
        sha256, reason = values.get("sha256"), values.get("reason")
        if not isinstance(sha256, str) or len(sha256) != _HEX or not isinstance(reason, str) or not reason.strip():
            raise UserError(f"--accept {path}: entry {number} must have a sha256 of {_HEX} digits and a reason")
        accepted[sha256.lower()] = reason.strip()
    return accepted
