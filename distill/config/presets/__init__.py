"""The shipped presets: one YAML file each, its first line says what it is."""

from __future__ import annotations

from importlib import resources


def presets() -> dict[str, str]:
    """Return each preset's name and its first comment line."""
    files = sorted(resources.files(__name__).iterdir(), key=lambda file: file.name)
    return {
        file.name.removesuffix(".yaml"): file.read_text("utf-8").splitlines()[0].lstrip("# ")
        for file in files
        if file.name.endswith(".yaml")
    }


def preset_text(name: str) -> str:
    """Return a preset's YAML."""
    return resources.files(__name__).joinpath(f"{name}.yaml").read_text("utf-8")
