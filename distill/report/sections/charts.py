"""The charts as plotly figures in plain dicts; colours are names of CSS variables, so that light and dark both work.

A stage without the numbers that a chart needs is not in the chart; a chart without stages is not in the report.
"""

from __future__ import annotations

import html
import math
from dataclasses import replace
from typing import Any, TypeAlias

from distill.benchmarks import units
from distill.rendering.document import Chart, Charts, Section
from distill.report import facts
from distill.runtime.records import RunResult, StageRecord

Drawing: TypeAlias = dict[str, Any]
"""A part of what plotly draws."""
_FONT = {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif", "size": 13}
_STAGES = ("teacher", "control", "student", "prune", "quantize", "export")
_INK, _FAINT, _GRID, _CARD = "var(--ink)", "var(--faint)", "var(--grid)", "var(--card)"


def charts(result: RunResult) -> Section | None:
    """Show the charts for which the run has numbers."""
    every: list[Chart | None] = [trade_off(result)]
    every += [latency_bars(result, batch) for batch in facts.batches(result)]
    drop = drops(result)
    every += [drop, *curves(result)]
    figures = [chart for chart in every if chart is not None]
    if drop is not None and sum(not chart.wide for chart in figures) % 2:
        figures[figures.index(drop)] = replace(drop, wide=True)  # so that no half of a row stays empty
    return Section("Charts", [Charts(figures)]) if figures else None


def trade_off(result: RunResult) -> Chart | None:
    """Draw latency at the smallest batch against the test metric; a circle's area is the file's size."""
    batch = (facts.batches(result) or (None,))[0]
    stages = []
    for stage in result.stages:
        timed, estimate = facts.timing(stage, batch), _estimate(result, stage)
        if timed and _positive(timed.p50_s) and units.number(getattr(estimate, "value", None)) is not None:
            stages.append(stage)
    if not stages or batch is None:
        return None
    scale, unit = _scale(result, stages, batch)
    largest = max(units.number(stage.file_bytes) or 0.0 for stage in stages)
    metric = _label(result.comparison.metric or "metric")
    data = [_path(result, stages, batch, scale)]
    circles = [_circle(result, stage, batch, scale, largest) for stage in stages]
    slowest = max(circle["x"][0] for circle in circles)
    for place, circle in enumerate(circles):
        # Beside the whisker and beside the line; the one at the right edge towards the middle.
        rightmost = circle["x"][0] >= slowest
        circle["textposition"] = "top left" if rightmost else ("top right", "bottom left")[place % 2]
    data += circles
    layout = _layout(
        xaxis={**_axis(f"p50 latency at batch {batch}, {unit} (logarithmic; left is faster)"), **_log_range(data)},
        yaxis=_axis(f"test {metric}{_percent_title(result, stages)}"),
        showlegend=False,
    )
    layout["xaxis"]["type"] = "log"
    limit = _limit(result)
    if limit is not None:
        layout["shapes"] = [_rule("x", limit / scale)]
        layout["annotations"] = [_note(math.log10(limit / scale), f"limit {units.duration(limit)}")]
    caption = (
        "Each circle is a stage's shipped form, its area the file's size, its whiskers the 95 % interval; "
        "hollow circles were not kept. Higher and further left is better."
    )
    return Chart("trade-off", "Latency against quality", caption, 430, data, layout, wide=True)


def latency_bars(result: RunResult, batch: int) -> Chart | None:
    """Draw the p50 latency of every stage at one batch size, with the speed-up written on the bar."""
    stages = [stage for stage in result.stages if (timed := facts.timing(stage, batch)) and _positive(timed.p50_s)]
    if not stages:
        return None
    scale, unit = _scale(result, stages, batch)
    values, texts = [], []
    for stage in stages:
        timed = facts.timing(stage, batch)
        assert timed is not None
        values.append(timed.p50_s / scale)
        faster = units.times(getattr(timed.speedup, "value", None))
        texts.append(units.duration(timed.p50_s) + (f" · {faster}" if faster != units.DASH else ""))
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": values,
        "y": [stage.name for stage in stages],
        "text": texts,
        "textposition": "outside",
        "cliponaxis": False,
        "textfont": {"color": _INK},
        "hoverinfo": "skip",
        "marker": {"color": [_colour(stage) for stage in stages], "opacity": [_opacity(stage) for stage in stages]},
    }
    layout = _layout(
        xaxis={**_axis(f"p50 latency, {unit}"), "range": [0, max(values) * 1.42]},
        yaxis=_category_axis(),
        bargap=0.38,
    )
    title = f"Latency at batch {batch}"
    caption = "Shorter is better; beside each bar the median latency and the speed-up over the teacher's fp32 ONNX."
    return Chart(f"latency-{batch}", title, caption, 110 + 38 * len(stages), [bars], layout)


