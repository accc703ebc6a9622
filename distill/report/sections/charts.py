"""The charts as plotly figures in plain dicts; colours are names of CSS variables, so that light and dark both work.

A stage without the numbers that a chart needs is not in the chart; a chart without stages is not in the report.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from distill.benchmarks import units
from distill.intervals import Estimate
from distill.rendering.document import Chart, Charts, Section
from distill.report import facts
from distill.runtime.facts import Drop, StageLatency
from distill.runtime.records import RunResult, StageRecord

Drawing: TypeAlias = dict[str, Any]
"""A part of what plotly draws."""
_FONT = {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif", "size": 13}
_STAGES = ("teacher", "control", "student", "prune", "quantize", "export")
_INK, _FAINT, _GRID, _CARD, _BAD = "var(--ink)", "var(--faint)", "var(--grid)", "var(--card)", "var(--bad)"
_CLEAR = "rgba(0,0,0,0)"
_CURVES = (
    ("validation", "Validation by epoch", "Every choice of an epoch was made on this curve, never on test."),
    ("loss", "Training loss by epoch", "Losses of different stages are different functions: compare shapes."),
)


def charts(result: RunResult) -> Section | None:
    """Show the charts for which the run has numbers."""
    drop = drops(result)
    bars = (latency_bars(result, batch) for batch in facts.batches(result))
    figures = [chart for chart in (trade_off(result), *bars, drop, *curves(result)) if chart is not None]
    if drop is not None and sum(not chart.wide for chart in figures) % 2:
        figures[figures.index(drop)] = replace(drop, wide=True)  # so that no half of a row stays empty
    return Section("Charts", [Charts(figures)]) if figures else None


def trade_off(result: RunResult) -> Chart | None:
    """Draw latency at the smallest batch against the test metric; a circle's area is the file's size."""
    batch, metric = (facts.batches(result) or (None,))[0], result.comparison.metric
    points = [
        (stage, timed, estimate)
        for stage, timed in _timed(result, batch)
        if (estimate := stage.test.metrics.get(metric) if stage.test else None)
        and units.number(estimate.value) is not None
    ]
    if not points:
        return None
    scale, unit = _scale(timed for _, timed, _ in points)
    largest = max(units.number(stage.file_bytes) or 0.0 for stage, _, _ in points)
    circles = [_circle(stage, timed, estimate, metric, scale, largest) for stage, timed, estimate in points]
    slowest = max(circle["x"][0] for circle in circles)
    for place, circle in enumerate(circles):
        # Beside the whisker and beside the line; the one at the right edge towards the middle.
        rightmost = circle["x"][0] >= slowest
        circle["textposition"] = "top left" if rightmost else ("top right", "bottom left")[place % 2]
    led = [
        circle
        for circle, (stage, _, _) in zip(circles, points, strict=True)
        if stage.status == "done" and stage.name != "control"
    ]
    path = {
        "type": "scatter",
        "mode": "lines",
        "x": [circle["x"][0] for circle in led],
        "y": [circle["y"][0] for circle in led],
        "line": {"color": _FAINT, "width": 1.2, "dash": "dot"},
        "hoverinfo": "skip",
    }
    latencies = f"p50 latency at batch {batch}, {unit} (logarithmic; left is faster)"
    percent = ", %" if all(_factor(estimate) == 100 for _, _, estimate in points) else ""
    layout = _layout(
        xaxis=_axis(latencies, type="log", **_log_range([circle["x"][0] for circle in circles])),
        yaxis=_axis(f"test {_label(metric or 'metric')}{percent}"),
    )
    limit = facts.latency_limit(result)
    if limit is not None and limit > 0:
        layout |= _limit(limit / scale, math.log10(limit / scale), units.duration(limit))
    caption = (
        "Each circle is a stage's shipped form, its area the file's size, its whiskers the 95 % interval; "
        "hollow circles were not kept. Higher and further left is better."
    )
    return Chart("trade-off", "Latency against quality", caption, 430, [path, *circles], layout, wide=True)


def latency_bars(result: RunResult, batch: int) -> Chart | None:
    """Draw the p50 latency of every stage at one batch size, with the speed-up written on the bar."""
    points = _timed(result, batch)
    if not points:
        return None
    stages = [stage for stage, _ in points]
    scale, unit = _scale(timed for _, timed in points)
    values = [timed.p50_s / scale for _, timed in points]
    texts = []
    for _, timed in points:
        faster = units.times(getattr(timed.speedup, "value", None))
        texts.append(units.duration(timed.p50_s) + (f" · {faster}" if faster != units.DASH else ""))
    opacities = [0.45 if stage.status == "reverted" else 0.9 for stage in stages]
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
        "marker": {"color": [_colour(stage) for stage in stages], "opacity": opacities},
    }
    latencies = _axis(f"p50 latency, {unit}", range=[0, max(values) * 1.42])
    layout = _layout(xaxis=latencies, yaxis=_category_axis(), bargap=0.38)
    title = f"Latency at batch {batch}"
    caption = "Shorter is better; beside each bar the median latency and the speed-up over the teacher's fp32 ONNX."
    return Chart(f"latency-{batch}", title, caption, 110 + 38 * len(stages), [bars], layout)


def drops(result: RunResult) -> Chart | None:
    """Draw each stage's paired drop from the teacher on test, with its interval and the limit."""
    judged = [(stage, stage.test.drop) for stage in result.stages if stage.test and stage.test.drop]
    judged = [(stage, drop) for stage, drop in judged if units.number(drop.value) is not None]
    if not judged:
        return None
    marks = {
        "type": "scatter",
        "mode": "markers",
        "x": [drop.value * 100 for _, drop in judged],
        "y": [stage.name for stage, _ in judged],
        "marker": {"size": 11, "color": [_colour(stage) for stage, _ in judged]},
        "error_x": _whiskers([drop for _, drop in judged], 100, 1.6),
        "hovertext": [f"{stage.name}: {units.drop(drop)}, {drop.verdict}" for stage, drop in judged],
        "hoverinfo": "text",
    }
    title = f"drop in {_label(result.comparison.metric or 'the metric')}, points (right is worse)"
    axis = _axis(title, rangemode="tozero", zeroline=True, zerolinecolor=_FAINT, zerolinewidth=1)
    layout = _layout(xaxis=axis, yaxis=_category_axis())
    caption = "Paired differences on the test split with their 95 % intervals."
    limit = units.number(judged[-1][1].limit)
    if limit is not None:
        layout |= _limit(limit * 100, limit * 100, units.points(limit, unit=False))
        caption += " A budget is met where the whole interval lies left of the dashed limit."
    return Chart("drops", "Drop from the teacher", caption, 120 + 38 * len(judged), [marks], layout)


