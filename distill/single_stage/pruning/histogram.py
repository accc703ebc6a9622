"""How the importance of a group's units is spread, as an inline SVG for light and dark pages."""

from __future__ import annotations

from xml.etree.ElementTree import Element, SubElement, tostring

from distill.benchmarks import units
from distill.prune.record import GroupRecord

_WIDTH, _HEIGHT, _FLOOR = 260, 92, 76  # pixels; bars stand on the floor


def histogram_svg(group: GroupRecord) -> str:
    """Draw a bar an interval of the score: the units that went below those that stayed; colours are CSS classes."""
    totals = [stayed + went for stayed, went in zip(group.stayed, group.went, strict=True)]
    top, step = max([*totals, 1]), _WIDTH / max(1, len(totals))
    root = Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {_WIDTH} {_HEIGHT}",
            "class": "histogram",
            "role": "img",
            "aria-label": units.line(f"{group.name}: {sum(group.went)} of {sum(totals)} units went in the last step"),
        },
    )
    for number, (stayed, went) in enumerate(zip(group.stayed, group.went, strict=True)):
        floor = float(_FLOOR)
        for kind, many in (("went", went), ("stayed", stayed)):
            if many:
                tall = (_FLOOR - 4) * many / top
                floor -= tall
                bar = {"class": kind, "x": f"{number * step + 0.5:.1f}", "y": f"{floor:.1f}"}
                SubElement(root, "rect", bar | {"width": f"{step - 1:.1f}", "height": f"{tall:.1f}"})
    floor_line = {"class": "floor", "x1": "0", "x2": str(_WIDTH), "y1": str(_FLOOR), "y2": str(_FLOOR)}
    SubElement(root, "line", floor_line)
    for x, anchor, text in ((0, "start", "0"), (_WIDTH, "end", units.significant(group.highest))):
        SubElement(root, "text", {"x": str(x), "y": str(_HEIGHT - 3), "text-anchor": anchor}).text = text
    return tostring(root, encoding="unicode")
