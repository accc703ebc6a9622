"""Several wheels that all install the module `onnxruntime` overwrite each other's files; here they are noticed."""

from __future__ import annotations

import re
from importlib import metadata

# Best first: the one that is kept when several are found. The GPU wheel runs on the CPU too.
_PREFERRED = ("onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-qnn")


def _wheels() -> dict[str, str]:
    """Name -> version of every installed distribution that brings the module `onnxruntime`."""
    versions: dict[str, str] = {}
    for wheel in metadata.distributions():
        name = re.sub(r"[-_.]+", "-", str(wheel.metadata["Name"] or "")).lower()
        # onnxruntime-extensions and onnxruntime-genai share the prefix, not the module: the list of files decides.
        if name.startswith(("onnxruntime", "ort-")) and any(
            file.as_posix() == "onnxruntime/__init__.py" for file in wheel.files or ()
        ):
            versions.setdefault(name, wheel.version)
    return versions


def conflicting_wheels() -> str | None:
    """Give the command that mends several onnxruntime wheels installed together, or None where all is well.

    Uninstalling only one of them breaks the other, so the command removes all and installs one anew.
    """
    versions = _wheels()
    if len(versions) < 2:
        return None
    keep = next((name for name in _PREFERRED if name in versions), sorted(versions)[-1])
    remove = f"python -m pip uninstall -y {' '.join(sorted(versions))}"
    return f"{remove} && python -m pip install --no-deps {keep}=={versions[keep]}"
