"""`report.html` of the verb `prune`: one file that opens without a network or scripts."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

import distill.report
from distill import clean
from distill.single_stage.pruning import facts
from distill.single_stage.pruning.histogram import histogram_svg
from distill.single_stage.pruning.outcome import Outcome


def html(outcome: Outcome, out: str) -> str:
    """Return the report as one HTML file of some 10 KB."""
    about = outcome.machine
    shown = {
        "outcome": outcome,
        "headline": facts.headline(outcome),
        "summary": facts.summary(outcome),
        "measured": facts.measured_on(outcome),
        "warnings": list(dict.fromkeys(outcome.warnings)),
        "how": facts.how(outcome),
        "loading": facts.loading(out, outcome.model),
        "moved": facts.MOVED,
        "layers": facts.layers(outcome),
        "groups": [(one, Markup(histogram_svg(one))) for one in facts.groups(outcome)],
        "machine": [(name, about[name]) for name in ("cpu", "system", "kernel") if name in about]
        + list(about.get("versions", {}).items()),
    }
    return _environment().get_template("page.html.j2").render(shown) + "\n"


@cache
def _environment() -> jinja2.Environment:
    folders = [Path(__file__).parent, Path(distill.report.__file__).parent]
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )


def _finalize(value: Any) -> Any:
    """Let no control character or bidi override of a user's text into the page."""
    return clean.text(value) if isinstance(value, str) and not isinstance(value, Markup) else value
