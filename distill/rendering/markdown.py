"""A document as GitHub's Markdown, for a pull request, a wiki or the summary of a CI step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from distill.clean import code, fenced
from distill.clean import markdown as escape
from distill.rendering.document import (
    Block,
    Cards,
    Charts,
    Code,
    Details,
    Document,
    Links,
    Note,
    Notes,
    Table,
    Text,
    Verdict,
    text_of,
)


def markdown(document: Document) -> str:
    """Return the document as Markdown that ends with a newline; every text in it is escaped."""
    lines = [f"# {escape(document.name)}", "", f"**{escape(document.result)}**"]
    for section in document.sections:
        written = [] if section.medium == "terminal" else list(blocks(section.blocks))
        if any(written):
            lines += ["", f"## {escape(section.title)}", "", *written]
    return whole(lines)


def whole(lines: Iterable[str]) -> str:
    """Join lines, of which several empty ones in a row are one; a block of code is one line and keeps its own."""
    written: list[str] = []
    for line in lines:
        if line or (written and written[-1]):
            written.append(line)
    return "\n".join(written).rstrip("\n") + "\n"


def blocks(parts: Iterable[Block]) -> Iterator[str]:
    """Yield the lines of blocks, an empty one after each."""
    for block in parts:
        yield from _block(block)
        yield ""


def _block(block: Block) -> Iterator[str]:
    if isinstance(block, Table):
        yield from _table(block)
    elif isinstance(block, Notes):
        yield from (f"- {_note(note)}" for note in block.notes)
    elif isinstance(block, Text):
        yield escape(block.text)
    elif isinstance(block, Code):
        yield fenced(block.text, block.language)
    elif isinstance(block, Verdict):
        yield from (f"### {escape(block.text)}", "", *(f"- {escape(reason)}" for reason in block.reasons))
    elif isinstance(block, Links):
        yield from (f"- {escape(name)}: {code(path)}" for name, path in block.links)
    elif isinstance(block, Details):
        yield from (f"### {escape(block.title)}", "", *blocks(block.blocks))
    else:
        assert isinstance(block, Cards | Charts)  # the tables hold their numbers


def _note(note: Note) -> str:
    return f"**{escape(note.label)}** {escape(note.text)}" if note.label else escape(note.text)


def _table(table: Table) -> Iterator[str]:
    if table.title:
        yield from (f"**{escape(table.title)}**", "")
    if table.caption:
        yield from (escape(table.caption), "")
    yield _row(title for title, _ in table.columns)
    yield "|" + "|".join("---:" if number else "---" for _, number in table.columns) + "|"
    for row in table.rows:
        yield _row(map(text_of, row))


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(escape(text) for text in cells) + " |"