def drops(result: RunResult) -> Chart | None:
    """Draw each stage's paired drop from the teacher on test, with its interval and the limit."""
    stages = [s for s in result.stages if s.test and s.test.drop and units.number(s.test.drop.value) is not None]
    if not stages:
        return None
    judged = [stage.test.drop for stage in stages if stage.test and stage.test.drop]
    bars = {
        "type": "scatter",
        "mode": "markers",
        "x": [drop.value * 100 for drop in judged],
        "y": [stage.name for stage in stages],
        "marker": {"size": 11, "color": [_colour(stage) for stage in stages]},
        "error_x": _whiskers([(d.value * 100, _times100(d.low), _times100(d.high)) for d in judged], 1.6),
        "hovertext": [f"{stage.name}: {units.drop(d)}, {d.verdict}" for stage, d in zip(stages, judged, strict=True)],
        "hoverinfo": "text",
    }
    limit = units.number(judged[-1].limit)
    layout = _layout(
        xaxis={**_axis(f"drop in {_label(result.comparison.metric or 'the metric')}, points (right is worse)")},
        yaxis=_category_axis(),
    )
    layout["xaxis"] |= {"rangemode": "tozero", "zeroline": True, "zerolinecolor": _FAINT, "zerolinewidth": 1}
    caption = "Paired differences on the test split with their 95 % intervals."
    if limit is not None:
        layout["shapes"] = [_rule("x", limit * 100)]
        layout["annotations"] = [_note(limit * 100, f"limit {units.points(limit, unit=False)}")]
        caption += " A budget is met where the whole interval lies left of the dashed limit."
    return Chart("drops", "Drop from the teacher", caption, 120 + 38 * len(stages), [bars], layout)


def curves(result: RunResult) -> tuple[Chart, ...]:
    """Draw validation metric and loss by epoch, one chart each, for the stages that recorded them."""
    figures = []
    for key, title, caption in (
        ("validation", "Validation by epoch", "Every choice of an epoch was made on this curve, never on test."),
        ("loss", "Training loss by epoch", "Losses of different stages are different functions: compare shapes."),
    ):
        lines = []
        for stage in result.stages:
            values = facts.curve(stage, key)
            if values:
                lines.append(_line(stage, values))
        if lines:
            layout = _layout(
                xaxis={**_axis("epoch"), "rangemode": "tozero"}, yaxis=_axis("" if key == "loss" else "validation")
            )
            layout |= {"legend": {"orientation": "h", "y": -0.28, "x": 0, "font": {"color": _INK}}, "showlegend": True}
            figures.append(Chart(f"curve-{key}", title, caption, 330, lines, layout))
    return tuple(figures)


def _line(stage: StageRecord, values: list[float | None]) -> Drawing:
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(values) < 30 else "lines",
        "name": stage.name,
        "x": list(range(1, len(values) + 1)),
        "y": values,
        "line": {"color": _colour(stage), "width": 2.2, "dash": "dot" if stage.name == "control" else "solid"},
        "marker": {"size": 4},
        "hovertemplate": "epoch %{x}: %{y:.4~g}<extra>" + _label(stage.name) + "</extra>",
    }


def _circle(result: RunResult, stage: StageRecord, batch: int, scale: float, largest: float) -> Drawing:
    timed, estimate = facts.timing(stage, batch), _estimate(result, stage)
    assert timed is not None and stage.test is not None
    factor = _factor(result, stage)
    value = estimate.value * factor
    radius = (max(units.number(stage.file_bytes) or 0.0, 0.0) / largest) ** 0.5 if largest > 0 else 0.3
    hollow = stage.status == "reverted" or stage.name == "control"
    lines = [
        f"<b>{_label(stage.name)}</b>",
        f"{_label(result.comparison.metric)} {units.metric(estimate, stage.test.samples)}",
        f"p50 {units.duration(timed.p50_s)}",
        units.size(stage.file_bytes),
    ]
    colour = _colour(stage)
    return {
        "type": "scatter",
        "mode": "markers+text",
        "x": [timed.p50_s / scale],
        "y": [value],
        "text": [_label(stage.name)],
        "textfont": {"color": _INK},
        "hovertext": ["<br>".join(lines)],
        "hoverinfo": "text",
        "error_y": _whiskers([(value, _scaled(estimate.low, factor), _scaled(estimate.high, factor))], 1.2, colour),
        "marker": {
            "size": [12 + 38 * radius],
            "color": "rgba(0,0,0,0)" if hollow else colour,
            "opacity": 1 if hollow else 0.82,
            "line": {"color": colour, "width": 2},
        },
    }


