"""The sections of a run's report, in order; one that has nothing to say of a run leaves no trace of it.

A section is a function of the run's result; what every medium shows of it follows from its blocks.
"""

from __future__ import annotations

from collections.abc import Callable

from distill.rendering.document import Section
from distill.report.sections.charts import charts
from distill.report.sections.configuration import configuration
from distill.report.sections.control import control
from distill.report.sections.detail import detail
from distill.report.sections.files import files
from distill.report.sections.machine import machine
from distill.report.sections.reproduce import reproduce
from distill.report.sections.splits import splits
from distill.report.sections.stages import stages
from distill.report.sections.verdict import verdict
from distill.report.sections.warnings import warnings
from distill.runtime.records import RunResult

SECTIONS: tuple[Callable[[RunResult], Section | None], ...] = (
    verdict,
    stages,
    warnings,
    charts,
    control,
    detail,
    splits,
    machine,
    configuration,
    reproduce,
    files,
)