def curves(result: RunResult) -> list[Chart]:
    """Draw validation metric and loss by epoch, one chart each, for the stages that recorded them."""
    legend = {"orientation": "h", "y": -0.28, "x": 0, "font": {"color": _INK}}
    figures = []
    for key, title, caption in _CURVES:
        lines = [_line(stage, values) for stage in result.stages if (values := facts.curve(stage, key))]
        if lines:
            axes = {"xaxis": _axis("epoch", rangemode="tozero"), "yaxis": _axis("" if key == "loss" else "validation")}
            layout = _layout(**axes, legend=legend, showlegend=True)
            figures.append(Chart(f"curve-{key}", title, caption, 330, lines, layout))
    return figures


def _timed(result: RunResult, batch: int | None) -> list[tuple[StageRecord, StageLatency]]:
    """Return the stages that were timed at a batch size, with how."""
    pairs = [(stage, facts.timing(stage, batch)) for stage in result.stages]
    return [(stage, timed) for stage, timed in pairs if timed and (units.number(timed.p50_s) or 0) > 0]


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


def _circle(
    stage: StageRecord, timed: StageLatency, estimate: Estimate, metric: str, scale: float, largest: float
) -> Drawing:
    assert stage.test is not None
    factor, colour = _factor(estimate), _colour(stage)
    radius = (max(units.number(stage.file_bytes) or 0.0, 0.0) / largest) ** 0.5 if largest > 0 else 0.3
    hollow = stage.status == "reverted" or stage.name == "control"
    lines = [
        f"<b>{_label(stage.name)}</b>",
        f"{_label(metric)} {units.metric(estimate, stage.test.samples)}",
        f"p50 {units.duration(timed.p50_s)}",
        units.size(stage.file_bytes),
    ]
    return {
        "type": "scatter",
        "mode": "markers+text",
        "x": [timed.p50_s / scale],
        "y": [estimate.value * factor],
        "text": [_label(stage.name)],
        "textfont": {"color": _INK},
        "hovertext": ["<br>".join(lines)],
        "hoverinfo": "text",
        "error_y": _whiskers([estimate], factor, 1.2, colour),
        "marker": {
            "size": [12 + 38 * radius],
            "color": _CLEAR if hollow else colour,
            "opacity": 1 if hollow else 0.82,
            "line": {"color": colour, "width": 2},
        },
    }


