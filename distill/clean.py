r"""Text of unknown origin, made fit for the medium that shows it; one function for each medium.

Names of models, tensors, columns, classes, boards and files, and what libraries say of them, come out of files that
anybody may have written. Data keep them as they are; what is shown goes through here: terminals and logs through
`console` and `log_line`, a line that GitHub reads as a command through `workflow`, Markdown through `markdown`, `code`
and `fenced`, JSON on standard output through `json_text`. XML and autoescaped HTML need `text` or `line` alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from rich.console import Console, RenderHook

_SIGN = "\N{REPLACEMENT CHARACTER}"
# What acts on the place that shows it, or is not seen: controls (with line separators), lone surrogates, marks that
# turn the direction of text, characters without width, and what XML cannot hold.
_ACTING = (
    r"\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff"
    r"\ufeff\ufff9-\ufffb\ufffe\uffff\U000e0000-\U000e007f"
)
# Joiners stay in the scripts and emoji that are written with them, where they are seen.
_SCRIPTS = r"[\u0600-\U0010ffff]"
_JOINER = rf"(?<!{_SCRIPTS})[\u200c\u200d]|[\u200c\u200d](?!{_SCRIPTS})"
_CONTROL = re.compile(f"[{_ACTING}]|{_JOINER}")
# Runners read a command behind the blanks that begin a line, or, in their older forms, anywhere in it.
_COMMAND = re.compile(r"^(\s*):(?=:)")
_OLD_COMMAND = re.compile(r"##(?=\w*\[)")
_MARKDOWN = re.compile(r"([\\`*_#~&$]|\](?=[(\[:]))")
# What makes a list, a rule or a heading of a line that begins so.
_BLOCK = re.compile(r"^([-+](?=\s|$|-)|=(?==*$)|\d{1,9}(?=[.)](?:\s|$)))")
_ENTITIES = str.maketrans({"<": "&lt;", ">": "&gt;", "|": "&#124;"})


def text(value: Any) -> str:
    """Return ``value`` as text of one or more lines, without what acts on the place that shows it."""
    return _CONTROL.sub(_SIGN, str(value).replace("\r\n", "\n").replace("\r", "\n"))


def line(value: Any) -> str:
    """Return ``value`` as such text on one line."""
    return " ".join(text(value).split())


def log_line(value: Any) -> str:
    """Return ``value`` as one line of a terminal or a log, which no CI system takes for a command."""
    return _disarmed(" ".join(text(value).split("\n")))


def workflow(value: Any) -> str:
    """Return ``value`` as the message of a GitHub workflow command, escaped as GitHub's toolkit does."""
    disarmed = "\n".join(_OLD_COMMAND.sub("## ", one) for one in text(value).split("\n"))
    return disarmed.replace("%", "%25").replace("\n", "%0A")


def json_text(document: str) -> str:
    """Return a JSON document, of equal data, that a log may hold: no CI system finds a command in it."""
    return document.replace("##", "#\\u0023")


def markdown(value: Any) -> str:
    """Return ``value`` for one line or table cell of Markdown: no markup, link, image or HTML can start in it."""
    escaped = _MARKDOWN.sub(r"\\\1", line(value)).translate(_ENTITIES)
    escaped = _BLOCK.sub(lambda found: found[1] + "\\" if found[1].isdigit() else "\\" + found[1], escaped)
    return escaped.replace("://", ":&#47;&#47;").replace("www.", "www&#46;")


def code(value: Any) -> str:
    """Return ``value`` as a span of code in Markdown."""
    return f"`{line(value).replace('`', chr(39))}`"


def fenced(value: Any, language: str) -> str:
    """Return ``value`` as a block of code in Markdown, whatever fences it holds."""
    inner = text(value).rstrip("\n")
    longest = max((len(run) for run in re.findall(r"`+", inner)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{inner}\n{fence}"


def console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """Make a console that shows names as they are: no markup, no emoji codes, no escape sequences but its own."""
    from rich.console import Console

    made = Console(stderr=stderr, quiet=quiet, highlight=False, markup=False, emoji=False)
    made.push_render_hook(cast("RenderHook", _Hook()))
    return made


def _disarmed(one: str) -> str:
    """Break what a CI system would take for a command."""
    return _OLD_COMMAND.sub("## ", _COMMAND.sub(r"\1: ", one))


class _Hook:
    """Cleans everything that a console prints; a rich ``RenderHook``."""

    def process_renderables(self, renderables: list[Any]) -> list[Any]:
        return [_Cleaned(one) for one in renderables]


class _Cleaned:
    """A renderable whose text is cleaned once it is laid out, when each line is known; styles are the product's own."""

    def __init__(self, renderable: Any) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: Any) -> Iterator[Any]:
        for segment in console.render(self._renderable, options):
            if segment.control:
                yield segment
            else:
                # A line that begins in the middle of a segment begins anew; one that does not only loses by it.
                parts = [_disarmed(text(one)) for one in segment.text.split("\n")]
                yield type(segment)("\n".join(parts), segment.style)
