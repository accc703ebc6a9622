"""What the verb `bench` does: from its options to measurements and verdicts."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from distill import clean
from distill.benchmarks import runner
from distill.benchmarks.parse import counts, named_values, read_npz, sizes
from distill.benchmarks.records import Part, Report, blaming, load_part
from distill.benchmarks.target import Target, resolve_target, target_of_provider
from distill.benchmarks.timing.jobs import Timing
from distill.benchmarks.verdict import manifest
from distill.benchmarks.verdict import remote_boards as boards
from distill.benchmarks.verdict.baseline import read_accepted, save_baseline
from distill.benchmarks.verdict.bench import Options, bench
from distill.benchmarks.verdict.gate import Limits, by_budget, outcome
from distill.benchmarks.verdict.judging import accept, rejudge
from distill.benchmarks.verdict.rule import Rule
from distill.bounds import MOST_ROWS, MOST_THREADS
from distill.errors import UserError
from distill.verbs.bench_options import BenchOptions


def blaming_files(options: BenchOptions) -> AbstractContextManager[None]:
    """Blame stored measurements, where there are some, for what goes wrong: they are judged and shown, nothing else."""
    paths = [str(path) for path in (options.rejudge, *options.merge, *options.import_) if path is not None]
    return blaming(f"{', '.join(paths)}: a damaged benchmark") if paths else nullcontext()


def export(options: BenchOptions) -> Path:
    """Write a bundle for a board; return its folder."""
    assert options.export_runner is not None
    boards.export(options.export_runner, options.models, _measuring(options), _limits(options), options.baseline)
    return options.export_runner


def reports_of(task: str, options: BenchOptions) -> tuple[list[Report], Part | None]:
    """Measure, or read what was measured; say which part of a manifest it is."""
    accepted = {} if options.accept is None else read_accepted(options.accept)
    if task == "rejudge":
        return _rejudged(options, accepted)
    if task == "merge":
        return manifest.merged(options.merge), None
    if task == "import":
        stored = [boards.import_result(path) for path in options.import_]
        return _judged_again(stored, options, accepted), None
    measuring, limits = _measuring(options), _limits(options, accepted)
    if task == "manifest":
        assert options.manifest is not None
        rows = manifest.read(options.manifest, measuring, limits)
        part = manifest.part(rows, options.shard)
        return manifest.run(rows, part, say=lambda text: print(clean.log_line(text), file=sys.stderr)), part
    name = Path(options.models[0]).name
    if task == "measure":
        report = bench(options.models, measuring)
        return [report if limits.max_p50_s is None else by_budget(report, limits, f"{name} by its budget")], None
    reports = []
    for path in (options.baseline, options.release_baseline):
        if path is not None:
            # Another interpreter is meant for the first baseline alone.
            own = measuring if path is options.baseline else dataclasses.replace(measuring, commands={})
            report = outcome(options.models[0], path, own, limits, name=f"{name} against {path.name}")
            reports.append(accept(report, accepted))
    return reports, None


def _rejudged(options: BenchOptions, accepted: Mapping[str, str]) -> tuple[list[Report], Part | None]:
    """Judge a stored file of reports again."""
    assert options.rejudge is not None
    stored, part = load_part(options.rejudge)
    if not any(report.gates for report in stored) and options.max_p50_ms is None:
        raise UserError(f"--rejudge {options.rejudge}: holds no gate, so there is nothing to judge again")
    if options.max_regression is None:
        stored = [_with_remark(report, options.rejudge) for report in stored]
    return _judged_again(stored, options, accepted), part


def _judged_again(stored: Sequence[Report], options: BenchOptions, accepted: Mapping[str, str]) -> list[Report]:
    """Judge what was measured before: by the limits of the options, and by those of then where there is none."""
    limits = _limits(options)
    own = {"max_p50_s": limits.max_p50_s, "max_size_growth": limits.max_size_growth}
    own["tolerance"] = None if options.max_regression is None else limits.rule.tolerance
    changed: dict[str, object] = {name: limit for name, limit in own.items() if limit is not None}
    changed["accepted"] = None  # a file accepts nothing
    against = {"--max-regression": options.max_regression, "--max-size-growth": options.max_size_growth}
    needing_gate = [name for name, value in against.items() if value is not None]
    reports = []
    for report in stored:
        name = report.models[-1].facts.name if report.models else "it"
        if needing_gate and not report.gates:
            raise UserError(
                f"{needing_gate[0]}: {name} was measured without a baseline, so there is nothing to judge by it"
            )
        budgeted = limits.max_p50_s is not None and not report.gates
        reports.append(rejudge(by_budget(report, limits, f"{name} by its budget") if budgeted else report, **changed))
    return [accept(report, accepted) for report in manifest.corrected_for_family(reports)]


def _with_remark(stored: Report, path: Path) -> Report:
    """Say where a stored report is judged more leniently than a gate is by default, which only the file says."""
    remarks = [
        f"{path} itself allows {gate.name} a slow-down of {100 * gate.tolerance:g} %; say --max-regression for yours"
        for gate in stored.gates
        if gate.tolerance > Rule().tolerance
    ]
    return dataclasses.replace(stored, warnings=tuple(dict.fromkeys((*stored.warnings, *remarks))))


def _measuring(options: BenchOptions) -> Options:
    """Read how to measure. Raises UserError that names the option."""
    target, commands = _target(options), {}
    if options.baseline_python is not None:
        if not options.baseline_python.exists():
            raise UserError(f"--baseline-python {options.baseline_python}: does not exist")
        commands = {0: (str(options.baseline_python), str(Path(runner.__file__).resolve()), "--serve")}
    return Options(
        target=target,
        batches=counts("--batch", options.batch, MOST_ROWS),
        threads=counts("--threads", options.threads, MOST_THREADS),
        timing=Timing(
            pairs=options.pairs, seconds_per_pair=options.seconds, seed=options.seed, timeout_s=options.timeout
        ),
        dims=sizes("--dim", options.dim),
        rows=read_npz(options.inputs) if options.inputs is not None else {},
        commands=commands,
    )


def _target(options: BenchOptions) -> Target:
    own = named_values("--provider-option", options.provider_option)
    if options.provider is not None and options.target is not None:
        raise UserError("--provider: give it or --target, not both")
    target = resolve_target(options.target) if options.provider is None else target_of_provider(options.provider)
    return dataclasses.replace(target, measure=options.measure, options=tuple(own.items()))


def _limits(options: BenchOptions, accepted: Mapping[str, str] | None = None) -> Limits:
    """Read what the gate allows. Raises UserError that names the option."""
    return Limits(accepted=accepted or {}, time_identical=options.time_identical).narrowed(
        ("--max-regression", options.max_regression),
        ("--max-size-growth", options.max_size_growth),
        ("--max-p50-ms", options.max_p50_ms),
    )


def keep(path: Path, options: BenchOptions, reports: Sequence[Report]) -> str:
    """Keep the measurement as a baseline, unless a verdict speaks against it; say what became of it."""
    gates = [gate for report in reports for gate in report.gates]
    bad = {"fail", "not measured", "inconclusive"} | ({"incomparable"} if options.if_incomparable == "fail" else set())
    against = sorted({gate.verdict for gate in gates} & bad)
    same = any(gate.mode == "identical" for gate in gates) and path.exists()
    if against or same or not reports[0].cases:
        why = f"since the verdict is {' and '.join(against)}" if against else "as the file is the baseline's own"
        return f"--save-baseline {path}: left as it was, {why}"
    save_baseline(path, reports[0], Path(options.models[0]))
    return f"--save-baseline {path}: kept"
