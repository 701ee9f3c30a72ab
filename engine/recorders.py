"""The library's process recorders, widened: events, several positions and the index of owing aggregates in ONE commit.

What is committed together is there together or not at all, on SQLite with an fsync for each commit and on PostgreSQL.
The index `owing` follows from the events alone; it only spares a scan of the log at the start of a worker. The table
`ranges` says which worker owns what, under which epoch: a commit under an epoch that has passed is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

import msgspec
from eventsourcing.persistence import DataError, IntegrityError, StoredEvent, Tracking
from eventsourcing.postgres import PostgresAggregateRecorder, PostgresProcessRecorder
from eventsourcing.sqlite import SQLiteAggregateRecorder, SQLiteCursor, SQLiteProcessRecorder
from psycopg import Cursor
from psycopg.errors import DivisionByZero
from psycopg.rows import DictRow
from psycopg.sql import SQL, Identifier
from psycopg.types.numeric import Int8

from engine.databases import APPLICATION, BoundedPostgresDatastore


class OwingChange(msgspec.Struct, frozen=True, kw_only=True):
    """With these events the aggregate owes something, or no longer does."""

    aggregate_id: UUID
    partition: int
    owes: bool


class Fence(msgspec.Struct, frozen=True, order=True):
    """The right to write about a range of partitions: good as long as the range's epoch is still this one."""

    range: str
    epoch: int


class FencedError(IntegrityError):
    """Another worker has taken the range over: its epoch has passed."""


class RangeRow(msgspec.Struct, frozen=True):
    """Who owns a range, if anybody, and under which epoch; 0 when nobody ever did."""

    epoch: int = 0
    owner: str | None = None


class Extras(msgspec.Struct, frozen=True, kw_only=True):
    """What is committed beside the events, and under which fences: all of them must hold."""

    positions: Sequence[Tracking] = ()
    owing: Sequence[OwingChange] = ()
    fences: Sequence[Fence] = ()


# Whoever saw the epoch first takes the range; an epoch is never used again.
_TAKE = (
    "INSERT INTO {0} (name, epoch, owner) VALUES ({1}, 1, {1}) ON CONFLICT (name) DO UPDATE "
    "SET epoch = {0}.epoch + 1, owner = excluded.owner WHERE {0}.epoch = {1} RETURNING epoch"
)
_RELEASE = "UPDATE {0} SET owner = NULL WHERE name = {1} AND epoch = {1} AND owner = {1}"
_ROWS_AT_MOST = 128  # of one statement, of four values each
_TAKEOVER_WAITS = 2  # seconds that a takeover waits for whoever writes in the range just now


def _assert_fences(fences: Sequence[Fence], epochs: Mapping[str, int]) -> None:
    for fence in fences:
        if epochs.get(fence.range) != fence.epoch:
            raise FencedError(
                f"range {fence.range} was taken over: epoch {fence.epoch} has passed, now {epochs.get(fence.range)}"
            )


def _reached(positions: Sequence[Tracking]) -> dict[str, int]:
    """The last position under each name. Raises `IntegrityError` when one does not go on from the one before it."""
    reached: dict[str, int] = {}
    for position in positions:
        if reached.get(position.application_name, -1) >= position.notification_id:
            raise IntegrityError(f"{position.application_name} is past {position.notification_id} already")
        reached[position.application_name] = position.notification_id
    return reached


def _assert_reached(positions: Mapping[str, int], written: Collection[str]) -> None:
    for name in positions.keys() - set(written):
        raise IntegrityError(f"{name} is past {positions[name]} already")


def _changed(owing: Sequence[OwingChange]) -> tuple[list[tuple[UUID, int]], list[UUID]]:
    """Who owes in the end, with the partition, and who does not."""
    last = {change.aggregate_id: change for change in owing}
    return (
        [(change.aggregate_id, change.partition) for change in last.values() if change.owes],
        [change.aggregate_id for change in last.values() if not change.owes],
    )


