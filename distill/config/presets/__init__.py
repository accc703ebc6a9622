"""The shipped presets: one YAML file each, its first line says what it is."""

from __future__ import annotations

from importlib import resources


def presets() -> dict[str, str]:
    """Return each preset's name and its first comment line."""
    found = {}
    for entry in sorted(resources.files(__name__).iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".yaml"):
            found[entry.name.removesuffix(".yaml")] = entry.read_text("utf-8").splitlines()[0].lstrip("# ")
    return found


def preset_text(name: str) -> str:
    """Return a preset's YAML."""
    return resources.files(__name__).joinpath(f"{name}.yaml").read_text("utf-8")
