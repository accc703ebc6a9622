"""A report as JUnit XML: a regression is a failure, what could not be measured or compared an error, doubt a skip."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from distill import clean
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
    for report in reports:
        seconds = f"{sum(case.seconds for case in report.cases):.3f}"
        for gate in report.gates:
            about = {"classname": "latency", "name": clean.line(gate.name), "time": seconds}
            case = ElementTree.SubElement(suite, "testcase", about)
            kind, head = _ELEMENTS.get(gate.verdict), clean.line(headline(gate))
            text = "\n".join(clean.text(detail) for detail in details(gate))
            if kind:
                ElementTree.SubElement(case, kind, message=head).text = text
            else:
                ElementTree.SubElement(case, "system-out").text = f"{head}\n{text}"
    suite.set("tests", str(len(suite)))
    for kind, attribute in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        suite.set(attribute, str(len(suite.findall(f"testcase/{kind}"))))
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"
