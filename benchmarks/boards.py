"""Measuring on a board by hand: a bundle goes there, a result comes home and is judged like a local one."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from distill.documents import read_text
from distill.errors import NotMeasuredError, UserError

from . import remarks
from .bench import Options, case_of, feeds_of, model_of, named, settled, target_record
from .bundle import write_bundle
from .facts import Facts
from .gate import Ask, baseline_file, by_budget, require_same_inputs
from .jobs import ArmSpec, inspect_job, stored, time_job
from .judging import with_gate
from .machine import fingerprint, of_board
from .process import checked, read_result
from .records import Report
from .rule import Rule


def export(folder: Path, models: Sequence[str], options: Options, ask: Ask, baseline: Path | None) -> None:
    """Write a bundle that looks at every file and times them in turns; with a baseline, as a gate does.

    Raises:
        UserError: the folder is not empty, or a file is broken.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--export-runner {folder}: is not empty; give a new folder")
    paths = [Path(one) for one in models]
    if baseline is not None:
        paths.insert(0, baseline_file(baseline))
    options, facts = settled(paths, options), named(paths)
    if baseline is not None:
        require_same_inputs(facts[0], facts[1])
    gate = ask.rule if baseline is not None else None
    timing = options.timing
    if gate is not None:
        timing = dataclasses.replace(timing, pairs=max(gate.looks), gate=gate.for_runner())
    folder.mkdir(parents=True, exist_ok=True)
    jobs: list[dict[str, Any]] = []
    cases: list[dict[str, Any]] = []
    first = dataclasses.replace(options.target, threads=options.threads[0])
    with tempfile.TemporaryDirectory(prefix="distill-bundle-") as place:
        for batch in options.batches:
            arms = [ArmSpec(path, feeds_of(path, options, batch)) for path in paths]
            specs = stored(arms, options.target, Path(place, str(batch)))
            if batch == options.batches[0]:
                jobs += [inspect_job(spec, first) for spec in specs]
            for threads in options.threads:
                jobs.append(time_job(specs, dataclasses.replace(options.target, threads=threads), timing))
                shapes = [{name: list(value.shape) for name, value in arm.feeds.items()} for arm in arms]
                cases.append({"batch": batch, "threads": threads, "shapes": shapes})
        sent = {
            # Of what each answer will be, in order: of a file, or of a case.
            "answers": [*({"file": n} for n in range(len(facts))), *({"case": n} for n in range(len(cases)))],
            "facts": [dataclasses.asdict(one) for one in facts],
            "cases": cases,
            "target": target_record(options.target),
            "seed": timing.seed,
            "gated": baseline is not None,
            "tolerance": ask.rule.tolerance,
            "max_p50_s": ask.max_p50_s,
            "max_size_growth": ask.max_size_growth,
        }
        try:
            write_bundle(folder, {"task": "bundle", "jobs": jobs, "sent": sent})
        except BaseException:
            shutil.rmtree(folder)
            raise


def brought_home(path: Path) -> Report:
    """Read a board's result, and judge it by the rule that it was sent with.

    Raises:
        UserError: the file is missing. NotMeasuredError: it is half a file, or says what went wrong on the board.
    """
    try:
        text = read_text(path)
    except OSError as error:
        raise UserError(f"--import {path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise NotMeasuredError(f"--import {path}: is no result of runner.py ({error})") from error
    answer = checked(read_result(text, f"--import {path}:"), str(path))
    sent = answer.get("sent")
    if not sent or "board" not in answer:
        raise UserError(f"--import {path}: not the result of a bundle that --export-runner wrote")
    try:
        return _judged(path, sent, answer)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(
            f"--import {path}: a damaged result, or one of another version ({type(error).__name__}: {error})"
        ) from error


def _judged(path: Path, sent: dict[str, Any], answer: dict[str, Any]) -> Report:
    """Put a board's answers together as a local measurement is, and judge them by what was sent along."""
    facts = [Facts(**one) for one in sent["facts"]]
    models, cases = [], []
    for of, one in zip(sent["answers"], answer["answers"], strict=True):
        if "file" in of:
            about = facts[of["file"]]
            models.append(model_of(checked(one, f"{path}: {about.name}"), about, sent["target"]["provider"]))
        else:
            case = sent["cases"][of["case"]]
            done = checked(one, f"{path}: the timing at batch {case['batch']}, {case['threads']} thread(s)")
            cases.append(case_of(done, case["batch"], case["threads"], case["shapes"]))
    where = of_board(answer["board"])
    made = Report(
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=where,
        fingerprint=fingerprint(where),
        target=sent["target"],
        seed=sent["seed"],
        models=tuple(models),
        cases=tuple(cases),
        warnings=remarks.of_report(models, cases, where),
    )
    ask = Ask(
        rule=Rule(tolerance=sent["tolerance"]), max_p50_s=sent["max_p50_s"], max_size_growth=sent["max_size_growth"]
    )
    if sent["gated"]:
        return with_gate(made, ask.opened(f"{facts[-1].name} against {facts[0].name}", "duet"))
    return made if ask.max_p50_s is None else by_budget(made, ask, f"{facts[-1].name} by its budget")
