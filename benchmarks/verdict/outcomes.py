"""What a gate's verdict says: in words for people, as an exit code for machines."""

from __future__ import annotations

from collections.abc import Iterable

from distill.benchmarks import units
from distill.benchmarks.records import Gate
from distill.benchmarks.verdict.rule import Judgement
from distill.errors import Exit
from distill.intervals import Estimate

_HOW = {
    "duet": "both files took turns",
    "history": "against a stored report of this machine, advisory",
    "incomparable": "latencies cannot be compared",
    "identical": "not timed",
    "none": "no baseline yet",
    "budget": "its own limit",
    "unread": "nothing could be judged",
}


def exit_code(gates: Iterable[Gate], *, strict: bool = False, incomparable_ok: bool = False) -> Exit:
    """Return what a process ends with: the worst of all gates, a regression before anything else."""
    verdicts = [gate.verdict for gate in gates]
    if "fail" in verdicts:
        return Exit.VERDICT_NO
    if "not measured" in verdicts:
        return Exit.NOT_MEASURED
    if "incomparable" in verdicts and not incomparable_ok:
        return Exit.NOT_COMPARABLE
    unsure = "inconclusive" in verdicts or any(gate.mode == "none" for gate in gates)
    return Exit.INCONCLUSIVE if unsure and strict else Exit.OK


def change(judged: Judgement) -> str:
    """Write a speed-up with its bounds, above 1 is faster; ~ in front where the bounds hold no change."""
    same = "~ " if judged.low <= 1 <= judged.high else ""
    return same + units.faster(Estimate(judged.slowdown, judged.low, judged.high))


def headline(gate: Gate) -> str:
    """Say in one line what was decided, how, and by which limit."""
    accepted = f"; accepted: {units.line(gate.accepted)}" if gate.accepted else ""
    limit = f", slow-down of {100 * gate.tolerance:g} % allowed ({units.finely(1 / (1 + gate.tolerance))}×)"
    limit = limit if gate.mode in ("duet", "history", "incomparable") else ""
    return f"{gate.verdict.upper()} {gate.name}: {_HOW[gate.mode]}{limit}{accepted}"


def details(gate: Gate) -> list[str]:
    """Say what the verdict rests on: every latency, budget and check that is not plainly fine, and the reasons."""
    lines = [explained(judgement) for judgement in gate.cases if judgement is not None]
    budget = units.duration(gate.max_p50_s)
    lines += [f"p50 against the budget of {budget}: {verdict.upper()}" for verdict in gate.budgets if verdict]
    lines += [check.why for check in gate.checks if check.why]
    if gate.first is not None:
        confirmed = any(judgement is not None and judgement.verdict == "fail" for judgement in gate.cases)
        again = "" if confirmed else ", which did not show again as clearly"
        lines.append(f"second measurement; the first one found {units.finely(1 / gate.first)}×{again}")
    if any(gate.rejected):
        lines.append(f"slower beyond what one of {gate.family} comparisons may be by chance (Holm)")
    return [*lines, *gate.reasons]


def explained(judged: Judgement) -> str:
    """Explain one judgement: the change, from how many session pairs, and what it could have caught."""
    calls = f"the {judged.by} calls of {judged.pairs} session pairs"
    text = f"speed-up {change(judged)} by {calls}: {judged.verdict.upper()}"
    if judged.verdict == "inconclusive":
        text += f"; the smallest slow-down that this run could have caught is {100 * judged.catches:.1f} %"
    return text
