"""Which versions are installed, found without importing what they are of."""

from __future__ import annotations

import platform
from importlib import metadata


def version_of(*names: str) -> str | None:
    """Return the version of the first of these distributions that is installed; None where none is."""
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def all_versions() -> str:
    """Return one line: the versions of the product, of Python, and of the libraries that a file's bytes depend on."""
    runtimes = [name for name in ("onnxruntime-gpu", "onnxruntime") if version_of(name)] or ["onnxruntime"]
    others = [f"{name} {version_of(name) or 'not installed'}" for name in ("torch", "onnx", *runtimes)]
    own = version_of("distill") or "from a folder that is not installed"
    return f"distill {own} (Python {platform.python_version()}, {', '.join(others)})"
