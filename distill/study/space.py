"""What a search may choose: places in the configuration, and the range of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from distill.config.loading import RunConfig
from distill.distillation.settings import DistillSettings
from distill.errors import UserError

LEARNING_RATE = "distill.learning_rate"


def space(config: RunConfig) -> dict[str, tuple[float, float]]:
    """Return what a search may choose, by its place in the configuration: the lowest value and the highest."""
    ranges, distillation = config.search, config.distill or DistillSettings()
    places = {f"distill.{name}": getattr(ranges, name) for name in distillation.left_to_section}
    low, high = ranges.learning_rate
    places[LEARNING_RATE] = low * distillation.learning_rate, high * distillation.learning_rate
    if config.prune is not None and config.prune.goal.is_searched:
        places["prune.ratio"] = ranges.ratio
    return places


def require_allowed(config: RunConfig, chosen: Mapping[str, Any], source: str) -> None:
    """Refuse a choice that no search of this configuration makes; ``source`` opens the message.

    Raises:
        UserError: a key is none that a search chooses, or a value lies outside of its range.
    """
    places = space(config)
    for place, value in chosen.items():
        if place not in places:
            raise UserError(f"{source} sets {place!r}, which a search does not choose; it chooses {', '.join(places)}")
        low, high = places[place]
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            key = place.rpartition(".")[2]
            raise UserError(f"{source}: {place}={value!r}: must be in [{low:g}, {high:g}]; search.{key} says so")


def with_values(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """Return the configuration with the values at dotted places replaced; a section that is off stays off."""
    for place, value in values.items():
        name, key = place.split(".")
        section = getattr(config, name)
        if section is not None:
            config = dataclasses.replace(config, **{name: dataclasses.replace(section, **{key: value})})
    return config
