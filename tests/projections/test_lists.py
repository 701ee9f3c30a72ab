"""Lists come page by page, each record once, by an index."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from projections import commands, history, instances, operations
from projections.base import ReadModels
from projections.heartbeats import LISTING as HEARTBEATS
from projections.heartbeats import _open
from projections.listing import Listing, ListRequest, QueryError
from tests.projections.asking import catch_up, connect
from tests.projections.story import Story


@pytest.fixture
def connection(story: Story, models: ReadModels) -> Iterator[sqlite3.Connection]:
    for ordinal in range(23):
        story.create(name=f"db-{ordinal % 3}")
    story.create(project="green")
    catch_up(models, story.log)
    with closing(connect(models.path.parent)) as opened:
        yield opened


def through(listing: Listing, connection: sqlite3.Connection, **request: Any) -> list[Any]:
    """All pages, one after another."""
    items: list[Any] = []
    marker = None
    while True:
        page = listing.page(connection, "blue", ListRequest(marker=marker, **request))
        items += page.items
        marker = page.next_marker
        if marker is None:
            return items


@pytest.mark.parametrize("sort", [None, "name", "-name", "created_at", "-updated_at"])
@pytest.mark.parametrize("limit", [1, 5, 23, 24])
def test_pages_pass_each_record_once_in_order(connection: sqlite3.Connection, sort: str | None, limit: int) -> None:
    items = through(instances.LISTING, connection, sort=sort, limit=limit)
    assert len({item.id for item in items}) == len(items) == 23
    name = (sort or "-created_at").removeprefix("-")
    values = [(getattr(item, name), str(item.id)) for item in items]
    assert values == sorted(values, reverse=(sort or "-").startswith("-"))


@pytest.mark.parametrize("listing", [commands.LISTING, operations.LISTING, history.LISTING])
def test_every_list_can_be_paged(connection: sqlite3.Connection, listing: Listing) -> None:
    items = through(listing, connection, limit=7)
    assert len(items) == len({repr(item) for item in items}) >= 23


def test_filters_hold_over_pages(connection: sqlite3.Connection) -> None:
    items = through(instances.LISTING, connection, filter={"name": "db-1", "status": "BUILD"}, limit=3)
    assert [item.name for item in items] == ["db-1"] * 8


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (ListRequest(limit=0), "limit must be between 1 and 1000"),
        (ListRequest(limit=1001), "limit must be between 1 and 1000"),
        (ListRequest(sort="password"), "no sort by password; there are: created_at"),
        (ListRequest(filter={"1=1 OR id": "x"}), "no filter 1=1 OR id; there are: address"),
        (ListRequest(marker="nonsense"), "the marker is none that a list gave"),
        (ListRequest(marker="bnVsbA=="), "the marker is none that a list gave"),
    ],
)
def test_what_cannot_be_listed_is_said(connection: sqlite3.Connection, request_: ListRequest, said: str) -> None:
    with pytest.raises(QueryError, match="^" + said) as caught:
        instances.LISTING.page(connection, "blue", request_)
    assert caught.value.code == "invalid_argument"


MARKED = "WyIyMDI2IiwgIjAiXQ=="


@pytest.mark.parametrize("marker", [None, MARKED])
@pytest.mark.parametrize(
    ("listing", "request_"),
    [
        (instances.LISTING, {}),
        (instances.LISTING, {"sort": "name"}),
        (instances.LISTING, {"sort": "-updated_at"}),
        (instances.LISTING, {"filter": {"status": "ACTIVE"}}),
        (instances.LISTING, {"filter": {"host": "a"}}),
        (operations.LISTING, {}),
        (operations.LISTING, {"filter": {"outcome": "running"}}),
        (operations.LISTING, {"filter": {"instance_id": "x"}}),
        (commands.LISTING, {}),
        (commands.LISTING, {"filter": {"aggregate_id": "x"}}),
        (commands.LISTING, {"filter": {"accepted": False}}),
        (history.LISTING, {}),
        (history.LISTING, {"filter": {"instance_id": "x"}}),
        (history.LISTING, {"filter": {"aggregate_id": "x"}}),
        (history.LISTING, {"filter": {"operation_id": "x"}}),
    ],
)
def test_a_page_is_found_by_an_index_and_sorted_by_none(
    connection: sqlite3.Connection, listing: Listing, request_: dict[str, Any], marker: str | None
) -> None:
    statement, values = listing.statement("blue", ListRequest(marker=marker, **request_))
    plan = [row["detail"] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", (*values, 100))]
    assert not [step for step in plan if "SCAN" in step or "TEMP B-TREE" in step], plan


@pytest.mark.parametrize("request_", [{}, {"sort": "-received_at"}, {"filter": {"status": "HEALTHY"}}])
def test_heartbeats_are_found_by_an_index(tmp_path: Any, request_: dict[str, Any]) -> None:
    with closing(_open(tmp_path / "heartbeats.db")) as connection:
        statement, values = HEARTBEATS.statement("blue", ListRequest(**request_))
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", (*values, 100))]
    assert not [step for step in plan if "SCAN" in step or "TEMP B-TREE" in step], plan
