"""The page of figures: its table is written by the benchmarks, the words around it by hand."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.benchmarks.measure import Figure, rounded

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "figures.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


def write_document(figures: Sequence[Figure], order: Sequence[str], page: Path = PAGE) -> None:
    """Put the table between the page's marks, benchmarks in this order. Those not measured keep the rows they have."""
    text = page.read_text()
    before, _, rest = text.partition(BEGIN)
    table, _, after = rest.partition(END)
    if not rest or not after:
        raise ValueError(f"{page} lacks the lines {BEGIN} and {END}, between which the table stands")
    measured = {figure.benchmark for figure in figures}
    kept = [row for row in table.splitlines() if _named(row) in order and _named(row) not in measured]
    page.write_text(f"{before}{BEGIN}\n\n{markdown(figures, kept, order)}\n{END}{after}")


def markdown(figures: Sequence[Figure], kept: Sequence[str], order: Sequence[str]) -> str:
    """The table and what it was measured on."""
    day = f"{datetime.now(UTC):%Y-%m-%d}"
    rows = [
        f"| {f.benchmark} | {f.what} | {rounded(f.value)} {f.unit} | {rounded(f.baseline)} {f.unit}: {f.baseline_what} "
        f"| {f.ratio:.2f} | {f.load:.1f} | {day} |"
        for f in figures
    ]
    return "\n".join(
        [
            f"Measured on {os.cpu_count()} processors ({platform.machine()}), {_python()}.",
            "",
            "| benchmark | what | figure | baseline | ratio | load | day |",
            "|---|---|---:|---|---:|---:|---|",
            *sorted([*rows, *kept], key=lambda row: order.index(_named(row))),
            "",
        ]
    )


def _named(row: str) -> str:
    return row.split("|")[1].strip() if row.count("|") > 1 else ""


def _python() -> str:
    return f"Python {platform.python_version()}, {platform.system()}"
