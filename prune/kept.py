"""Why layers stay as they are, told together."""

from __future__ import annotations

from collections.abc import Mapping


def by_reason(left: Mapping[str, str]) -> list[str]:
    """Say of layers that stay as they are why, each reason once: "NAME, NAME: WHY"."""
    names: dict[str, list[str]] = {}
    for name, why in left.items():
        names.setdefault(why, []).append(name)
    return [f"{', '.join(several)}: {why}" for why, several in names.items()]
