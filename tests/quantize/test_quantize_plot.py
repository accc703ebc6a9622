from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.quantize.sensitivity import Sensitivity
from distill.single_stage.quantizing.plot import sensitivity_svg

SVG = "{http://www.w3.org/2000/svg}"
LAYERS = [
    Sensitivity("stem", "Conv", 1e-4, 12e-6),
    Sensitivity("middle", "Conv", 1e-2, -3e-6),
    Sensitivity("head", "Gemm", 1e-3),
]


def drawn(layers: list[Sensitivity], floats: set[str] | None = None) -> ElementTree.Element:
    return ElementTree.fromstring(sensitivity_svg(layers, floats or set(), unit="nats a sample", rows=32))


def bars(chart: ElementTree.Element) -> list[float]:
    """Return the lengths of the bars, in the order of the layers."""
    return [float(group.find(f"{SVG}rect").get("width")) for group in chart.iter(f"{SVG}g")]  # type: ignore[union-attr,arg-type]


def words(chart: ElementTree.Element) -> str:
    return " | ".join(one.text or "" for one in chart.iter(f"{SVG}text"))


def test_the_bars_are_on_a_logarithmic_axis() -> None:
    small, large, between = bars(drawn(LAYERS))
    assert 0 < small < between < large
    assert large - between == pytest.approx(between - small, abs=0.2)


def test_time_saved_and_float_layers_are_said_in_words() -> None:
    said = words(drawn(LAYERS, {"middle"}))
    assert "saves 12.0 µs" in said
    assert "costs 3.00 µs, stays float" in said
    assert said.count("stays float") == 1
    assert "in a call of 32 rows; outlined bars stay float" in said


def test_the_chart_has_a_title_and_a_description_and_needs_nothing_else() -> None:
    text = sensitivity_svg(LAYERS, {"middle"}, unit="nats a sample", rows=32)
    chart = ElementTree.fromstring(text)
    named = (chart.get("aria-labelledby") or "").split()
    assert [chart.find(f"{SVG}{kind}").get("id") for kind in ("title", "desc")] == named  # type: ignore[union-attr]
    assert chart.get("role") == "img"
    description = chart.findtext(f"{SVG}desc") or ""
    assert "3 layers" in description
    assert "middle Conv moves the answers farthest" in description
    assert "prefers-color-scheme: dark" in text
    assert text.count("http") == 1  # the name of SVG itself
    assert not any(word in text for word in ("<script", "href", "@import", "url("))


@pytest.mark.parametrize("value", [0.0, math.inf, math.nan, 1e-300, 1.0, 10.0])
def test_any_divergence_can_be_drawn(value: float) -> None:
    (length,) = bars(drawn([Sensitivity("only", "Conv", value)]))
    assert 0 <= length <= 360
    assert bool(length) is (value != 0)


@settings(max_examples=60, deadline=None)
@given(name=st.text(max_size=80))
def test_names_are_escaped(name: str) -> None:
    chart = drawn([Sensitivity(name, "Conv", 0.1)], {name})
    assert len(list(chart.iter())) == len(list(drawn(LAYERS[:1], {"stem"}).iter()))


def test_markup_in_a_name_is_text() -> None:
    assert "<b>&\"' Conv" in words(drawn([Sensitivity("<b>&\"'", "Conv", 0.1)]))
