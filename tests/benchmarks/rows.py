"""The floor of the event store: the same rows, in the same transactions, put into the same database by hand.

With SQLite the pragmas are the store's, with PostgreSQL it is the same server; one fsync for each transaction, neither
aggregates nor mapping nor a broker.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import msgspec
import psycopg

_TABLE = (
    "CREATE TABLE stored_events (originator_id TEXT, originator_version INTEGER, topic TEXT, state BLOB, "
    "PRIMARY KEY (originator_id, originator_version))"
)


class Spent(msgspec.Struct, frozen=True):
    """Seconds of the clock and of the processor."""

    clock: float
    cpu: float


def commit_again(store: Path, batches: Sequence[int]) -> Spent:
    """What it takes to commit the events of a store anew, in transactions of so many."""
    with closing(sqlite3.connect(store)) as source:
        rows = source.execute(
            "SELECT originator_id, originator_version, topic, state FROM stored_events ORDER BY rowid"
        ).fetchall()
    target = store.with_name(f"raw-{store.name}")
    with closing(sqlite3.connect(target, isolation_level=None)) as connection:
        connection.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA cache_size=-65536;" + _TABLE)
        began, used = time.monotonic(), time.thread_time()
        start = 0
        for size in batches:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT INTO stored_events VALUES (?, ?, ?, ?)", rows[start : start + size])
            connection.execute("COMMIT")
            start += size
        spent = Spent(time.monotonic() - began, time.thread_time() - used)
    for left in target.parent.glob(f"{target.name}*"):
        left.unlink()
    return spent


def commit_again_in_postgres(url: str, schema: str, batches: Sequence[int]) -> Spent:
    """The same with a schema of a PostgreSQL server."""
    with psycopg.connect(url, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(f"SET search_path TO {schema}")
        rows = cursor.execute(
            "SELECT originator_id, originator_version, topic, state FROM stored_events ORDER BY notification_id"
        ).fetchall()
        cursor.execute(
            "CREATE TABLE raw_events (originator_id uuid, originator_version bigint, topic text, state bytea, "
            "PRIMARY KEY (originator_id, originator_version))"
        )
        began, used = time.monotonic(), time.thread_time()
        start = 0
        for size in batches:
            with connection.transaction():
                cursor.executemany("INSERT INTO raw_events VALUES (%s, %s, %s, %s)", rows[start : start + size])
            start += size
        return Spent(time.monotonic() - began, time.thread_time() - used)
