"""A configuration whose models, data and metric are given as Python objects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from distill.config.layers import read_layers
from distill.config.loading import RunConfig, checked, to_dict
from distill.references.objects import held, reference_to
from distill.tasks.hooks import as_function

FIELDS = {"teacher": "teacher", "student": "student", "data": "data", "metric": "data.metric"}


def config_of(
    source: str | Path | Mapping[str, Any] | RunConfig | None, overrides: Iterable[str], **parts: object
) -> tuple[RunConfig, dict[str, object]]:
    """Return the configuration in which references stand for the parts, and the object behind each reference.

    What else the configuration names has to be there.

    Args:
        source: as ``load_config`` takes it.
        overrides: ``section.key=value`` each; they win over the source.
        parts: ``teacher``, ``student``, ``data``, ``metric``: an object, a reference, or None where the source says it.

    Raises:
        UserError: every error of the configuration at once, a line each.
    """
    values = {name: value for name, value in parts.items() if value is not None}
    objects: dict[str, object] = {}
    settings = []
    for name, value in values.items():
        if isinstance(value, str):
            settings.append(f"{FIELDS[name]}={value}")
            continue
        stands_for, title = as_function(value) if name == "data" else (value, "")
        reference = reference_to(value, title)
        objects[reference] = stands_for
        settings.append(f"{FIELDS[name]}={reference}")
    if isinstance(source, RunConfig):
        source = to_dict(source)
    elif source is None and "data" in values:
        source = {}  # not the preset for the embedded data
    raw, problems = read_layers(source, [*settings, *overrides])
    if objects:
        raw.setdefault("task", "mine")
    if isinstance(values.get("teacher"), nn.Module):
        raw["teacher"].setdefault("pretrained", True)  # a module has its weights, a function has yet to make it
    with held(objects):
        return checked(raw, problems, find=True), objects
