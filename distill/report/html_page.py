"""`report.html`: everything in one file that opens without a network; plotly.js is in it once."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from distill import clean
from distill.benchmarks import units as fmt
from distill.report import charts, details, facts, reproduce
from distill.runtime.records import RunResult

_TEMPLATE = "report.html.j2"


def html(result: RunResult) -> str:
    """Return the report as one HTML file of about 5 MB (plotly.js), or of some KB when the run has nothing to draw."""
    return _environment().get_template(_TEMPLATE).render(_context(result)) + "\n"


def _context(result: RunResult) -> dict[str, Any]:
    drawn = charts.charts(result)
    return {
        "result": result,
        "head": facts.headline(result),
        "cards": _cards(result),
        "budget": facts.budget(result),
        "verdict": result.comparison.verdict,
        "metric": facts.text(result.comparison.metric) or "metric",
        "titles": facts.p50_titles(result),
        "rows": facts.rows(result),
        "bars": _bars(result),
        "notes": facts.notes(result),
        "warnings": facts.warnings(result),
        "legend": facts.legend(facts.rows(result)),
        "charts": drawn,
        "figures": _finite([{"id": one.key, "data": one.data, "layout": one.layout} for one in drawn]),
        "plotly": _plotly() if drawn else "",
        "stages": [(stage, facts.reason(stage), details.stage_facts(stage)) for stage in result.stages],
        "widths": {stage.name: list(details.widths(stage)) for stage in result.stages},
        "control": details.control_against_student(result),
        "splits": details.splits(result),
        "leaks": [words for _, words in facts.warnings(result) if "leak" in words.lower()],
        "machine": list(facts.flatten(result.machine)),
        "target": list(facts.flatten(result.target)),
        "config": clean.text(reproduce.as_yaml(result)),
        "command": clean.text(reproduce.command(result)),
        "files": facts.files(result),
        "dash": fmt.DASH,
    }


def _cards(result: RunResult) -> list[dict[str, str]]:
    """Return the four figures that matter: speed, size, quality, latency; each with what it is measured against."""
    total, last, teacher = result.comparison, facts.shipped(result), facts.find(result, "teacher")
    batch = (facts.batches(result) or (None,))[0]
    now, before = facts.timing(last, batch), facts.timing(teacher, batch)
    value, bounds = facts.quality_of(last.test if last else None, total.metric)
    bytes_now = fmt.size(last.file_bytes) if last else fmt.DASH
    bytes_before = fmt.size(teacher.file_bytes) if teacher else fmt.DASH
    speed = fmt.times(getattr(total.speedup, "value", None))
    return [
        {
            "title": "Speed-up at batch 1",
            "value": speed if speed != fmt.DASH else "unmeasured",
            "sub": f"interval [{fmt.interval(total.speedup)}]" if speed != fmt.DASH else facts.target_words(result),
            "more": f"quiet {fmt.times(now.quiet_speedup)}" if now and now.quiet_speedup is not None else "",
        },
        {"title": "Smaller", "value": fmt.times(total.size_ratio), "sub": f"{bytes_before} → {bytes_now}", "more": ""},
        {
            "title": f"Test {facts.text(total.metric) or 'metric'}",
            "value": value,
            "sub": bounds and f"interval {bounds}",
            "more": f"drop {fmt.drop(total.metric_drop)}" if total.metric_drop else "",
        },
        {
            "title": f"p50 latency, batch {fmt.plain(batch)}" if batch is not None else "p50 latency",
            "value": fmt.duration(now.p50_s) if now else "unmeasured",
            "sub": f"teacher {fmt.duration(before.p50_s)}" if before else "",
            "more": facts.target_words(result) if now else "",
        },
    ]


def _bars(result: RunResult) -> list[dict[str, float]]:
    """Return how long the bars behind sizes and latencies are, in percent of the column's largest."""
    sizes = facts.batches(result)
    columns: dict[str, list[float]] = {"size": [fmt.number(stage.file_bytes) or 0.0 for stage in result.stages]}
    for place, batch in enumerate(sizes):
        timed = [facts.timing(stage, batch) for stage in result.stages]
        columns[f"p50-{place}"] = [(fmt.number(one.p50_s) or 0.0) if one else 0.0 for one in timed]
    tops = {name: max(values, default=0.0) for name, values in columns.items()}
    return [
        {
            name: round(100 * max(0.0, values[row]) / tops[name], 1) if tops[name] > 0 else 0.0
            for name, values in columns.items()
        }
        for row in range(len(result.stages))
    ]


@cache
def _environment() -> jinja2.Environment:
    folder = jinja2.FileSystemLoader(Path(__file__).parent)
    found = jinja2.Environment(
        loader=folder,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    found.filters |= {"elapsed": fmt.elapsed, "plain": fmt.plain}
    return found


def _finalize(value: Any) -> Any:
    """Let no control character, bidi override or lone surrogate of a user's text into the page."""
    return clean.text(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _finite(value: Any) -> Any:
    """Replace what JSON has no word for: a browser does not read NaN."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return fmt.number(value) if isinstance(value, float) else value


def _plotly() -> Markup:
    """Return plotly.js; the charts need it and a report must not fetch it."""
    from plotly.offline import get_plotlyjs  # slow to import, and only a report with charts needs it

    return Markup(get_plotlyjs())
