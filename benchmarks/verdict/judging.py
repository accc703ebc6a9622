"""From what was measured and what is asked to a verdict: the same way live, from a board's result, and from a file."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distill.benchmarks import runner
from distill.benchmarks.records import Case, Check, Gate, Model, Report
from distill.benchmarks.verdict.bench import effects_of, turn_seconds
from distill.benchmarks.verdict.rule import Judgement, Rule, Verdict, judge, judge_budget, judged_by
from distill.benchmarks.verdict.statistics import t_quantile

_UNREAD: tuple[Verdict, ...] = ("not measured", "incomparable", "inconclusive")
_WORST: tuple[Verdict, ...] = ("fail", "not measured", "incomparable", "inconclusive", "improved", "pass")


def with_gate(report: Report, opened: Gate) -> Report:
    """Give a measurement its gate, concluded."""
    return dataclasses.replace(report, gates=(conclude(report, opened),))


def conclude(report: Report, opened: Gate) -> Gate:
    """Draw a gate's verdicts from what was measured and what it asks."""
    if opened.mode == "unread":
        # Nothing was measured: whoever says that it passed made that up.
        return opened if opened.verdict in _UNREAD else dataclasses.replace(opened, verdict="not measured")
    cases = tuple(_judgement(case, number, opened) for number, case in enumerate(report.cases))
    budgets = tuple(_budget(case, opened) for case in report.cases)
    concluded = dataclasses.replace(opened, cases=cases, budgets=budgets, checks=static_checks(report, opened))
    return dataclasses.replace(concluded, verdict=verdict_of(concluded))


def verdict_of(gate: Gate) -> Verdict:
    """Draw a gate's verdict from those of its parts."""
    if gate.mode == "unread":
        return gate.verdict
    latencies = [judgement.verdict for judgement in gate.cases if judgement is not None]
    if any(gate.rejected):
        latencies.append("fail")
    if gate.mode == "history":  # minutes lie between: advice, never a failure
        latencies = ["inconclusive" if verdict == "fail" else verdict for verdict in latencies]
    if gate.first is not None and "fail" not in latencies:  # slower once, and not again: neither is to be believed
        latencies.append("inconclusive")
    parts: list[Verdict] = [
        *latencies,
        *(budget for budget in gate.budgets if budget),
        *(check.verdict for check in gate.checks),
    ]
    if gate.mode == "incomparable":
        parts.append("incomparable")
    # What got faster is only news where nothing stood still or got worse, so checks that pass do not hide it.
    if latencies and all(verdict == "improved" for verdict in latencies):
        parts = ["improved" if verdict == "pass" else verdict for verdict in parts]
    worst: Verdict = min(parts, key=_WORST.index, default="pass")
    return "pass" if worst == "fail" and gate.accepted else worst


def session_medians(case: Case | None) -> tuple[float, ...] | None:
    """Return the median seconds of each session of a case's last file."""
    if case is None:
        return None
    arms = len(case.rows)
    return tuple(float(np.median(turn_seconds([pair], arms, arms - 1))) for pair in case.pairs)


def _judgement(case: Case, number: int, gate: Gate) -> Judgement | None:
    rule = Rule(gate.tolerance, gate.alpha, gate.looks)
    if gate.mode == "duet":
        fastest, medians = (effects_of(case.pairs, 2, 1, value) for value in (runner.FASTEST, runner.MEDIAN))
        return judge(fastest, medians, rule)
    before = gate.before.medians[number] if gate.mode == "history" and gate.before else None
    return None if before is None else _history(before, session_medians(case) or (), rule)


def _history(before: Sequence[float], after: Sequence[float], rule: Rule) -> Judgement:
    """Compare the medians of two sets of sessions that met different moods of the machine, by Welch's t."""
    old, new = np.log(before), np.log(after)
    mean = float(new.mean() - old.mean())
    parts = [float(medians.var(ddof=1)) / len(medians) for medians in (old, new)]
    error = math.sqrt(sum(parts))
    degrees = 1
    if error:
        spread = sum(part**2 / (len(medians) - 1) for part, medians in zip(parts, (old, new), strict=True))
        degrees = max(1, int(error**4 / spread))
    half = t_quantile(1 - rule.alpha, degrees) * error
    return judged_by(mean, half, rule, len(new), p_value=1.0, by="median")


