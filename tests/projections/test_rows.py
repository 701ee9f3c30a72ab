"""A page's events see each other's rows, and what the page leaves is what writing each at once would have left."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from eventsourcing.sqlite import SQLiteCursor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from projections.base import CannotApplyError, ReadModels, StoredEvent
from projections.models import MODELS
from projections.rows import Rows
from tests.projections.asking import catch_up, dump
from tests.projections.story import Story

TABLE = "CREATE TABLE things (place TEXT, id TEXT, name ANY, size INTEGER NOT NULL DEFAULT 7, PRIMARY KEY (place, id))"
KEYS = {"things": ("place", "id")}
KEY = ("a", "1")


@contextmanager
def table() -> Iterator[tuple[sqlite3.Connection, Rows]]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.row_factory = sqlite3.Row
    connection.execute(TABLE)
    yield connection, Rows(SQLiteCursor(connection.cursor()), KEYS)
    connection.close()


def everything(connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
    return sorted(map(tuple, connection.execute("SELECT place, id, name, size FROM things")))


def test_a_row_made_and_changed_in_one_page_is_written_once_as_it_is_then() -> None:
    with table() as (connection, rows):
        rows.insert("things", {"place": "a", "id": "1", "name": "first"})
        rows.update("things", KEY, {"name": "second"})
        assert rows.get("things", KEY)["name"] == "second"
        assert everything(connection) == []
        rows.write()
        assert everything(connection) == [("a", "1", "second", 7)]


def test_a_row_of_an_earlier_page_is_seen_with_what_this_page_changed_of_it() -> None:
    with table() as (connection, rows):
        connection.execute("INSERT INTO things VALUES ('a', '1', 'old', 3)")
        rows.update("things", KEY, {"size": 4})
        assert dict(rows.get("things", KEY)) == {"place": "a", "id": "1", "name": "old", "size": 4}
        rows.write()
        assert everything(connection) == [("a", "1", "old", 4)]


def test_a_row_that_is_not_there_or_deleted_is_named() -> None:
    with table() as (connection, rows):
        with pytest.raises(LookupError, match="'a', '1'"):
            rows.get("things", KEY)
        connection.execute("INSERT INTO things VALUES ('a', '1', 'old', 3)")
        rows.delete("things", KEY)
        with pytest.raises(LookupError, match="'a', '1'"):
            rows.get("things", KEY)


def test_a_row_is_not_made_twice() -> None:
    with table() as (_, rows):
        rows.insert("things", {"place": "a", "id": "1"})
        with pytest.raises(ValueError, match="a second row"):
            rows.insert("things", {"place": "a", "id": "1"})


keys = st.tuples(st.sampled_from("ab"), st.sampled_from("12"))
changes = st.dictionaries(st.sampled_from(["name", "size"]), st.integers(0, 9), min_size=1)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), keys, changes),
        st.tuples(st.just("update"), keys, changes),
        st.tuples(st.just("delete"), keys, st.just({})),
        st.tuples(st.just("get"), keys, st.just({})),
        st.tuples(st.just("write"), keys, st.just({})),
    ),
    max_size=30,
)


def at_once(connection: sqlite3.Connection, what: str, key: tuple[str, str], change: Mapping[str, int]) -> None:
    """The same with a statement for each step."""
    if what in ("put", "delete"):
        connection.execute("DELETE FROM things WHERE place = ? AND id = ?", key)
    if what == "put":
        marks = ",".join("?" * (2 + len(change)))
        names = ",".join(("place", "id", *change))
        connection.execute(f"INSERT INTO things ({names}) VALUES ({marks})", (*key, *change.values()))
    if what == "update":
        names = ",".join(f"{name} = ?" for name in change)
        connection.execute(f"UPDATE things SET {names} WHERE place = ? AND id = ?", (*change.values(), *key))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps)
def test_any_steps_leave_what_single_statements_leave(
    taken: list[tuple[str, tuple[str, str], dict[str, int]]],
) -> None:
    with table() as (connection, rows), table() as (other, _):
        for what, key, change in taken:
            at_once(other, what, key, change)
            if what in ("put", "delete"):
                rows.delete("things", key)
            if what == "put":
                rows.insert("things", {"place": key[0], "id": key[1], "name": None, "size": 7, **change})
            if what == "update":
                rows.update("things", key, change)
            if what == "write":
                rows.write()
            if what == "get":
                there = other.execute("SELECT * FROM things WHERE place = ? AND id = ?", key).fetchone()
                if there is None:
                    with pytest.raises(LookupError):
                        rows.get("things", key)
                else:
                    assert dict(rows.get("things", key)) == dict(there)
        rows.write()
        assert everything(connection) == everything(other)


def test_an_event_whose_row_breaks_a_constraint_is_found_in_its_page(tmp_path: Path, story: Story) -> None:
    for _ in range(3):
        story.settle(story.create())
    events = story.log.read(0, 1000)
    bad = next(each.position for each in events if each.version == 4 and each.topic.startswith("instance."))
    (history,) = (model for model in MODELS if model.name == "history")

    def apply(rows: Rows, stored: StoredEvent) -> None:
        history.apply(rows, stored)
        if stored.position == bad:
            rows.update("history", (bad,), {"sentence": None})

    models = ReadModels(tmp_path / "breaks", [msgspec.structs.replace(history, apply=apply)])
    stopped = models.advance(["history"], events)
    assert {name: error.position for name, error in stopped.items()} == {"history": bad}
    assert "NOT NULL" in str(stopped["history"])
    assert [row[0] for row in dump(models)["history"]] == [each.position for each in events if each.position < bad]
    with pytest.raises(CannotApplyError, match=f"at position {bad} "):
        models.rebuild(["history"], story.log, 100)
    models.close()
    mended = ReadModels(tmp_path / "breaks", [history])
    catch_up(mended, story.log)
    assert len(dump(mended)["history"]) == len(events)
    mended.close()
