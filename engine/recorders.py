"""The library's process recorders, widened: events, several positions and the index of owing aggregates in ONE commit.

What is committed together is there together or not at all, on SQLite with an fsync for each commit and on PostgreSQL.
The index `owing` follows from the events alone; it only spares a scan of the log at the start of a worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import msgspec
from eventsourcing.persistence import StoredEvent, Tracking
from eventsourcing.postgres import PostgresAggregateRecorder, PostgresDatastore, PostgresProcessRecorder
from eventsourcing.sqlite import (
    SQLiteAggregateRecorder,
    SQLiteConnection,
    SQLiteConnectionPool,
    SQLiteCursor,
    SQLiteDatastore,
    SQLiteProcessRecorder,
)
from psycopg import Cursor
from psycopg.rows import DictRow
from psycopg.sql import SQL, Identifier


class OwingChange(msgspec.Struct, frozen=True, kw_only=True):
    """With these events the aggregate owes something, or no longer does."""

    aggregate_id: UUID
    partition: int
    owes: bool


class Extras(msgspec.Struct, frozen=True, kw_only=True):
    """What is committed beside the events."""

    positions: Sequence[Tracking] = ()
    owing: Sequence[OwingChange] = ()


class _DurablePool(SQLiteConnectionPool):
    def _create_connection(self) -> SQLiteConnection:
        connection = super()._create_connection()
        cursor = connection.cursor()
        # An acknowledged command must outlive a power cut: one fsync for each commit, whatever the build's default.
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA cache_size=-65536")
        return connection


class DurableSQLiteDatastore(SQLiteDatastore):
    """A datastore whose connections fsync each commit. `lock_timeout` in seconds."""

    def __init__(self, db_name: str, *, lock_timeout: int = 10) -> None:
        super().__init__(db_name, lock_timeout=lock_timeout)
        self.pool.close()
        self.pool = _DurablePool(db_name=db_name, lock_timeout=lock_timeout)


class SQLiteEventRecorder(SQLiteProcessRecorder):
    """Events, positions and the owing index in one SQLite file."""

    def construct_create_table_statements(self) -> list[str]:
        """The library's tables and the index of owing aggregates."""
        return [
            *super().construct_create_table_statements(),
            "CREATE TABLE IF NOT EXISTS owing (aggregate_id TEXT PRIMARY KEY, part INTEGER NOT NULL) WITHOUT ROWID",
        ]

    def _insert_events(
        self, c: SQLiteCursor, stored_events: Sequence[StoredEvent], **kwargs: Any
    ) -> Sequence[int] | None:
        returning = super()._insert_events(c, stored_events, **kwargs)
        extras: Extras | None = kwargs.get("extras")
        if extras is None:
            return returning
        for tracking in extras.positions:
            self._insert_tracking(c, tracking)
        for change in extras.owing:
            if change.owes:
                c.execute("INSERT OR REPLACE INTO owing VALUES (?, ?)", (change.aggregate_id.hex, change.partition))
            else:
                c.execute("DELETE FROM owing WHERE aggregate_id = ?", (change.aggregate_id.hex,))
        return returning

    def select_owing(self) -> list[tuple[UUID, int]]:
        """Aggregates in owing states, with their partitions."""
        with self.datastore.transaction(commit=False) as c:
            c.execute("SELECT aggregate_id, part FROM owing ORDER BY aggregate_id")
            return [(UUID(row[0]), row[1]) for row in c.fetchall()]

    def select_existing(self, ids: Sequence[UUID]) -> set[UUID]:
        """Those of the ids that have events."""
        found: set[UUID] = set()
        with self.datastore.transaction(commit=False) as c:
            for start in range(0, len(ids), 500):
                chunk = [i.hex for i in ids[start : start + 500]]
                marks = ",".join("?" * len(chunk))
                c.execute(
                    f"SELECT originator_id FROM {self.events_table_name} "  # noqa: S608 - a constant and marks
                    f"WHERE originator_version = 1 AND originator_id IN ({marks})",
                    chunk,
                )
                found.update(UUID(row[0]) for row in c.fetchall())
        return found


class PostgresEventRecorder(PostgresProcessRecorder):
    """Events, positions and the owing index in one PostgreSQL schema."""

    def __init__(
        self,
        datastore: PostgresDatastore,
        *,
        events_table_name: str = "stored_events",
        tracking_table_name: str = "notification_tracking",
    ) -> None:
        super().__init__(datastore, events_table_name=events_table_name, tracking_table_name=tracking_table_name)
        self._owing = Identifier(datastore.schema, "owing")
        self.sql_create_statements.append(
            SQL("CREATE TABLE IF NOT EXISTS {0} (aggregate_id uuid PRIMARY KEY, part integer NOT NULL)").format(
                self._owing
            )
        )

    def _insert_events(self, curs: Cursor[DictRow], stored_events: Sequence[StoredEvent], **kwargs: Any) -> None:
        super()._insert_events(curs, stored_events, **kwargs)
        extras: Extras | None = kwargs.get("extras")
        if extras is None:
            return
        for tracking in extras.positions:
            self._insert_tracking(curs, tracking)
        for change in extras.owing:
            if change.owes:
                curs.execute(
                    SQL("INSERT INTO {0} VALUES (%s, %s) ON CONFLICT (aggregate_id) DO NOTHING").format(self._owing),
                    (change.aggregate_id, change.partition),
                )
            else:
                curs.execute(SQL("DELETE FROM {0} WHERE aggregate_id = %s").format(self._owing), (change.aggregate_id,))

    def select_owing(self) -> list[tuple[UUID, int]]:
        """Aggregates in owing states, with their partitions."""
        with self.datastore.transaction() as curs:
            curs.execute(SQL("SELECT aggregate_id, part FROM {0} ORDER BY aggregate_id").format(self._owing))
            return [(row["aggregate_id"], row["part"]) for row in curs.fetchall()]

    def select_existing(self, ids: Sequence[UUID]) -> set[UUID]:
        """Those of the ids that have events."""
        with self.datastore.transaction() as curs:
            curs.execute(
                SQL("SELECT originator_id FROM {0} WHERE originator_version = 1 AND originator_id = ANY(%s)").format(
                    Identifier(self.datastore.schema, self.events_table_name)
                ),
                (list(ids),),
            )
            return {row["originator_id"] for row in curs.fetchall()}


EventRecorder = SQLiteEventRecorder | PostgresEventRecorder
SnapshotRecorder = SQLiteAggregateRecorder | PostgresAggregateRecorder


def snapshot_recorder(beside: EventRecorder) -> SnapshotRecorder:
    """The library's recorder on a table of its own, in the same database."""
    if isinstance(beside, SQLiteEventRecorder):
        return SQLiteAggregateRecorder(beside.datastore, events_table_name="stored_snapshots")
    return PostgresAggregateRecorder(beside.datastore, events_table_name="stored_snapshots")
