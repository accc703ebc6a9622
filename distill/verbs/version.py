"""What `--version` says; nothing heavy is imported for it."""

from __future__ import annotations

import platform
from importlib import metadata

_NAMES = ("torch", "onnx", "onnxruntime-gpu", "onnxruntime")


def versions() -> str:
    """Return one line: the versions of the product, of Python, and of the libraries that a file's bytes depend on."""
    installed = {name: _version(name) for name in _NAMES}
    runtimes = [name for name in _NAMES if name.startswith("onnxruntime") and installed[name]] or ["onnxruntime"]
    others = [f"{name} {installed[name] or 'not installed'}" for name in ("torch", "onnx", *runtimes)]
    own = _version("distill") or "from a folder that is not installed"
    return f"distill {own} (Python {platform.python_version()}, {', '.join(others)})"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