def _path(result: RunResult, stages: list[StageRecord], batch: int, scale: float) -> Drawing:
    """Join the stages that led to the shipped file."""
    path = [stage for stage in stages if stage.status == "done" and stage.name != "control"]
    points = [(facts.timing(stage, batch), _estimate(result, stage), _factor(result, stage)) for stage in path]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [timed.p50_s / scale for timed, _, _ in points if timed],
        "y": [estimate.value * factor for _, estimate, factor in points],
        "line": {"color": _FAINT, "width": 1.2, "dash": "dot"},
        "hoverinfo": "skip",
    }


def _limit(result: RunResult) -> float | None:
    """Return the latency budget in seconds, where one was set."""
    benchmark = result.config.get("benchmark")
    bound = units.number(benchmark.get("max_latency_s")) if isinstance(benchmark, dict) else None
    return bound if bound is not None and bound > 0 else None


def _log_range(data: list[Drawing]) -> Drawing:
    """Leave room for the circles at both ends, and name the ticks 1, 2, 5, 10, ... in full."""
    values = [math.log10(x) for trace in data for x in trace["x"]]
    room = max(0.15, 0.12 * (max(values) - min(values)))
    low, high = min(values) - room, max(values) + room
    steps = (1, 2, 5) if high - low < 2.5 else (1,)
    ticks = [
        step * 10.0**power
        for power in range(max(-300, math.floor(low)), min(300, math.ceil(high)) + 1)
        for step in steps
    ]
    ticks = [tick for tick in ticks if low <= math.log10(tick) <= high]
    return {"range": [low, high], "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def _whiskers(values: list[tuple[float, float | None, float | None]], width: float, colour: str = _FAINT) -> Drawing:
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(0.0, high - value) if high is not None else None for value, _, high in values],
        "arrayminus": [max(0.0, value - low) if low is not None else None for value, low, _ in values],
        "color": colour,
        "thickness": width,
        "width": 5,
    }


def _rule(axis: str, at: float) -> Drawing:
    line = {"color": "var(--bad)", "width": 1.5, "dash": "dash"}
    return {"type": "line", "xref": axis, "yref": "paper", "x0": at, "x1": at, "y0": 0, "y1": 1, "line": line}


def _note(at: float, text: str) -> Drawing:
    font = {"color": "var(--bad)", "size": 12}
    return {"x": at, "y": 1, "yref": "paper", "yanchor": "bottom", "text": text, "showarrow": False, "font": font}


def _layout(**more: Any) -> Drawing:
    return {
        "font": {**_FONT, "color": _INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 64, "r": 24, "t": 22, "b": 56},
        "hoverlabel": {"bgcolor": _CARD, "bordercolor": _FAINT, "font": {"color": _INK}},
        "showlegend": False,
        **more,
    }


def _axis(title: str) -> Drawing:
    return {
        "title": {"text": title, "font": {"size": 12, "color": _FAINT}},
        "gridcolor": _GRID,
        "linecolor": _GRID,
        "zeroline": False,
        "tickfont": {"color": _FAINT, "size": 12},
        "automargin": True,
    }


def _category_axis() -> Drawing:
    return {
        "type": "category",
        "autorange": "reversed",
        "automargin": True,
        "tickfont": {"color": _INK},
        "ticklen": 6,
        "tickcolor": "rgba(0,0,0,0)",
        "gridcolor": "rgba(0,0,0,0)",
    }  # units: skip


def _estimate(result: RunResult, stage: StageRecord) -> Any:
    return stage.test.metrics.get(result.comparison.metric) if stage.test else None


def _factor(result: RunResult, stage: StageRecord) -> float:
    """Return 100 for a metric that is a fraction, as all of a task's metrics should be, else 1."""
    estimate = _estimate(result, stage)
    return 100.0 if 0 <= estimate.value <= 1 else 1.0


def _percent_title(result: RunResult, stages: list[StageRecord]) -> str:
    return ", %" if all(_factor(result, stage) == 100 for stage in stages) else ""


def _scale(result: RunResult, stages: list[StageRecord], batch: int) -> tuple[float, str]:
    """Choose the unit of a latency axis by the longest latency on it."""
    longest = max(timed.p50_s for stage in stages if (timed := facts.timing(stage, batch)))
    return next(((s, unit) for s, unit in ((1.0, "s"), (1e-3, "ms")) if longest >= s), (1e-6, "µs"))


def _scaled(value: Any, factor: float) -> float | None:
    number = units.number(value)
    return None if number is None else number * factor


def _times100(value: Any) -> float | None:
    return _scaled(value, 100)


def _positive(value: Any) -> bool:
    return (units.number(value) or 0) > 0


def _colour(stage: StageRecord) -> str:
    return f"var(--stage-{stage.name})" if stage.name in _STAGES else _FAINT


def _opacity(stage: StageRecord) -> float:
    return 0.45 if stage.status == "reverted" else 0.9


def _label(text: Any) -> str:
    """Escape for plotly, which reads some tags (links too) in its texts."""
    return html.escape(units.line(text), quote=False)
