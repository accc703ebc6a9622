"""Measuring on a board by hand: a bundle goes there, a result comes home and is judged like a local one."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill import files, scratch
from distill.benchmarks.onnx_file.facts import Facts, read_facts
from distill.benchmarks.records import Report, blaming, report_of
from distill.benchmarks.timing.answers import sound_answer
from distill.benchmarks.timing.bundle import JOB, write_bundle
from distill.benchmarks.timing.jobs import ArmSpec, inspect_job, stored, time_job
from distill.benchmarks.timing.machine import of_board
from distill.benchmarks.timing.process import checked, read_result
from distill.benchmarks.verdict.bench import Options, case_of, feeds_of, model_of, named, report_on, settled
from distill.benchmarks.verdict.gate import Limits, baseline_file, by_budget, require_same_inputs
from distill.benchmarks.verdict.judging import with_gate
from distill.benchmarks.verdict.rule import Rule
from distill.documents import read_as, read_json, read_text
from distill.errors import NotMeasuredError, UserError

if TYPE_CHECKING:
    from distill.benchmarks.runner import Answer, Job


def export(folder: Path, models: Sequence[str], options: Options, limits: Limits, baseline: Path | None) -> None:
    """Write a bundle that looks at every file and times them in turns; with a baseline, as a gate does.

    Raises:
        UserError: the folder is not empty, or a file is broken.
    """
    if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--export-runner {folder}: is not empty; give a new folder")
    home = next(place for place in folder.absolute().parents if place.exists())
    if not home.is_dir() or not os.access(folder if folder.exists() else home, os.W_OK):
        raise UserError(f"--export-runner {folder}: no folder can be made in {home}; choose another place")
    paths = [Path(model) for model in models]
    if baseline is not None:
        paths.insert(0, baseline_file(baseline))
    options, facts = settled(paths, options), named(paths)
    if baseline is not None:
        require_same_inputs(facts[0], facts[1])
    gate = limits.rule if baseline is not None else None
    timing = options.timing
    if gate is not None:
        timing = dataclasses.replace(timing, pairs=max(gate.looks), gate=gate.for_runner())
    jobs: list[dict[str, Any]] = []
    cases: list[dict[str, Any]] = []
    first = dataclasses.replace(options.target, threads=options.threads[0])
    with scratch.folder("bundle") as place:
        for batch in options.batches:
            arms = [ArmSpec(path, feeds_of(path, options, batch)) for path in paths]
            specs = stored(arms, options.target, place / str(batch))
            if batch == options.batches[0]:
                jobs += [inspect_job(spec, first) for spec in specs]
            for threads in options.threads:
                jobs.append(time_job(specs, dataclasses.replace(options.target, threads=threads), timing))
                cases.append({"batch": batch, "threads": threads, "shapes": [arm.shapes for arm in arms]})
        sent = {
            # Of what each answer will be, in order: of a file, or of a case.
            "answers": [*({"file": n} for n in range(len(facts))), *({"case": n} for n in range(len(cases)))],
            "facts": [dataclasses.asdict(model) for model in facts],
            "cases": cases,
            **options.record(),
            "gated": baseline is not None,
            "tolerance": limits.rule.tolerance,
            "max_p50_s": limits.max_p50_s,
            "max_size_growth": limits.max_size_growth,
        }
        was_there = folder.exists()
        try:
            write_bundle(folder, {"task": "bundle", "jobs": jobs, "sent": sent})
        except BaseException:
            for left in list(folder.iterdir()) if was_there else [folder]:
                files.remove(left)
            raise


def import_result(path: Path) -> Report:
    """Read a board's result, and judge it by what this side knows: a result can loosen no limit.

    Beside the job of its bundle (as `--export-runner` wrote it) the result has to be of that very job, which then says
    what was measured and by which limits it is judged. Alone it is believed what was measured, with a warning, and its
    limits hold only where they are stricter than the default.

    Raises:
        UserError: the file is missing, damaged, or of another bundle than the one that it lies in.
        NotMeasuredError: it is half a file, or says what went wrong on the board.
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
    job = path.parent / JOB
    with blaming(f"--import {path}: a damaged result, or one of another version"):
        if job.is_file():
            sent = _own_job(path, job, sent)
            return _judged(path, sent, answer)
        default, allowed = Rule().tolerance, float(sent["tolerance"])
        # What is no number is no less than the default.
        report = _judged(path, {**sent, "tolerance": allowed if allowed < default else default}, answer)
    warnings = [
        "judged without its bundle: that these are the files that were sent is the board's word; put "
        f"{path.name} into the folder that --export-runner wrote"
    ]
    if not allowed <= default:
        warnings.append(
            f"{path.name} would allow a slow-down of {100 * allowed:g} %, which is not its to say: "
            f"{100 * default:g} % was allowed, unless --max-regression says otherwise"
        )
    return dataclasses.replace(report, warnings=(*report.warnings, *warnings))


def _own_job(path: Path, job: Path, sent: object) -> Job:
    """Return what was sent, as the bundle on this side has it, once the result and the bundle's files agree with it."""
    stored = read_json(job)
    own: dict[str, Any] = stored["sent"]
    if own != sent:
        raise UserError(f"--import {path}: is the result of another bundle than that of {job}; name the one it is of")
    home = job.parent.resolve()
    for of, inner in zip(own["answers"], stored["jobs"], strict=True):
        if "file" in of:
            model, stored_facts = job.parent / inner["arms"][0]["model"], own["facts"][of["file"]]
            if (
                not Path(os.path.realpath(model)).is_relative_to(home)
                or read_facts(model).sha256 != stored_facts["sha256"]
            ):
                raise UserError(f"--import {path}: {model} is not the file that was sent (another sha256)")
    return own


def _judged(path: Path, sent: Job, answer: Answer) -> Report:
    """Put a board's answers together as a local measurement is, and judge them by what was sent."""
    facts = read_as(list[Facts], sent["facts"], place="sent.facts")
    models, cases = [], []
    for of, entry in zip(sent["answers"], answer["answers"], strict=True):
        if "file" in of:
            about = facts[of["file"]]
            looked_at = sound_answer({"task": "inspect"}, checked(entry, f"{path}: {about.name}"))
            models.append(model_of(looked_at, about, sent["target"]["provider"]))
        else:
            case = sent["cases"][of["case"]]
            timing = checked(entry, f"{path}: the timing at batch {case['batch']}, {case['threads']} thread(s)")
            timing = sound_answer({"task": "time", "arms": case["shapes"]}, timing)
            cases.append(case_of(timing, case["batch"], case["threads"], case["shapes"]))
    report = report_on(
        models,
        cases,
        of_board(sound_answer({"task": "bundle"}, answer)["board"]),
        target=sent["target"],
        seed=sent["seed"],
    )
    limits = Limits(
        rule=Rule(tolerance=sent["tolerance"]), max_p50_s=sent["max_p50_s"], max_size_growth=sent["max_size_growth"]
    )
    if sent["gated"]:
        report = with_gate(report, limits.opened(f"{facts[-1].name} against {facts[0].name}", "duet"))
    elif limits.max_p50_s is not None:
        report = by_budget(report, limits, f"{facts[-1].name} by its budget")
    # Read again as any stored report is, which looks at every field.
    return report_of(dataclasses.asdict(report))
