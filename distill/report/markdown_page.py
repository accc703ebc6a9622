"""`report.md`: the same facts as the terminal's and more, as GitHub's Markdown, for a pull request or a wiki."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from distill.clean import code, fenced
from distill.clean import markdown as escape
from distill.report import facts, reproduce
from distill.report.details import control_against_student, splits, stage_facts
from distill.runtime.records import RunResult, StageRecord


def markdown(result: RunResult) -> str:
    """Return the report as Markdown text that ends with a newline; text from the user is escaped."""
    lines: list[str] = []
    for one in _lines(result):
        if one or (lines and lines[-1]):  # a fenced block comes as one line, so its own empty lines stay
            lines.append(one)
    return "\n".join(lines).rstrip("\n") + "\n"


def _lines(result: RunResult) -> Iterator[str]:
    yield f"# {escape(result.task) or 'run'}"
    yield ""
    yield f"**{escape(str(facts.headline(result)))}**"
    yield from _budget(result)
    yield from _stages(result)
    yield from _list(
        "Warnings", [f"**{escape(n)}**: {escape(w)}" if n else escape(w) for n, w in facts.warnings(result)]
    )
    yield from _control(result)
    for stage in result.stages:
        yield from _detail(stage)
    rows = splits(result)
    if rows:
        yield from _titled("Splits and hygiene")
        yield from _table(("stage", "split", "samples"), rows, right=1)
    yield from _mapping("Machine and versions", facts.flatten(result.machine))
    yield from _mapping("Target", facts.flatten(result.target))
    yield from _titled("Configuration")
    yield from _fenced(reproduce.as_yaml(result), "yaml")
    yield from _titled("Reproduce")
    yield "Save the configuration above as `config.yaml`; the decisions are read from the record of this run."
    yield ""
    yield from _fenced(reproduce.command(result), "sh")
    yield from _list("Files", [f"{what}: {code(path)}" for what, path in facts.files(result)])


def _budget(result: RunResult) -> Iterator[str]:
    yield from _titled("Verdict")
    yield from _table(("budget", "limit", "found", "verdict"), facts.budget(result), right=0)


def _stages(result: RunResult) -> Iterator[str]:
    if not result.stages:
        return
    yield from _titled("Stages")
    metric = facts.text(result.comparison.metric) or "metric"
    head: tuple[str, ...] = ("stage", "status", f"test {metric}", "agreement", "parameters", "MACs", "file size")
    head += (*facts.p50_titles(result), "speed-up over teacher", "integer kernels")
    rows = [
        (r.name, r.status, r.quality, r.agreement, r.parameters, r.macs, r.size, *r.p50, r.speedup, r.integer)
        for r in facts.rows(result)
    ]
    yield from _table(head, rows, right=len(head) - 2)
    for name, why in facts.notes(result):
        yield f"- **{escape(name)}** {escape(why)}"
    yield from (f"- `{sign}` {meaning}" for sign, meaning in facts.legend(facts.rows(result)))
    yield "- Brackets are 95 % intervals; the speed-up is over the teacher's fp32 ONNX file at the smallest batch."
    yield ""


def _control(result: RunResult) -> Iterator[str]:
    found = control_against_student(result)
    if found is None:
        return
    yield from _titled("What distillation bought")
    yield escape(found.sentence)
    yield ""
    yield from _table(("", "control", "student"), found.rows, right=2)


def _detail(stage: StageRecord) -> Iterator[str]:
    groups = stage_facts(stage)
    if not groups:
        return
    yield from _titled(f"Stage: {escape(stage.name)}")
    for group in groups:
        yield f"**{escape(group.title)}**"
        yield ""
        yield from _table(group.head, group.rows, right=len(group.head) - 1 if group.numbers else 0)


def _mapping(title: str, pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    rows = list(pairs)
    if rows:
        yield from _titled(title)
        yield from _table(("", ""), rows, right=0)


def _titled(title: str) -> Iterator[str]:
    yield ""
    yield f"## {title}"
    yield ""


def _list(title: str, items: Sequence[str]) -> Iterator[str]:
    if items:
        yield from _titled(title)
        yield from (f"- {one}" for one in items)
        yield ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, right: int) -> Iterator[str]:
    """Write a table whose last ``right`` columns are aligned right."""
    yield "| " + " | ".join(escape(one) for one in head) + " |"
    yield "|" + "|".join("---:" if place >= len(head) - right else "---" for place in range(len(head))) + "|"
    yield from ("| " + " | ".join(escape(one) for one in row) + " |" for row in rows)
    yield ""


def _fenced(text: str, language: str) -> Iterator[str]:
    yield fenced(text, language)
    yield ""
