"""The gate: is this file slower than that one? From two files, or a file and a stored report, to a verdict.

Modes: `duet` when the baseline's file is at hand (both take turns); `history` when only its report is, from this very
machine (advisory, since minutes lie between); `incomparable` otherwise, where only what needs no clock is judged;
`identical` when both files are the same bytes under one runtime, which needs no clock either.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from distill.errors import NotComparableError, NotMeasuredError, UserError

from . import runner
from .bench import Options, bench, effects_of, look, report, time_case, turn_seconds
from .facts import Facts, read_facts
from .records import Case, Check, Gate, Mode, Model, Report
from .rule import Judgement, Rule, Verdict, judge, judge_budget
from .stats import t_quantile

LEAST_SESSIONS = 5  # of a stored report, for its spread to say something
_WORST: tuple[Verdict, ...] = ("fail", "not measured", "incomparable", "inconclusive", "improved", "pass")


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What the gate allows. Fractions: 0.05 is 5 %. `accepted` is sha256 -> why that file may be slower."""

    rule: Rule = field(default_factory=Rule)
    max_size_growth: float | None = None
    max_p50_s: float | None = None
    accepted: Mapping[str, str] = field(default_factory=dict)
    time_identical: bool = False


def gate(
    candidate: str | Path,
    baseline: str | Path,
    options: Options | None = None,
    ask: Ask | None = None,
    *,
    name: str = "baseline",
) -> Report:
    """Judge a file by a baseline: an .onnx file, or a report that `--save-baseline` wrote.

    The verdict is that of the report's only gate, `gate(...).gates[0].verdict`.

    Raises UserError for files that are broken, NotComparableError for files with other inputs, NotMeasuredError where
    something could not be run.
    """
    options, ask = options or Options(), ask or Ask()
    baseline = Path(baseline)
    stored = Report.load(baseline) if baseline.suffix == ".json" else None
    model = baseline if stored is None else stored_model(baseline, stored)
    new = read_facts(candidate, "candidate" if Path(candidate).stem == baseline.stem else None)
    if model is not None:
        old = read_facts(model, "baseline" if new.name in ("candidate", model.stem) else None)
        require_same_inputs(old, new)
        if old.sha256 == new.sha256 and not options.commands and not ask.time_identical:
            return _identical(new, options, ask, name)
        return _duet(old, new, options, ask, name)
    assert stored is not None
    require_same_inputs(stored.models[0].facts, new)
    return _against_report(stored, new, options, ask, name)


def stored_model(path: Path, stored: Report) -> Path | None:
    """Find the file that a report was saved with, beside it; None where it was not kept.

    Raises UserError where another file has its name.
    """
    beside = path.with_suffix(".onnx")
    if not beside.is_file():
        return None
    if read_facts(beside).sha256 != stored.models[0].facts.sha256:
        raise UserError(f"{beside}: not the file that {path} was measured with (another sha256); remove one of them")
    return beside


def require_same_inputs(old: Facts, new: Facts) -> None:
    """Refuse to compare files that take different inputs. Raises NotComparableError with both signatures."""
    if _open(old.inputs) != _open(new.inputs):
        raise NotComparableError(
            f"the inputs have changed, so the two cannot be compared: the baseline takes {_words(old.inputs)}, the "
            f"candidate takes {_words(new.inputs)}"
        )


def _open(inputs: Sequence[Sequence[object]]) -> list[object]:
    """Leave out the names of open axes, which mean nothing to a caller, and the order, which feeds go by name."""
    found = []
    for name, kind, shape in inputs:
        sizes = None if shape is None else [size if isinstance(size, int) else None for size in shape]  # type: ignore[attr-defined]
        found.append([name, kind, sizes])
    return sorted(found, key=str)


def _words(inputs: Sequence[Sequence[object]]) -> str:
    return ", ".join(f"{name} {kind} {shape}" for name, kind, shape in inputs) or "nothing"


def _identical(new: Facts, options: Options, ask: Ask, name: str) -> Report:
    """Pass two files of the same bytes without a clock; only a budget in seconds still needs one."""
    if ask.max_p50_s is None:
        looked = look(Path(new.path), new, options)
        made, cases, budgets = report([looked.model], [], options, looked.machine), (), ()
    else:
        made = bench([new.path], options)
        cases = made.cases  # type: ignore[assignment]
        budgets = tuple(_budget(case, 0, ask) for case in made.cases)  # type: ignore[assignment]
    done = _gate("identical", name, ask, tuple(None for _ in cases), budgets, (), ("byte for byte the same file",))
    return dataclasses.replace(made, gates=(done,))


