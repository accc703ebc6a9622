"""The sensitivity of layers as a chart: one SVG that needs nothing else, for light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from distill.benchmarks import units
from distill.quantize.sensitivity import Sensitivity

_NAMES, _BARS, _TEXT, _MARGIN = 250, 360, 250, 16  # widths in pixels
_TOP, _ROW, _BAR, _BOTTOM = 76, 22, 14, 56  # heights
_DECADES = 12  # at most; what is smaller has a bar of no length
_LONGEST = 32  # characters of a name
# Without variables, which viewers other than browsers do not know.
_STYLE = """
.sensitivity text {
  font: 13px system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif; fill: #1f2328;
}
.sensitivity .title { font-size: 16px; font-weight: 600; }
.sensitivity .card { fill: #ffffff; }
.sensitivity .faint { fill: #59636e; }
.sensitivity .grid { stroke: #d1d9e0; }
.sensitivity .bar { fill: #0969da; }
.sensitivity .float { fill: none; stroke: #bc4c00; stroke-width: 2; stroke-dasharray: 4 2; }
@media (prefers-color-scheme: dark) {
  .sensitivity text { fill: #f0f6fc; }
  .sensitivity .card { fill: #0d1117; }
  .sensitivity .faint { fill: #9198a1; }
  .sensitivity .grid { stroke: #3d444d; }
  .sensitivity .bar { fill: #4493f8; }
  .sensitivity .float { stroke: #f0883e; }
}
"""


def sensitivity_svg(layers: Sequence[Sensitivity], floats: Collection[str], *, unit: str, rows: int) -> str:
    """Return an SVG file with a bar a layer, in the order of the graph: how far answers move with it alone in int8.

    The axis is logarithmic in ``unit``, and a divergence of 0 has no bar. The bars of layers whose outputs stayed float
    are outlined. ``rows`` are those of the call whose time is compared.
    """
    sizes = [layer.divergence for layer in layers if 0 < layer.divergence < math.inf]
    top = math.ceil(math.log10(max(sizes, default=1.0)))
    low = math.ceil(math.log10(min(sizes, default=1.0))) - 1  # so that the shortest bar can be seen
    axis = _Axis(max(low, top - _DECADES), top)
    width, height = 2 * _MARGIN + _NAMES + _BARS + _TEXT, _TOP + _ROW * len(layers) + _BOTTOM
    root = Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {width} {height}",
            "width": str(width),
            "height": str(height),
            "class": "sensitivity",
            "role": "img",
            "lang": "en",
            "aria-labelledby": "sensitivity-title sensitivity-description",
        },
    )
    title = "Sensitivity of each layer to int8"
    SubElement(root, "title", {"id": "sensitivity-title"}).text = title
    SubElement(root, "desc", {"id": "sensitivity-description"}).text = _description(layers, floats, unit)
    SubElement(root, "style").text = _STYLE
    SubElement(root, "rect", {"class": "card", "width": str(width), "height": str(height)})
    _text(root, _MARGIN, 28, title, "title")
    _text(root, _MARGIN, 50, f"divergence of the answers with this layer alone in int8, {unit} (log scale)", "faint")
    _grid(root, axis, len(layers))
    for number, layer in enumerate(layers):
        _layer(root, axis, _TOP + _ROW * number, layer, stays=layer.output in floats)
    _text(
        root,
        _MARGIN,
        height - 14,
        f"“saves” is the time that a layer's integer kernel saves in a call of {rows} rows; outlined bars stay float",
        "faint",
    )
    indent(root)
    return tostring(root, encoding="unicode") + "\n"


class _Axis(NamedTuple):
    """A logarithmic axis from 10^low to 10^top."""

    low: int
    top: int

    def length(self, value: float) -> float:
        """Return a bar's length in pixels: none for 0, all for what is not finite."""
        if value <= 0:
            return 0.0
        decades = math.log10(value) - self.low if math.isfinite(value) else self.top - self.low
        return _BARS * min(max(decades / (self.top - self.low), 0.0), 1.0)


def _grid(root: Element, axis: _Axis, count: int) -> None:
    """Draw a line for each decade, and label as many as there is room for."""
    bottom = _TOP + _ROW * count
    step = math.ceil((axis.top - axis.low) / 6)
    for power in range(axis.low, axis.top + 1):
        x = f"{_MARGIN + _NAMES + axis.length(10.0**power):.1f}"
        SubElement(root, "line", {"class": "grid", "x1": x, "x2": x, "y1": str(_TOP - 4), "y2": str(bottom)})
        if (power - axis.low) % step == 0:
            label = SubElement(root, "text", {"class": "faint", "x": x, "y": str(bottom + 16), "text-anchor": "middle"})
            label.text = f"1e{power}".replace("-", units.MINUS)


def _layer(root: Element, axis: _Axis, y: int, layer: Sensitivity, *, stays: bool) -> None:
    """Draw a layer: its name, its bar, and in words what it costs and saves."""
    group = SubElement(root, "g")
    cost = _cost(layer, stays=stays)
    SubElement(group, "title").text = f"{_name(layer)}: {cost}"
    _text(group, _MARGIN + _NAMES - 8, y + _BAR - 2, _short(_name(layer)), anchor="end")
    bar = {"class": "float" if stays else "bar", "x": str(_MARGIN + _NAMES), "y": str(y), "height": str(_BAR)}
    SubElement(group, "rect", bar | {"width": f"{axis.length(layer.divergence):.1f}"})
    _text(group, _MARGIN + _NAMES + _BARS + 8, y + _BAR - 2, cost)


def _cost(layer: Sensitivity, *, stays: bool) -> str:
    parts = [units.significant(layer.divergence, 2) if math.isfinite(layer.divergence) else "not finite"]
    if layer.saved_s is not None:
        micros = units.significant(abs(layer.saved_s) * 1e6)
        parts.append(f"{'saves' if layer.saved_s >= 0 else 'costs'} {micros} µs")
    return ", ".join([*parts, *(["stays float"] if stays else [])])


def _name(layer: Sensitivity) -> str:
    return units.line(f"{layer.name or layer.output} {layer.operator}")


def _short(name: str) -> str:
    """Leave out the middle of a long name: its ends tell layers apart."""
    half = (_LONGEST - 1) // 2
    return name if len(name) <= _LONGEST else f"{name[:half]}…{name[-half:]}"


def _description(layers: Sequence[Sensitivity], floats: Collection[str], unit: str) -> str:
    """Say in words what the chart shows."""
    worst = max(layers, key=lambda layer: layer.divergence)
    count = sum(layer.output in floats for layer in layers)
    floating = f"{count} of them stayed float." if count else "None of them stayed float."
    return (
        f"A bar chart of {len(layers)} layers in the order of the graph. {_name(worst)} moves the answers farthest: "
        f"{_cost(worst, stays=worst.output in floats)} ({unit}). {floating}"
    )


def _text(parent: Element, x: int, y: int, text: str, kind: str = "", *, anchor: str = "start") -> None:
    place = {"x": str(x), "y": str(y), "text-anchor": anchor} | ({"class": kind} if kind else {})
    SubElement(parent, "text", place).text = text
