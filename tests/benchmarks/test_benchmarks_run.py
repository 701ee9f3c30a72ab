"""Each benchmark runs in its smallest size and yields figures; how fast is nobody's failure."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks import document
from tests.benchmarks.__main__ import BENCHMARKS, table
from tests.benchmarks.measure import SMALLEST, Figure
from tests.benchmarks.way_of_a_command import profiled

FIGURE = Figure(
    benchmark="live", what="commands", value=1234.5, unit="1/s", baseline_what="alone", baseline=2469.0, load=1.0
)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", BENCHMARKS)
async def test_every_benchmark_yields_figures(name: str) -> None:
    figures = await BENCHMARKS[name](SMALLEST)
    assert figures
    assert all(figure.value > 0 and figure.baseline > 0 for figure in figures)
    assert table(figures).row_count == len(figures)


@pytest.mark.timeout(300)
async def test_a_profile_of_a_worker_is_written(tmp_path: Path) -> None:
    await profiled("backlog", SMALLEST, tmp_path / "profile")
    assert (tmp_path / "profile").stat().st_size > 0


def test_the_table_is_put_between_the_marks_and_the_words_and_other_rows_stay(tmp_path: Path) -> None:
    page = tmp_path / "figures.md"
    rows = ["| idle | kept | 1 ms |", "| live | old | 2 1/s |", "| no longer | measured | 3 |"]
    page.write_text("\n".join(["before", document.BEGIN, *rows, document.END, "after", ""]))
    document.write_document([FIGURE], ["live", "idle"], page)
    written = page.read_text()
    new = "| live | commands | 1 230 1/s | 2 470 1/s: alone | 0.50 | 1.0 |"
    assert 0 < written.index(new) < written.index(rows[0])
    assert "old" not in written
    assert "no longer" not in written
    assert (written.startswith("before"), written.endswith("after\n")) == (True, True)


def test_every_row_of_the_page_belongs_to_a_benchmark() -> None:
    table = document.PAGE.read_text().partition(document.BEGIN)[2].partition(document.END)[0]
    rows = [row for row in table.splitlines() if row.startswith("| ") and not row.startswith("| benchmark ")]
    assert {document._named(row) for row in rows} <= BENCHMARKS.keys()


def test_the_page_of_figures_has_the_marks() -> None:
    text = document.PAGE.read_text()
    assert text.index(document.BEGIN) < text.index(document.END)
