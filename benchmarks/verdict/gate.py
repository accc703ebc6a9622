"""The gate: is this file slower than that one? From two files, or a file and a stored report, to a verdict.

Modes: `duet` when the baseline's file is at hand (both take turns); `history` when only its report is, from this very
machine (advisory, since minutes lie between); `incomparable` otherwise, where only what needs no clock is judged;
`identical` when both files are the same bytes under one runtime, which needs no clock either; `none` when there is no
baseline yet; `budget` for limits alone; `unread` when nothing could be judged.

Here is what is measured; every verdict is drawn in `judging.py`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.benchmarks.onnx_file.facts import Facts, read_facts
from distill.benchmarks.parse import fraction, positive
from distill.benchmarks.records import Before, Case, Gate, Mode, Report
from distill.benchmarks.timing.machine import machine
from distill.benchmarks.verdict.baseline_files import model_of
from distill.benchmarks.verdict.bench import Options, bench, inspect, report_on, settled, time_case
from distill.benchmarks.verdict.judging import session_medians, with_gate
from distill.benchmarks.verdict.rule import Rule, Verdict
from distill.errors import NotComparableError, NotMeasuredError, UserError

Written = tuple[str, object]
LEAST_SESSIONS = 4  # of a stored report, for its spread to say something


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the gate allows. Fractions: 0.05 is 5 %. `accepted` is sha256 -> why that file may be slower."""

    rule: Rule = field(default_factory=Rule)
    max_size_growth: float | None = None
    max_p50_s: float | None = None
    accepted: Mapping[str, str] = field(default_factory=dict)
    time_identical: bool = False

    def narrowed(self, tolerance: Written, growth: Written, p50_ms: Written) -> Limits:
        """Replace the limits that a user wrote, each an option and its value, None for one that stays.

        Raises UserError that names the option.
        """
        rule, max_size_growth, max_p50_s = self.rule, self.max_size_growth, self.max_p50_s
        if tolerance[1] is not None:
            rule = dataclasses.replace(rule, tolerance=fraction(tolerance[0], str(tolerance[1])))
        if growth[1] is not None:
            max_size_growth = fraction(growth[0], str(growth[1]), zero=True)
        if p50_ms[1] is not None:
            max_p50_s = positive(*p50_ms) / 1000
        return dataclasses.replace(self, rule=rule, max_size_growth=max_size_growth, max_p50_s=max_p50_s)

    def opened(self, name: str, mode: Mode, verdict: Verdict = "pass", **facts: Any) -> Gate:
        """Write down what is asked, as a gate that is still to be concluded."""
        return Gate(
            name=name,
            mode=mode,
            verdict=verdict,
            tolerance=self.rule.tolerance,
            alpha=self.rule.alpha,
            looks=self.rule.looks,
            max_p50_s=self.max_p50_s,
            max_size_growth=self.max_size_growth,
            **facts,
        )


def gate(
    candidate: str | Path,
    baseline: str | Path,
    options: Options | None = None,
    limits: Limits | None = None,
    *,
    name: str | None = None,
) -> Report:
    """Judge a file by a baseline: an .onnx file, or a report that `--save-baseline` wrote (it need not exist yet).

    The verdict is that of the report's only gate, `gate(...).gates[0].verdict`.

    Raises UserError for files that are broken, NotComparableError for files with other inputs, NotMeasuredError where
    something could not be run.
    """
    options, limits = options or Options(), limits or Limits()
    baseline = Path(baseline)
    name = name or f"{Path(candidate).name} against {baseline.name}"
    if not os.path.lexists(baseline):  # a link that leads nowhere is there, and not to be passed by
        if baseline.suffix != ".json":
            raise UserError(f"{baseline}: the baseline does not exist; only a .json may be yet to be saved")
        return _first(candidate, baseline, options, limits, name)
    stored = Report.load(baseline) if baseline.suffix == ".json" else None
    model = baseline if stored is None else _stored_model(baseline, stored)
    new = read_facts(candidate, "candidate" if Path(candidate).stem == baseline.stem else None)
    if model is not None:
        old = read_facts(model, "baseline" if new.name in ("candidate", model.stem) else None)
        require_same_inputs(old, new)
        options = settled((model, candidate), options)
        if old.sha256 == new.sha256 and not options.commands and not limits.time_identical:
            return _identical(new, options, limits, name)
        return _duet(old, new, options, limits, name)
    assert stored is not None
    require_same_inputs(stored.models[-1].facts, new)
    return _against_report(stored, new, options, limits, name)


