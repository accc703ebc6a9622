"""The configuration as text."""

from __future__ import annotations

import yaml

from distill.documents import plain
from distill.rendering.document import Code, Section
from distill.runtime.records import RunResult


def configuration(result: RunResult) -> Section:
    """Show the resolved configuration as YAML, in its own order."""
    text = "# no configuration is recorded\n"
    if result.config:
        text = yaml.safe_dump(plain(result.config), sort_keys=False, allow_unicode=True, width=100)
    return Section("Configuration", [Code(text, "yaml")])
