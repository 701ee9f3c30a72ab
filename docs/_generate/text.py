"""Markdown from data: tables, code, paragraphs of a docstring."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from inspect import cleandoc
from typing import Any


def code(text: object) -> str:
    """As code; nothing for nothing."""
    return f"`{text}`" if str(text) else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table. A cell is one line, and its bars are text."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def doc(subject: Any) -> str:
    """What the class says of itself, each paragraph on one line."""
    paragraphs = cleandoc(subject.__doc__ or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def first(subject: Any) -> str:
    """The first paragraph of what the class says of itself."""
    return doc(subject).partition("\n\n")[0]