def outcome(
    candidate: str | Path, baseline: str | Path, options: Options, limits: Limits, *, name: str | None = None
) -> Report:
    """Gate a file, where being incomparable or not measurable is a verdict like the others.

    A file whose inputs have changed is measured alone, so that it can be kept as the next baseline.
    """
    name = name or f"{Path(candidate).name} against {Path(baseline).name}"
    try:
        return gate(candidate, baseline, options, limits, name=name)
    except NotComparableError as error:
        why, verdict = str(error), "incomparable"
    except NotMeasuredError as error:
        return unread(limits.opened(name, "unread", "not measured", reasons=(str(error),)), options)
    try:
        alone = bench([Path(candidate)], _alone(options))
    except NotMeasuredError as error:
        return unread(limits.opened(name, "unread", "not measured", reasons=(why, str(error))), options)
    opened: Any = limits.opened(name, "unread", verdict, reasons=(why,))  # type: ignore[arg-type]
    return dataclasses.replace(alone, gates=(opened,))


def unread(opened: Gate, options: Options) -> Report:
    """Report a gate that nothing was measured for."""
    return dataclasses.replace(report_on([], [], machine(), **options.record()), gates=(opened,))


def _alone(options: Options) -> Options:
    """Leave out the interpreters of single files, which are meant for a baseline that is not timed here."""
    return dataclasses.replace(options, commands={})


def baseline_file(path: Path) -> Path:
    """Return the .onnx file that a baseline stands for. Raises UserError where it was not kept."""
    if path.suffix != ".json":
        return path
    model = _stored_model(path, Report.load(path))
    if model is None:
        raise UserError(f"{path}: its .onnx file is not beside it, and only files can be sent")
    return model


def _stored_model(path: Path, stored: Report) -> Path | None:
    if not stored.models:
        raise UserError(f"{path}: holds no measurement of a file; make it again with --save-baseline")
    return model_of(path, stored.models[-1].facts.sha256)


def require_same_inputs(old: Facts, new: Facts) -> None:
    """Refuse to compare files that take different inputs. Raises NotComparableError with both signatures."""
    if not _alike(old.inputs, new.inputs):
        raise NotComparableError(
            "the inputs have changed, so the two cannot be compared: the baseline takes "
            f"{_signature_text(old.inputs)}, the candidate takes {_signature_text(new.inputs)}"
        )


def _alike(old: Sequence[Sequence[Any]], new: Sequence[Sequence[Any]]) -> bool:
    """Whether two signatures can take the same rows; the order and the names of open axes mean nothing to a caller."""
    theirs = {str(name): (kind, shape) for name, kind, shape in new}
    if theirs.keys() != {str(name) for name, _, _ in old}:
        return False
    for name, kind, shape in old:
        other_kind, other = theirs[str(name)]
        if kind != other_kind or (shape is None) != (other is None) or (shape and len(shape) != len(other)):
            return False
        sizes = zip(shape or (), other or (), strict=True)
        if any(isinstance(size, int) and isinstance(their, int) and size != their for size, their in sizes):
            return False
    return True


def _signature_text(inputs: Sequence[Sequence[object]]) -> str:
    return ", ".join(f"{name} {kind} {shape}" for name, kind, shape in inputs) or "nothing"


def _first(candidate: str | Path, baseline: Path, options: Options, limits: Limits, name: str) -> Report:
    """Measure a file whose baseline is yet to be saved: nothing to compare with is no failure."""
    why = f"{baseline} does not exist yet: nothing was compared; --save-baseline writes one"
    return with_gate(bench([Path(candidate)], _alone(options)), limits.opened(name, "none", reasons=(why,)))


