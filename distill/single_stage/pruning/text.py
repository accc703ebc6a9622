"""`report.md` of the verb `prune`: everything that was found, as GitHub's Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from distill.benchmarks import units
from distill.clean import fenced
from distill.clean import markdown as escape
from distill.single_stage.pruning import facts
from distill.single_stage.pruning.outcome import Outcome

_BARS = " ▁▂▃▄▅▆▇█"


def markdown(outcome: Outcome, out: str) -> str:
    """Return the report as Markdown that ends with a newline."""
    return "\n".join(_lines(outcome, out)).rstrip("\n") + "\n"


def _lines(outcome: Outcome, out: str) -> Iterator[str]:
    yield f"# Pruned: {escape(outcome.model)}"
    yield ""
    yield f"**{escape(facts.headline(outcome))}**"
    yield ""
    yield from _table(("", "before", "after", ""), facts.summary(outcome))
    yield f"Timed on: {escape(facts.measured_on(outcome))}."
    yield from _titled("Load it")
    yield from (fenced(facts.loading(out, outcome.model), "python"), "", escape(facts.MOVED))
    if outcome.warnings:
        yield from _titled("Warnings")
        yield from (f"- {escape(text)}" for text in dict.fromkeys(outcome.warnings))
    yield from _titled("How")
    yield from _table(("", ""), facts.how(outcome), right=0)
    yield fenced(units.line(outcome.command), "sh")
    yield from _titled("Layers")
    yield "Output channels, and the seconds of a layer's kernel alone at the timed batch."
    yield ""
    head = ("layer", "before", "after", "left", "alone, before", "alone, after")
    yield from _table(head, [(one.name, *one.cells) for one in facts.layers(outcome)])
    shown = facts.groups(outcome)
    if shown:
        yield from _titled("Importance")
        yield "How the scores of a group's units are spread from 0 to the highest; 1 is the group's mean."
        yield ""
        rows = [
            (g.name, f"{g.before} → {g.after}", _spark(g.stayed), _spark(g.went), units.significant(g.highest))
            for g in shown
        ]
        yield from _table(("group", "units", "stayed", "went", "highest"), rows, right=1)
    yield from _titled("Machine")
    about = outcome.machine
    where = [(name, str(about[name])) for name in ("cpu", "system", "kernel") if name in about]
    where += [(name, str(value)) for name, value in about.get("versions", {}).items()]
    yield from _table(("", ""), where, right=0)


def _spark(counts: Sequence[int]) -> str:
    """Draw counts as a row of bars; a count that is not 0 can be seen."""
    top = max(counts, default=0)
    if not top:
        return units.DASH
    steps = len(_BARS) - 1
    return "".join(_BARS[0 if not one else max(1, round(steps * one / top))] for one in counts).replace(" ", "·")


def _titled(title: str) -> Iterator[str]:
    yield from ("", f"## {title}", "")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, right: int | None = None) -> Iterator[str]:
    """Write a table whose last ``right`` columns, all but the first when None, are aligned right."""
    numbers = len(head) - 1 if right is None else right
    yield "| " + " | ".join(escape(one) for one in head) + " |"
    yield "|" + "|".join("---:" if place >= len(head) - numbers else "---" for place in range(len(head))) + "|"
    yield from ("| " + " | ".join(escape(one) for one in row) + " |" for row in rows)
    yield ""
