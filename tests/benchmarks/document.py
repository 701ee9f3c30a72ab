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


def write_document(figures: Sequence[Figure], page: Path = PAGE) -> None:
    """Put the table between the page's marks."""
    text = page.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not rest or not after:
        raise ValueError(f"{page} lacks the lines {BEGIN} and {END}, between which the table stands")
    page.write_text(f"{before}{BEGIN}\n\n{markdown(figures)}\n{END}{after}")


def markdown(figures: Sequence[Figure]) -> str:
    """The table and what it was measured on."""
    lines = [
        f"Measured {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} processors ({platform.machine()}), {_python()}.",
        "",
        "| benchmark | what | figure | baseline | ratio | load |",
        "|---|---|---:|---|---:|---:|",
    ]
    lines += [
        f"| {f.benchmark} | {f.what} | {rounded(f.value)} {f.unit} | {rounded(f.baseline)} {f.unit}: {f.baseline_what} "
        f"| {f.ratio:.2f} | {f.load:.1f} |"
        for f in figures
    ]
    return "\n".join(lines) + "\n"


def _python() -> str:
    return f"Python {platform.python_version()}, {platform.system()}"