def _log_range(latencies: Sequence[float]) -> Drawing:
    """Leave room for the circles at both ends, and name the ticks 1, 2, 5, 10, ... in full."""
    values = [math.log10(x) for x in latencies]
    room = max(0.15, 0.12 * (max(values) - min(values)))
    low, high = min(values) - room, max(values) + room
    steps = (1, 2, 5) if high - low < 2.5 else (1,)
    powers = range(max(-300, math.floor(low)), min(300, math.ceil(high)) + 1)
    ticks = [step * 10.0**power for power in powers for step in steps]
    ticks = [tick for tick in ticks if low <= math.log10(tick) <= high]
    return {"range": [low, high], "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def _whiskers(estimates: Sequence[Estimate | Drop], factor: float, width: float, colour: str = _FAINT) -> Drawing:
    def lengths(side: str, sign: int) -> list[float | None]:
        bounds = [units.number(getattr(estimate, side)) for estimate in estimates]
        return [
            None if bound is None else max(0.0, sign * (bound * factor - estimate.value * factor))
            for bound, estimate in zip(bounds, estimates, strict=True)
        ]

    arms = {"array": lengths("high", 1), "arrayminus": lengths("low", -1)}
    return {"type": "data", "symmetric": False, **arms, "color": colour, "thickness": width, "width": 5}


def _limit(at: float, note_at: float, text: str) -> Drawing:
    """Draw a dashed line at a limit, and say above it what it is; on a logarithmic axis a note lies at the power."""
    line = {"color": _BAD, "width": 1.5, "dash": "dash"}
    rule = {"type": "line", "xref": "x", "yref": "paper", "x0": at, "x1": at, "y0": 0, "y1": 1, "line": line}
    place = {"x": note_at, "y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False}
    return {
        "shapes": [rule],
        "annotations": [{**place, "text": f"limit {text}", "font": {"color": _BAD, "size": 12}}],
    }


def _layout(**more: Any) -> Drawing:
    return {
        "font": {**_FONT, "color": _INK},
        "paper_bgcolor": _CLEAR,
        "plot_bgcolor": _CLEAR,
        "margin": {"l": 64, "r": 24, "t": 22, "b": 56},
        "hoverlabel": {"bgcolor": _CARD, "bordercolor": _FAINT, "font": {"color": _INK}},
        "showlegend": False,
        **more,
    }


def _axis(title: str, **more: Any) -> Drawing:
    return {
        "title": {"text": title, "font": {"size": 12, "color": _FAINT}},
        "gridcolor": _GRID,
        "linecolor": _GRID,
        "zeroline": False,
        "tickfont": {"color": _FAINT, "size": 12},
        "automargin": True,
        **more,
    }


def _category_axis() -> Drawing:
    ticks = {"tickfont": {"color": _INK}, "ticklen": 6, "tickcolor": _CLEAR}
    return {"type": "category", "autorange": "reversed", "automargin": True, "gridcolor": _CLEAR, **ticks}


def _factor(estimate: Estimate) -> float:
    """Return 100 for a metric that is a fraction, as all of a task's metrics should be, else 1."""
    return 100.0 if 0 <= estimate.value <= 1 else 1.0


def _scale(timings: Iterable[StageLatency]) -> tuple[float, str]:
    """Choose the unit of a latency axis by the longest latency on it."""
    longest = max(timed.p50_s for timed in timings)
    return next(((s, unit) for s, unit in ((1.0, "s"), (1e-3, "ms")) if longest >= s), (1e-6, "µs"))


def _colour(stage: StageRecord) -> str:
    return f"var(--stage-{stage.name})" if stage.name in _STAGES else _FAINT


def _label(text: Any) -> str:
    """Escape for plotly, which reads some tags (links too) in its texts."""
    return html.escape(units.line(text), quote=False)
