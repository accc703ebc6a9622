"""A report as JUnit XML: a regression is a failure, what could not be measured or compared an error, doubt a skip."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from distill import clean
from distill.benchmarks import units
from distill.benchmarks.records import Report
from distill.benchmarks.verdict.outcomes import details, headline
from distill.benchmarks.verdict.rule import Verdict

_ELEMENTS: dict[Verdict, str] = {
    "fail": "failure",
    "not measured": "error",
    "incomparable": "error",
    "inconclusive": "skipped",
}


def junit(reports: Sequence[Report]) -> str:
    """Write one test case a gate."""
    suite = ElementTree.Element("testsuite", name="distill bench")
    counts = dict.fromkeys(("failure", "error", "skipped"), 0)
    total = 0
    for report in reports:
        for gate in report.gates:
            total += 1
            seconds = sum(case.seconds for case in report.cases)
            case = ElementTree.SubElement(
                suite, "testcase", classname="latency", name=units.line(gate.name), time=f"{seconds:.3f}"
            )
            kind = _ELEMENTS.get(gate.verdict)
            text = "\n".join(clean.text(detail) for detail in details(gate))
            if kind:
                counts[kind] += 1
                inner = ElementTree.SubElement(case, kind, message=units.line(headline(gate)))
                inner.text = text
            else:
                ElementTree.SubElement(case, "system-out").text = f"{units.line(headline(gate))}\n{text}"
    suite.set("tests", str(total))
    for kind, attribute in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        suite.set(attribute, str(counts[kind]))
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"
