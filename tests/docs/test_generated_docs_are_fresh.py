"""The generated pages say what the code does: each is what would be written today."""

from __future__ import annotations

import pytest

from docs.generate import PAGES, REFERENCE, written


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_what_would_be_written_today(name: str) -> None:
    there = (REFERENCE / name).read_text(encoding="utf-8")
    assert there == written(name), f"docs/reference/{name} is stale: say `make docs`"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_written_the_same_each_time(name: str) -> None:
    assert written(name) == written(name)
