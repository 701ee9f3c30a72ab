"""What a call prints: tables and words for people, one JSON document for programs, plain lines for pipes.

Guarantees that standard output holds the answer alone: errors and remarks go to standard error. Control characters in
what others named are shown, not sent to the terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

# Words of state that deserve a colour.
_COLOURS = {
    "ACTIVE": "green", "HEALTHY": "green", "done": "green", "running": "cyan", "ERROR": "red", "FAILED": "red",
    "failed": "red", "DOWN": "red", "CRASHED": "red", "SUSPECT": "yellow", "cancelled": "yellow", "SHUTOFF": "yellow",
    "SHUTDOWN": "yellow",
}  # fmt: skip


class Output:
    """Prints for one call. `pretty` is whether a person looks at standard output."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.pretty = sys.stdout.isatty() and not as_json
        self.console = Console(highlight=False, soft_wrap=not self.pretty)
        self.also: dict[str, Any] = {}  # part of whatever document is printed
        self._printed = False

    def document(self, content: Any) -> None:
        """The one JSON document of the call."""
        self._printed = True
        if self.also:
            content = dict(content) | self.also
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(content), indent=2).decode() + "\n")
        sys.stdout.flush()

    def line(self, text: str) -> None:
        """One line of the answer, for people and pipes."""
        if not self.as_json:
            self.console.print(text, markup=False, highlight=False)

    def remark(self, text: str) -> None:
        """Something that is not the answer."""
        sys.stderr.write(clean(text) + "\n")
        sys.stderr.flush()

    def error(self, code: str, message: str, **more: Any) -> None:
        """One line on standard error; for programs the document too."""
        self.remark(f"holdfast: {code}: {' '.join(message.split())}")
        if self.as_json and not self._printed:
            self.document({"error": {"code": code, "message": message, **more}})

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Any]], empty: str) -> None:
        """A table for a person; for a pipe a line for each row, its values parted by tabs, below a line of names."""
        cells = [[shown(value) for value in row] for row in rows]
        if not self.pretty:
            for line in (columns, *cells):
                sys.stdout.write("\t".join(line) + "\n")
            return
        if not cells:
            self.console.print(empty, markup=False)
            return
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        for column in columns:
            table.add_column(column.upper(), overflow="fold")
        for row in cells:
            table.add_row(*(_coloured(cell) for cell in row))
        self.console.print(table)

    def pairs(self, pairs: Iterable[tuple[str, Any]]) -> None:
        """Names and values of one record; what is not known is left out."""
        known = [(name, shown(value)) for name, value in pairs if value not in (None, "", [], {})]
        if not self.pretty:
            for name, value in known:
                sys.stdout.write(f"{name}\t{value}\n")
            return
        table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for name, value in known:
            table.add_row(escape(name), _coloured(value))
        self.console.print(table)


def shown(value: Any) -> str:
    """A value in one line."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(shown(each) for each in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {shown(each)}" for key, each in value.items())
    return clean(str(value))


def clean(text: str) -> str:
    """Without control characters: a name must not steer the terminal of who lists it."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def moment(value: str | None) -> str | None:
    """A time of the wire, to the second."""
    return None if value is None else value[:19].replace("T", " ")


def _coloured(cell: str) -> str:
    colour = _COLOURS.get(cell)
    return f"[{colour}]{cell}[/]" if colour else escape(cell)