class SQLiteEventRecorder(SQLiteProcessRecorder):
    """Events, positions and the owing index in one SQLite file."""

    session = ""

    def construct_create_table_statements(self) -> list[str]:
        """The library's tables and the index of owing aggregates."""
        return [
            *super().construct_create_table_statements(),
            "CREATE TABLE IF NOT EXISTS owing (aggregate_id TEXT PRIMARY KEY, part INTEGER NOT NULL) WITHOUT ROWID",
            "CREATE TABLE IF NOT EXISTS ranges (name TEXT PRIMARY KEY, epoch INTEGER NOT NULL, owner TEXT)",
        ]

    def _insert_events(
        self, c: SQLiteCursor, stored_events: Sequence[StoredEvent], **kwargs: Any
    ) -> Sequence[int] | None:
        extras: Extras | None = kwargs.get("extras")
        if extras is not None and extras.fences:
            names = [fence.range for fence in extras.fences]
            c.execute(f"SELECT name, epoch FROM ranges WHERE name IN ({_marks(names)})", names)  # noqa: S608 - marks
            _assert_fences(extras.fences, {row[0]: row[1] for row in c.fetchall()})
        returning = self._insert_rows(c, stored_events)
        if (tracking := kwargs.get("tracking")) is not None:
            self._insert_tracking(c, tracking)
        if extras is not None:
            self._insert_extras(c, extras)
        return returning

    def _insert_rows(self, c: SQLiteCursor, stored_events: Sequence[StoredEvent]) -> list[int]:
        """The events' positions. Many rows go with one statement: between two, another thread may take the interpreter.

        Statements have a power of two of rows each, so that there are few of them and each stays prepared.
        """
        returning: list[int] = []
        while left := len(stored_events) - len(returning):
            size = min(_ROWS_AT_MOST, 1 << (left.bit_length() - 1))
            values: list[Any] = []
            for stored in stored_events[len(returning) : len(returning) + size]:
                originator_id = stored.originator_id
                hexed = originator_id.hex if isinstance(originator_id, UUID) else originator_id
                values += (hexed, stored.originator_version, stored.topic, stored.state)
            marks = ",".join(("(?, ?, ?, ?)",) * size)
            c.execute(f"INSERT INTO {self.events_table_name} VALUES {marks}", values)  # noqa: S608 - constants
            last = c.lastrowid
            returning.extend(range(last - size + 1, last + 1))
        return returning

    def _insert_extras(self, c: SQLiteCursor, extras: Extras) -> None:
        positions = _reached(extras.positions)
        if positions:
            marks = ",".join(("(?, ?)",) * len(positions))
            c.execute(
                f"INSERT INTO tracking VALUES {marks} ON CONFLICT (application_name) "  # noqa: S608 - marks
                "DO UPDATE SET notification_id = excluded.notification_id "
                "WHERE tracking.notification_id < excluded.notification_id RETURNING application_name",
                [value for position in positions.items() for value in position],
            )
            _assert_reached(positions, [row[0] for row in c.fetchall()])
        owing, settled = _changed(extras.owing)
        c.executemany("INSERT OR REPLACE INTO owing VALUES (?, ?)", [(each.hex, part) for each, part in owing])
        c.executemany("DELETE FROM owing WHERE aggregate_id = ?", [(each.hex,) for each in settled])

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
                c.execute(
                    f"SELECT originator_id FROM {self.events_table_name} "  # noqa: S608 - a constant and marks
                    f"WHERE originator_version = 1 AND originator_id IN ({_marks(chunk)})",
                    chunk,
                )
                found.update(UUID(row[0]) for row in c.fetchall())
        return found

    def cut_off(self, sessions: Collection[str]) -> int:
        """There are no others."""
        del sessions
        return 0

    def select_positions(self, names: Sequence[str]) -> dict[str, int]:
        """The positions recorded under the names."""
        with self.datastore.transaction(commit=False) as c:
            c.execute(
                "SELECT application_name, MAX(notification_id) FROM tracking "  # noqa: S608 - marks
                f"WHERE application_name IN ({_marks(names)}) GROUP BY application_name",
                names,
            )
            return {row[0]: row[1] for row in c.fetchall()}

    def select_ranges(self) -> dict[str, RangeRow]:
        """Who owns what."""
        with self.datastore.transaction(commit=False) as c:
            c.execute("SELECT name, epoch, owner FROM ranges")
            return {row[0]: RangeRow(row[1], row[2]) for row in c.fetchall()}

    def take_ranges(self, owner: str, seen: Mapping[str, int]) -> list[Fence]:
        """Take over those of the ranges that still have the epoch at which they were seen, raising it."""
        taken = []
        with self.datastore.transaction(commit=True) as c:
            for name, epoch in seen.items():
                c.execute(_TAKE.format("ranges", "?"), (name, owner, epoch))
                taken += [Fence(name, row[0]) for row in c.fetchall()]
        return taken

    def release_ranges(self, owner: str, held: Iterable[Fence]) -> None:
        """Let go of what the owner still holds of these."""
        with self.datastore.transaction(commit=True) as c:
            for fence in held:
                c.execute(_RELEASE.format("ranges", "?"), (fence.range, fence.epoch, owner))