def _duet(old: Facts, new: Facts, options: Options, ask: Ask, name: str) -> Report:
    """Let both files take turns, at every batch size and thread count, until each verdict stands."""
    looked = [look(Path(one.path), one, options, arm=arm) for arm, one in enumerate((old, new))]
    models = [one.model for one in looked]
    if models[0].finite and not models[1].finite:
        raise NotMeasuredError(
            f"{new.path}: its outputs are not all finite, those of the baseline are; nothing to time"
        )
    looks = ask.rule.looks
    timing = dataclasses.replace(options.timing, pairs=max(looks), gate=ask.rule.for_runner())
    timed = dataclasses.replace(options, timing=timing)
    paths = [Path(old.path), Path(new.path)]
    cases = [time_case(paths, timed, batch, threads) for batch in options.batches for threads in options.threads]
    made = report(models, cases, options, looked[1].machine)
    judged = [judge(effects_of(case.pairs, 2, 1), ask.rule) for case in cases]
    return dataclasses.replace(made, gates=(duet_gate(models, cases, judged, ask, name),))


def duet_gate(models: Sequence[Model], cases: Sequence[Case], judged: Sequence[Judgement], ask: Ask, name: str) -> Gate:
    """Put a duet's judgements together with the budgets and with what needs no clock."""
    budgets = tuple(_budget(case, 1, ask) for case in cases)
    return _gate("duet", name, ask, judged, budgets, static_checks(models[0], models[1], ask, "duet"))


def _budget(case: Case, arm: int, ask: Ask) -> Verdict | None:
    if ask.max_p50_s is None:
        return None
    arms = len(case.rows)
    return judge_budget(
        [float(np.median(turn_seconds([pair], arms, arm))) for pair in case.pairs], ask.max_p50_s, ask.rule.alpha
    )


def _against_report(stored: Report, new: Facts, options: Options, ask: Ask, name: str) -> Report:
    """Measure the file alone, and compare with what was stored as far as that can be believed."""
    made = bench([new.path], options)
    mode, why = how_comparable(stored, made)
    judged = tuple(_history(stored, case, ask.rule) if mode == "history" else None for case in made.cases)
    budgets = tuple(_budget(case, 0, ask) for case in made.cases)
    checks = static_checks(stored.models[0], made.models[0], ask, mode)
    return dataclasses.replace(made, gates=(_gate(mode, name, ask, judged, budgets, checks, why),))


def how_comparable(stored: Report, made: Report) -> tuple[Mode, tuple[str, ...]]:
    """Tell whether latencies measured at different times may be compared, and if not, why not."""
    why = []
    if stored.fingerprint != made.fingerprint:
        why.append(f"another machine: {_where(stored)}, here {_where(made)}")
    if stored.target["provider"] != made.target["provider"]:
        why.append(f"another provider: {stored.target['provider']}, here {made.target['provider']}")
    was, now = (one.machine["versions"].get("onnxruntime") for one in (stored, made))
    if was != now:
        why.append(f"another onnxruntime: {was}, here {now}")
    for case in made.cases:
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
    for one in stored.cases:
        if (one.batch, one.threads, one.shapes[0]) == (case.batch, case.threads, case.shapes[-1]):
            return one
    return None


def _where(one: Report) -> str:
    return f"{one.machine['cpu']}, {one.machine['threads']['usable']} threads, {one.machine['system']}"


def _history(stored: Report, case: Case, rule: Rule) -> Judgement:
    """Compare the medians of two sets of sessions that met different moods of the machine, by Welch's t."""
    before = matching(stored, case)
    assert before is not None
    old, new = (
        np.log([float(np.median(turn_seconds([pair], len(one.rows), 0))) for pair in one.pairs])
        for one in (before, case)
    )
    mean = float(new.mean() - old.mean())
    parts = [float(one.var(ddof=1)) / len(one) for one in (old, new)]
    error = math.sqrt(sum(parts))
    degrees = 1
    if error:
        spread = sum(part**2 / (len(one) - 1) for part, one in zip(parts, (old, new), strict=True))
        degrees = max(1, int(error**4 / spread))
    half, limit = t_quantile(1 - rule.alpha, degrees) * error, math.log1p(rule.tolerance)
    catches = math.expm1(max(limit, limit / 2 + half))
    bounds = (math.exp(mean), math.exp(mean - half), math.exp(mean + half))
    verdict: Any = runner.verdict_of(mean, half, rule.tolerance)
    return Judgement(verdict, *bounds, pairs=len(new), p_value=1.0, catches=catches)


