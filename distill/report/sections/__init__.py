"""The sections of a run's report, in order; one that has nothing to say of a run leaves no trace of it.

A section is a function of the run's result; what every medium shows of it follows from its blocks.
"""

from __future__ import annotations

from collections.abc import Callable

from distill.rendering.document import Section
from distill.report.sections import charts, circumstances, detail, stages, verdict
from distill.runtime.records import RunResult

SECTIONS: tuple[Callable[[RunResult], Section | None], ...] = (
    verdict.verdict,
    stages.stages,
    circumstances.warnings,
    charts.charts,
    stages.control,
    detail.detail,
    circumstances.splits,
    circumstances.machine,
    circumstances.configuration,
    circumstances.reproduce,
    circumstances.files,
)
