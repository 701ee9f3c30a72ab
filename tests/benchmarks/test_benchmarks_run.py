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


def test_the_table_is_put_between_the_marks_and_the_words_stay(tmp_path: Path) -> None:
    page = tmp_path / "figures.md"
    page.write_text(f"before\n{document.BEGIN}\nold\n{document.END}\nafter\n")
    document.write_document([FIGURE], page)
    written = page.read_text()
    assert "| live | commands | 1 230 1/s | 2 470 1/s: alone | 0.50 | 1.0 |" in written
    assert "old" not in written
    assert (written.startswith("before"), written.endswith("after\n")) == (True, True)


def test_the_page_of_figures_has_the_marks() -> None:
    text = document.PAGE.read_text()
    assert text.index(document.BEGIN) < text.index(document.END)