def _marks(values: Sequence[str]) -> str:
    return ",".join("?" * len(values))


class PostgresEventRecorder(PostgresProcessRecorder):
    """Events, positions and the owing index in one PostgreSQL schema."""

    # The library's own try each call ten times; here who calls waits for the database, and says so.
    _insert_once = inspect.unwrap(PostgresProcessRecorder.insert_events)
    select_events = inspect.unwrap(PostgresProcessRecorder.select_events)
    select_notifications = inspect.unwrap(PostgresProcessRecorder.select_notifications)
    max_notification_id = inspect.unwrap(PostgresProcessRecorder.max_notification_id)
    max_tracking_id = inspect.unwrap(PostgresProcessRecorder.max_tracking_id)

    def __init__(
        self,
        datastore: BoundedPostgresDatastore,
        *,
        events_table_name: str = "stored_events",
        tracking_table_name: str = "notification_tracking",
    ) -> None:
        super().__init__(datastore, events_table_name=events_table_name, tracking_table_name=tracking_table_name)
        self.session = datastore.session
        self._owing = Identifier(datastore.schema, "owing")
        self.sql_create_statements.append(
            SQL("CREATE TABLE IF NOT EXISTS {0} (aggregate_id uuid PRIMARY KEY, part integer NOT NULL)").format(
                self._owing
            )
        )
        self._ranges = Identifier(datastore.schema, "ranges")
        self.sql_create_statements.append(
            SQL("CREATE TABLE IF NOT EXISTS {0} (name text PRIMARY KEY, epoch bigint NOT NULL, owner text)").format(
                self._ranges
            )
        )

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int] | None:
        """The library's, in one try, with what is to be committed beside the events."""
        try:
            returning: Sequence[int] | None = self._insert_once(stored_events, **kwargs)
        except DataError as error:
            if isinstance(error.__cause__, DivisionByZero):
                raise FencedError("a range was taken over: its epoch has passed") from error
            raise
        return returning

    def _assert_fences(self, curs: Cursor[DictRow], fences: Sequence[Fence]) -> None:
        """Have the statement itself fail: to wait for its answer would cost each commit another way there and back.

        The rows are shared until the commit, so that a takeover waits for it and reads what it wrote.
        """
        curs.execute(
            SQL(
                "SELECT 1 / (count(*) = %s)::int FROM (SELECT 1 FROM {0} AS owned "
                "JOIN unnest(%s::text[], %s::bigint[]) AS fence(name, epoch) "
                "ON owned.name = fence.name AND owned.epoch = fence.epoch FOR SHARE OF owned) AS standing"
            ).format(self._ranges),
            (len(fences), [fence.range for fence in fences], [fence.epoch for fence in fences]),
        )

    def _insert_events(self, curs: Cursor[DictRow], stored_events: Sequence[StoredEvent], **kwargs: Any) -> None:
        extras: Extras | None = kwargs.get("extras")
        if extras is not None and extras.fences:
            with curs.connection.cursor() as asserting:
                self._assert_fences(asserting, extras.fences)
        super()._insert_events(curs, stored_events, **kwargs)
        if extras is not None:
            self._insert_extras(curs, extras)

    def _insert_stored_events(self, curs: Cursor[DictRow], stored_events: Sequence[StoredEvent], **kwargs: Any) -> None:
        """The library's statement with an array for each column: one of rows costs several times as much to write."""
        del kwargs
        self._lock_table(curs)
        self._notify_channel(curs)
        curs.execute(
            SQL(
                "INSERT INTO {0} (originator_id, originator_version, topic, state) "
                "SELECT * FROM unnest(%b::uuid[], %b::bigint[], %b::text[], %b::bytea[]) RETURNING notification_id"
            ).format(Identifier(self.datastore.schema, self.events_table_name)),
            (
                [each.originator_id for each in stored_events],
                [Int8(each.originator_version) for each in stored_events],
                [each.topic for each in stored_events],
                [each.state for each in stored_events],
            ),
        )

    def _insert_extras(self, curs: Cursor[DictRow], extras: Extras) -> None:
        positions = _reached(extras.positions)
        if positions:
            curs.execute(
                SQL(
                    "INSERT INTO {0} SELECT * FROM unnest(%s::text[], %s::bigint[]) ON CONFLICT (application_name) "
                    "DO UPDATE SET notification_id = excluded.notification_id "
                    "WHERE {0}.notification_id < excluded.notification_id RETURNING application_name"
                ).format(Identifier(self.datastore.schema, self.tracking_table_name)),
                (list(positions), list(positions.values())),
            )
            _assert_reached(positions, [row["application_name"] for row in curs.fetchall()])
        owing, settled = _changed(extras.owing)
        if owing:
            curs.execute(
                SQL(
                    "INSERT INTO {0} SELECT * FROM unnest(%s::uuid[], %s::integer[]) "
                    "ON CONFLICT (aggregate_id) DO NOTHING"
                ).format(self._owing),
                ([each for each, _ in owing], [part for _, part in owing]),
            )
        if settled:
            curs.execute(SQL("DELETE FROM {0} WHERE aggregate_id = ANY(%s)").format(self._owing), (settled,))

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

    def select_positions(self, names: Sequence[str]) -> dict[str, int]:
        """The positions recorded under the names."""
        with self.datastore.transaction() as curs:
            curs.execute(
                SQL(
                    "SELECT application_name, MAX(notification_id) AS reached FROM {0} "
                    "WHERE application_name = ANY(%s) GROUP BY application_name"
                ).format(Identifier(self.datastore.schema, self.tracking_table_name)),
                (list(names),),
            )
            return {row["application_name"]: row["reached"] for row in curs.fetchall()}

    def select_ranges(self) -> dict[str, RangeRow]:
        """Who owns what."""
        with self.datastore.transaction() as curs:
            curs.execute(SQL("SELECT name, epoch, owner FROM {0}").format(self._ranges))
            return {row["name"]: RangeRow(row["epoch"], row["owner"]) for row in curs.fetchall()}

    def take_ranges(self, owner: str, seen: Mapping[str, int]) -> list[Fence]:
        """Take over those of the ranges that still have the epoch at which they were seen, raising it."""
        taken = []
        with self.datastore.transaction(commit=True) as curs:
            self._wait_briefly(curs)
            for name, epoch in seen.items():
                curs.execute(SQL(_TAKE.replace("{1}", "%s")).format(self._ranges), (name, owner, epoch))
                taken += [Fence(name, row["epoch"]) for row in curs.fetchall()]
        return taken

    def release_ranges(self, owner: str, held: Iterable[Fence]) -> None:
        """Let go of what the owner still holds of these."""
        with self.datastore.transaction(commit=True) as curs:
            self._wait_briefly(curs)
            for fence in held:
                curs.execute(SQL(_RELEASE.replace("{1}", "%s")).format(self._ranges), (fence.range, fence.epoch, owner))

    def cut_off(self, sessions: Collection[str]) -> int:
        """End other processes' connections; how many there were. What they had not committed is undone.

        A process that stands still inside its transaction holds its locks; no timeout of the server's ends it as long
        as more of what was sent in one go could come.
        """
        with self.datastore.transaction() as curs:
            curs.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = ANY(%s)",
                ([f"{APPLICATION}{session}" for session in sessions],),
            )
            return len(curs.fetchall())

    def _wait_briefly(self, curs: Cursor[DictRow]) -> None:
        curs.execute(SQL("SET LOCAL lock_timeout = '{0}s'").format(_TAKEOVER_WAITS))


