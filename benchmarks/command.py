"""The verb `bench`: from the words of the command line to measurements, and from those to what is written."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distill.errors import Exit, UserError

from . import boards, manifest, runner
from .annotations import workflow_commands
from .baseline import read_accepted, save_baseline
from .bench import Options, bench
from .gate import Ask, accept, by_budget, gate, no_baseline, rejudge
from .jobs import Timing
from .junit import junit
from .markdown import summary
from .records import Report, load_reports, save_reports, to_json
from .rule import Rule
from .target import Target, resolve_target, target_of_provider
from .verdicts import exit_code
from .words import counts, fraction, named_values, read_npz, sizes


@dataclass(frozen=True, kw_only=True)
class Words:
    """What was said on the command line, as it was said."""

    models: tuple[str, ...] = ()
    batch: str = "1"
    threads: str = "1"
    dim: tuple[str, ...] = ()
    inputs: Path | None = None
    target: str | None = None
    provider: str | None = None
    provider_option: tuple[str, ...] = ()
    pairs: int = 6
    seconds: float = 1.0
    seed: int = 0
    timeout: float | None = None
    baseline: Path | None = None
    save_baseline: Path | None = None
    release_baseline: Path | None = None
    max_regression: str = "5%"
    max_p50_ms: float | None = None
    max_size_growth: str | None = None
    accept: Path | None = None
    strict: bool = False
    if_incomparable: str = "fail"
    baseline_python: Path | None = None
    time_identical: bool = False
    manifest: Path | None = None
    shard: str | None = None
    merge: tuple[Path, ...] = ()
    measure: str | None = None
    export_runner: Path | None = None
    import_: tuple[Path, ...] = ()
    rejudge: Path | None = None
    out: Path | None = None
    junit: Path | None = None
    summary: Path | None = None
    as_json: bool = False


def run(words: Words) -> Exit:
    """Do what was asked for; returns the exit code.

    Raises UserError, NotComparableError and NotMeasuredError, whose messages name the option or the file.
    """
    _require_one_task(words)
    if words.if_incomparable not in ("fail", "warn"):
        raise UserError(f"--if-incomparable {words.if_incomparable}: must be fail or warn")
    if words.export_runner is not None:
        boards.export(words.export_runner, words.models, _options(words), _ask(words), words.baseline)
        print(f"wrote {words.export_runner}; there, `python3 runner.py` writes result.json, which --import reads")
        return Exit.OK
    reports = _reports(words)
    code = exit_code(
        [one for report in reports for one in report.gates],
        strict=words.strict,
        incomparable_ok=words.if_incomparable == "warn",
    )
    if words.save_baseline is not None:
        _keep(words, reports, code)
    _tell(words, reports)
    return code


def _require_one_task(words: Words) -> None:
    """Refuse words that do not go together, or that ask for nothing."""
    tasks = {
        "MODEL": bool(words.models),
        "--manifest": words.manifest is not None,
        "--merge": bool(words.merge),
        "--import": bool(words.import_),
        "--rejudge": words.rejudge is not None,
    }
    asked = [name for name, there in tasks.items() if there]
    if len(asked) != 1:
        found = " and ".join(asked) if asked else "none"
        raise UserError(f"bench: give one of {', '.join(tasks)}; {found} was given")
    gated = words.baseline is not None or words.release_baseline is not None
    if gated and asked == ["MODEL"] and len(words.models) != 1:
        raise UserError(f"--baseline: gates one model, {len(words.models)} were given; use --manifest for many")
    if gated and asked != ["MODEL"]:
        raise UserError(f"--baseline: goes with a MODEL, not with {asked[0]}")
    if words.shard is not None and words.manifest is None:
        raise UserError("--shard: goes with --manifest")
    if words.baseline_python is not None and words.baseline is None:
        raise UserError("--baseline-python: goes with --baseline")
    if words.save_baseline is not None and (asked != ["MODEL"] or len(words.models) != 1):
        raise UserError("--save-baseline: keeps one MODEL")


def _reports(words: Words) -> list[Report]:
    """Measure, or read what was measured."""
    if words.rejudge is not None:
        rule = Rule(tolerance=fraction("--max-regression", words.max_regression))
        return [rejudge(stored, rule) for stored in load_reports(words.rejudge)]
    if words.merge:
        return manifest.concluded([one for path in words.merge for one in load_reports(path)])
    if words.import_:
        return [boards.brought_home(path) for path in words.import_]
    options, ask = _options(words), _ask(words)
    if words.manifest is not None:
        rows = manifest.read(words.manifest, options, ask)
        return manifest.run(rows, words.shard, say=lambda text: print(text, file=sys.stderr))
    if words.baseline is None and words.release_baseline is None:
        return [_budgeted(bench(words.models, options), words, ask)]
    reports = []
    for name, path in (("baseline", words.baseline), ("the release baseline", words.release_baseline)):
        if path is not None:
            made = _gated(words.models[0], path, options, ask, name)
            reports.append(accept(made, ask.accepted) if name == "baseline" else made)
    return reports


def _gated(model: str, path: Path, options: Options, ask: Ask, name: str) -> Report:
    if not path.exists():
        return no_baseline(model, path, options, ask, name)
    return gate(model, path, options, ask, name=name)


def _budgeted(report: Report, words: Words, ask: Ask) -> Report:
    """Judge a measurement without a baseline by its budget alone, where there is one."""
    return report if words.max_p50_ms is None else by_budget(report, ask)


def _options(words: Words) -> Options:
    target = _target(words)
    commands = {}
    if words.baseline_python is not None:
        if not words.baseline_python.exists():
            raise UserError(f"--baseline-python {words.baseline_python}: does not exist")
        commands = {0: (str(words.baseline_python), str(Path(runner.__file__).resolve()), "--serve")}
    return Options(
        target=target,
        batches=counts("--batch", words.batch),
        threads=counts("--threads", words.threads),
        timing=Timing(pairs=words.pairs, seconds_per_pair=words.seconds, seed=words.seed, timeout_s=words.timeout),
        dims=sizes("--dim", words.dim),
        given=read_npz(words.inputs) if words.inputs is not None else {},
        commands=commands,
    )


def _target(words: Words) -> Target:
    options = named_values("--provider-option", words.provider_option)
    if words.provider is not None and words.target is not None:
        raise UserError("--provider: give it or --target, not both")
    made = target_of_provider(words.provider) if words.provider is not None else resolve_target(words.target)
    return dataclasses.replace(made, measure=words.measure, options=tuple(options.items()))


def _ask(words: Words) -> Ask:
    growth = words.max_size_growth
    return Ask(
        rule=Rule(tolerance=fraction("--max-regression", words.max_regression)),
        max_size_growth=None if growth is None else fraction("--max-size-growth", growth),
        max_p50_s=None if words.max_p50_ms is None else words.max_p50_ms / 1000,
        accepted={} if words.accept is None else read_accepted(words.accept),
        time_identical=words.time_identical,
    )


def _keep(words: Words, reports: Sequence[Report], code: Exit) -> None:
    """Keep the measurement as a baseline, unless a verdict speaks against it."""
    assert words.save_baseline is not None
    if code in (Exit.VERDICT_NO, Exit.NOT_MEASURED, Exit.NOT_COMPARABLE):
        print(f"--save-baseline {words.save_baseline}: left as it was, since the gate did not pass", file=sys.stderr)
        return
    save_baseline(words.save_baseline, reports[0], Path(words.models[0]))


def _tell(words: Words, reports: Sequence[Report]) -> None:
    """Print and write what was found, in every form that was asked for."""
    if words.out is not None:
        save_reports(words.out, reports)
    if words.junit is not None:
        words.junit.parent.mkdir(parents=True, exist_ok=True)
        words.junit.write_text(junit(reports), encoding="utf-8")
    place = words.summary or (
        Path(os.environ["GITHUB_STEP_SUMMARY"]) if os.environ.get("GITHUB_STEP_SUMMARY") else None
    )
    if place is not None:
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("a", encoding="utf-8") as file:
            file.write("\n".join(summary(one) for one in reports))
    if os.environ.get("GITHUB_ACTIONS") == "true":
        # On standard error when JSON goes to standard output: GitHub reads both.
        for line in workflow_commands(reports):
            print(line, file=sys.stderr if words.as_json else sys.stdout)
    if words.as_json:
        sys.stdout.write(to_json(reports))
        return
    from rich.console import Console

    from .table import render

    console = Console(highlight=False)
    for one in reports:
        console.print(render(one, console.width))