def _identical(new: Facts, options: Options, limits: Limits, name: str) -> Report:
    """Pass two files of the same bytes without a clock; only a budget in seconds still needs one."""
    if limits.max_p50_s is None:
        model, host = inspect(Path(new.path), new, options)
        measured = report_on([model], [], host, **options.record())
    else:
        measured = bench([Path(new.path)], options)
    return with_gate(measured, limits.opened(name, "identical", reasons=("byte for byte the same file",)))


def _duet(old: Facts, new: Facts, options: Options, limits: Limits, name: str) -> Report:
    """Let both files take turns, at every batch size and thread count, until each verdict stands."""
    (before, _), (after, host) = (inspect(Path(m.path), m, options, arm=arm) for arm, m in enumerate((old, new)))
    if before.finite and not after.finite:
        raise NotMeasuredError(
            f"{new.path}: its outputs are not all finite, those of the baseline are; nothing to time"
        )
    looks = limits.rule.looks
    timing = dataclasses.replace(options.timing, pairs=max(looks), gate=limits.rule.for_runner())
    timed = dataclasses.replace(options, timing=timing)
    paths = [Path(old.path), Path(new.path)]
    cases = [time_case(paths, timed, batch, threads) for batch in options.batches for threads in options.threads]
    for case in cases:
        if case.shapes[0] != case.shapes[1]:
            raise NotComparableError(
                f"the inputs cannot be compared: the baseline was fed {case.shapes[0]}, the candidate {case.shapes[1]}"
            )
    return with_gate(report_on([before, after], cases, host, **options.record()), limits.opened(name, "duet"))


def _against_report(stored: Report, new: Facts, options: Options, limits: Limits, name: str) -> Report:
    """Measure the file alone, and compare with what was stored as far as that can be believed."""
    fresh = bench([Path(new.path)], _alone(options))
    mode, why = how_comparable(stored, fresh)
    medians = tuple(session_medians(matching(stored, case)) for case in fresh.cases)
    return with_gate(fresh, limits.opened(name, mode, before=Before(stored.models[-1], medians), reasons=why))


def by_budget(report: Report, limits: Limits, name: str) -> Report:
    """Judge a measurement by its limits alone."""
    return with_gate(report, limits.opened(name, "budget"))


def how_comparable(stored: Report, fresh: Report) -> tuple[Mode, tuple[str, ...]]:
    """Tell whether latencies measured at different times may be compared, and if not, why not."""
    why = []
    if stored.fingerprint != fresh.fingerprint:
        why.append(f"another machine: {_where(stored)}, here {_where(fresh)}; {_differences(stored, fresh)}")
    if stored.target["provider"] != fresh.target["provider"]:
        why.append(f"another provider: {stored.target['provider']}, here {fresh.target['provider']}")
    was, now = (report.machine["versions"].get("onnxruntime") for report in (stored, fresh))
    if was != now:
        why.append(f"another onnxruntime: {was}, here {now}")
    for case in fresh.cases:
        before = matching(stored, case)
        if before is None:
            why.append(f"batch {case.batch} with {case.threads} thread(s) is not in the baseline")
        elif len(before.pairs) < LEAST_SESSIONS:
            why.append(f"the baseline has {len(before.pairs)} sessions, {LEAST_SESSIONS} are needed")
    if why:
        return "incomparable", tuple(why)
    return "history", (
        "the baseline's file is not at hand, so minutes lie between the two measurements: this verdict is advisory; "
        "keep the .onnx file beside the baseline's JSON for one that gates",
    )


def matching(stored: Report, case: Case) -> Case | None:
    """Find the stored case of the same batch size, threads and shapes."""
    key = (case.batch, case.threads, case.shapes[-1])
    return next((other for other in stored.cases if (other.batch, other.threads, other.shapes[-1]) == key), None)


def _where(report: Report) -> str:
    return f"{report.machine['cpu']}, {report.machine['threads']['usable']} threads, {report.machine['system']}"


def _differences(stored: Report, fresh: Report) -> str:
    """Name what of two machines' descriptions differs."""
    keys = ", ".join(sorted(key for key in fresh.machine if stored.machine.get(key) != fresh.machine[key]))
    return f"differs in {keys}" if keys else "described by another version of distill"