EventRecorder = SQLiteEventRecorder | PostgresEventRecorder
SnapshotRecorder = SQLiteAggregateRecorder | PostgresAggregateRecorder


def snapshot_recorder(beside: EventRecorder) -> SnapshotRecorder:
    """The library's recorder on a table of its own, in the same database."""
    if isinstance(beside, SQLiteEventRecorder):
        return SQLiteAggregateRecorder(beside.datastore, events_table_name="stored_snapshots")
    return PostgresAggregateRecorder(beside.datastore, events_table_name="stored_snapshots")


_CREATING = 0x686F6C64  # PostgreSQL's advisory lock of whoever makes the tables


def create_tables(recorder: EventRecorder) -> None:
    """Make the tables that are missing; of several processes that start at once, one after the other.

    Where none is missing nothing is locked, so that one can start while another stands still inside its transaction.
    """
    snapshots = snapshot_recorder(recorder)
    if isinstance(recorder, SQLiteEventRecorder):
        recorder.create_table()
        snapshots.create_table()
        return
    tables = (recorder.events_table_name, recorder.tracking_table_name, "owing", "ranges", snapshots.events_table_name)
    with recorder.datastore.transaction() as curs:
        curs.execute("SELECT pg_advisory_xact_lock(%s)", (_CREATING,))
        curs.execute(
            "SELECT count(*) AS there FROM pg_tables WHERE schemaname = %s AND tablename = ANY(%s)",
            (recorder.datastore.schema, list(tables)),
        )
        row = curs.fetchone()
        if row is None or row["there"] < len(tables):
            recorder.create_table()
            snapshots.create_table()