def static_checks(old: Model, new: Model, ask: Ask, mode: Mode) -> tuple[Check, ...]:
    """Compare what needs no clock: size, parameters, work, integer kernels, and nodes that another provider ran.

    Without a latency (`incomparable`) growth beyond the tolerance fails; with one it fails beyond `max_size_growth`.
    """
    by_work = ask.rule.tolerance if mode == "incomparable" else None
    limits = {"bytes": by_work if ask.max_size_growth is None else ask.max_size_growth}
    limits |= {"parameters": by_work, "macs": by_work}
    checks = []
    for what, limit in limits.items():
        before, after = getattr(old.facts, what), getattr(new.facts, what)
        if before is None or after is None:
            continue
        grown = after / before - 1 if before else float(after > 0)
        too_much = limit is not None and grown > limit
        why = f"{what} grew by {100 * grown:.1f} %, {100 * (limit or 0):g} % is allowed" if too_much else ""
        checks.append(Check(what, float(before), float(after), "fail" if too_much else "pass", why))
    lost = new.integer_share < old.integer_share - 0.005
    why = f"integer kernels fell from {old.integer_share:.1%} to {new.integer_share:.1%} of the compute nodes"
    checks.append(
        Check("integer_share", old.integer_share, new.integer_share, "fail" if lost else "pass", why if lost else "")
    )
    away = [_away(one) for one in (old, new)]
    why = f"{away[1]} compute nodes ran on another provider than {new.provider}, {away[0]} before"
    moved = away[1] > away[0]
    checks.append(Check("nodes_elsewhere", away[0], away[1], "fail" if moved else "pass", why if moved else ""))
    return tuple(checks)


def _away(model: Model) -> int:
    """Count the nodes that did not run on the provider that ran most of them."""
    return sum(count for key, count in model.nodes.items() if key.partition("/")[0] != model.provider)


def no_baseline(candidate: str | Path, baseline: Path, options: Options, ask: Ask, name: str) -> Report:
    """Measure a file whose baseline is yet to be saved: nothing to compare with is no failure."""
    made = bench([candidate], options)
    budgets = tuple(_budget(case, 0, ask) for case in made.cases)
    why = f"{baseline} does not exist yet: nothing was compared; --save-baseline writes one"
    return dataclasses.replace(made, gates=(_gate("none", name, ask, [None] * len(made.cases), budgets, (), (why,)),))


def by_budget(made: Report, ask: Ask) -> Report:
    """Judge the last file of a measurement by its budget in seconds alone."""
    arm = len(made.models) - 1
    budgets = tuple(_budget(case, arm, ask) for case in made.cases)
    done = _gate("budget", "its budget", ask, [None] * len(made.cases), budgets, ())
    return dataclasses.replace(made, gates=(done,))


def _gate(
    mode: Mode,
    name: str,
    ask: Ask,
    cases: Sequence[Judgement | None],
    budgets: Sequence[Verdict | None],
    checks: Sequence[Check],
    reasons: Sequence[str] = (),
) -> Gate:
    found = Gate(
        name=name,
        mode=mode,
        verdict="pass",
        tolerance=ask.rule.tolerance,
        alpha=ask.rule.alpha,
        looks=ask.rule.looks,
        cases=tuple(cases),
        budgets=tuple(budgets),
        max_p50_s=ask.max_p50_s,
        checks=tuple(checks),
        reasons=tuple(reasons),
    )
    return concluded(found)


def concluded(found: Gate) -> Gate:
    """Draw a gate's verdict from those of its parts; a latency from history alone never fails."""
    latencies: list[Verdict] = [one.verdict for one in found.cases if one]
    if found.mode == "history":
        latencies = ["inconclusive" if one == "fail" else one for one in latencies]
    parts: list[Verdict] = [*latencies, *(one for one in found.budgets if one), *(one.verdict for one in found.checks)]
    if found.mode == "incomparable":
        parts.append("incomparable")
    # What got faster is only news where nothing stood still or got worse, so checks that pass do not hide it.
    if latencies and all(one == "improved" for one in latencies):
        parts = ["improved" if one == "pass" else one for one in parts]
    worst: Verdict = min(parts, key=_WORST.index, default="pass")
    return dataclasses.replace(found, verdict=worst)


def accept(made: Report, accepted: Mapping[str, str]) -> Report:
    """Let a file that is known to be slower pass: its sha256 stands in the list of accepted ones, with the reason."""
    sha256 = made.models[-1].facts.sha256
    if sha256 not in accepted:
        return made
    why = accepted[sha256]
    gates = tuple(
        dataclasses.replace(one, verdict="pass", accepted=why) if one.verdict == "fail" else one for one in made.gates
    )
    return dataclasses.replace(made, gates=gates)


def rejudge(stored: Report, rule: Rule) -> Report:
    """Judge a stored report again, from its session pairs and by this rule."""
    gates = []
    for one in stored.gates:
        judged = tuple(
            judge(effects_of(case.pairs, len(case.rows), 1), rule) if old is not None and len(case.rows) > 1 else old
            for case, old in zip(stored.cases, one.cases, strict=True)
        )
        changed = dataclasses.replace(
            one, tolerance=rule.tolerance, alpha=rule.alpha, looks=rule.looks, cases=judged, accepted=None
        )
        gates.append(concluded(changed))
    return dataclasses.replace(stored, gates=tuple(gates))
