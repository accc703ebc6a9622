"""The files that the run leaves."""

from __future__ import annotations

from distill.rendering.document import Links, Section
from distill.report.facts import find
from distill.runtime.records import RunResult

_REPORTS = (("report", "report.html"), ("report as Markdown", "report.md"), ("record of the run", "run.json"))


def files(result: RunResult) -> Section:
    """List the files, those that are deployed first."""
    export = find(result, "export")
    names: tuple[str, ...] = ()
    if export is not None and export.status in ("done", "unmeasured"):
        names = export.detail.files or ("model.onnx",)
    deployed = [("model" if name.endswith(".onnx") else "with it", f"deploy/{name}") for name in names]
    return Section("Files", [Links(result.folder, (*deployed, *_REPORTS))], "both")