def _budget(case: Case, gate: Gate) -> Verdict | None:
    medians = session_medians(case)
    if gate.max_p50_s is None or medians is None:
        return None
    return judge_budget(medians, gate.max_p50_s, gate.alpha)


def static_checks(report: Report, gate: Gate) -> tuple[Check, ...]:
    """Compare what needs no clock: finite outputs, size, parameters, work, integer kernels, nodes elsewhere.

    Size, parameters and work may grow as they like where there is a latency, the size up to `max_size_growth` if that
    was given. Without one (`incomparable`) they stand for it, and may grow by the tolerance.
    """
    if not report.models or gate.mode == "identical":
        return ()
    new = report.models[-1]
    old = report.models[0] if gate.mode == "duet" else gate.before.model if gate.before else None
    checks = [_finite(old, new)]
    if old is None:
        return tuple(checks)
    by_work = gate.tolerance if gate.mode == "incomparable" else None
    limits = {"bytes": by_work if gate.max_size_growth is None else gate.max_size_growth}
    limits |= {"parameters": by_work, "macs": by_work}
    for field, limit in limits.items():
        before, after = getattr(old.facts, field), getattr(new.facts, field)
        if before is not None and after is not None:
            checks.append(_growth(field, before, after, limit))
    shares = (old.integer_share, new.integer_share)
    why = f"integer kernels fell from {shares[0]:.1%} to {shares[1]:.1%} of the compute nodes"
    away = (_nodes_elsewhere(old), _nodes_elsewhere(new))
    moved = f"{away[1]} nodes ran on another provider than {new.asked or new.provider}, {away[0]} before"
    checks.append(_check("integer_share", *shares, shares[1] < shares[0] - 0.005, why))
    checks.append(_check("nodes_elsewhere", *away, away[1] > away[0], moved))
    return tuple(checks)


def _check(name: str, before: float, after: float, fails: bool, why: str, verdict: Verdict = "fail") -> Check:
    """Write down a check that passes unless it `fails`, which `why` explains."""
    return Check(name, float(before), float(after), verdict if fails else "pass", why if fails else "")


def _finite(old: Model | None, new: Model) -> Check:
    """Check that outputs are numbers; where the baseline's are none either, the inputs may be to blame."""
    spoilt = not new.finite and (old is None or old.finite)
    why = f"{new.facts.path}: its outputs are not all finite, so its latency says nothing; give real rows by --inputs"
    return _check("finite", (old or new).finite, new.finite, spoilt, why, "not measured")


def _growth(field: str, before: float, after: float, limit: float | None) -> Check:
    grown = after / before - 1 if before else float(after > 0)
    why = f"{field} grew by {100 * grown:.1f} %, {100 * (limit or 0):g} % is allowed"
    return _check(field, before, after, limit is not None and grown > limit, why)


def _nodes_elsewhere(model: Model) -> int:
    """Count the nodes that ran on another provider than the one that was asked for."""
    wanted = model.asked or model.provider
    return sum(count for key, count in model.nodes.items() if key.partition("/")[0] != wanted)


def accept(report: Report, accepted: Mapping[str, str]) -> Report:
    """Let a file that is known to be slower pass: its sha256 stands in the list of accepted ones, with the reason."""
    why = accepted.get(report.models[-1].facts.sha256) if report.models else None
    if why is None:
        return report
    gates = []
    for gate in report.gates:
        changed = dataclasses.replace(gate, accepted=why) if gate.verdict == "fail" else gate
        gates.append(dataclasses.replace(changed, verdict=verdict_of(changed)))
    return dataclasses.replace(report, gates=tuple(gates))


def rejudge(stored: Report, **changed: Any) -> Report:
    """Judge a stored report again; `changed` are fields of its gates that are to be others (`tolerance`, …).

    What follows from other reports (`rejected`) is left to `manifest.corrected_for_family`.
    """
    changed["rejected"] = ()
    gates = tuple(conclude(stored, dataclasses.replace(gate, **changed)) for gate in stored.gates)
    return dataclasses.replace(stored, gates=gates)
