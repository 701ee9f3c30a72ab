"""The store of the read models: rows and the position they stand at are committed together, by one process.

A read model equals the fold of the log up to its position, whatever died in between; a power cut may take the last
commits, which the log then gives again. It is no source of truth: it may be dropped and rebuilt at any time.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

import msgspec
from eventsourcing.persistence import Tracking
from eventsourcing.sqlite import (
    SQLiteConnection,
    SQLiteConnectionPool,
    SQLiteCursor,
    SQLiteDatastore,
    SQLiteTrackingRecorder,
)

from projections.rows import Rows

FILE = "models.db"
LOCK = "projector.lock"


class StoredEvent(Protocol):
    """An event as it stands in the log. Positions grow along the log; gaps are normal."""

    @property
    def position(self) -> int: ...
    @property
    def aggregate_id(self) -> UUID: ...
    @property
    def version(self) -> int: ...
    @property
    def topic(self) -> str: ...
    @property
    def event(self) -> Any: ...


class Log(Protocol):
    """What projections need of the event log. Synchronous: called from threads."""

    def read(self, after: int, limit: int, /) -> Sequence[StoredEvent]: ...
    def end(self) -> int: ...
    def give_up(self) -> None: ...


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """One read model: its tables and their keys, the topics it reads (by prefix), how one event changes its rows.

    `revision` is raised when `apply` means something else than before: the rows are then dropped and made again.
    """

    name: str
    tables: Mapping[str, str]
    keys: Mapping[str, tuple[str, ...]]
    indexes: tuple[str, ...]
    kinds: frozenset[str]
    apply: Callable[[Rows, StoredEvent], None]
    revision: int = 1

    @property
    def fingerprint(self) -> str:
        """What the stored rows must have been made by."""
        text = "\n".join((str(self.revision), *sorted(self.kinds), *self.tables.values(), *self.indexes))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def reads(self, stored: StoredEvent) -> bool:
        """Whether the event concerns this model."""
        return stored.topic.partition(".")[0] in self.kinds


class ProjectorRunningError(Exception):
    """Another process writes these read models. Code `projector_running`."""


class CannotApplyError(Exception):
    """A read model cannot take an event. Code `cannot_apply`."""

    def __init__(self, model: str, stored: StoredEvent, cause: Exception) -> None:
        super().__init__(
            f"read model {model} cannot take event {stored.topic} at position {stored.position} "
            f"({stored.aggregate_id} version {stored.version}): {cause!r}; it stands still until this is mended, then "
            "restart the projector or rebuild the model"
        )
        self.model = model
        self.position = stored.position


class _Pool(SQLiteConnectionPool):
    def _create_connection(self) -> SQLiteConnection:
        connection = super()._create_connection()
        # Rows come from the log again, so a commit need not wait for the disk.
        for pragma in ("synchronous=NORMAL", "cache_size=-65536", "journal_size_limit=67108864"):
            connection.cursor().execute(f"PRAGMA {pragma}")
        return connection


class _Datastore(SQLiteDatastore):
    def __init__(self, path: Path) -> None:
        name = path.absolute().as_uri()
        super().__init__(name, lock_timeout=10)
        self.pool.close()
        self.pool = _Pool(db_name=name, lock_timeout=10)


class ReadModels(SQLiteTrackingRecorder):
    """The writing side: one file, one process, called by one thread at a time. Raises `ProjectorRunningError`."""

    def __init__(self, directory: Path, models: Sequence[Model]) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path = directory / FILE
        self.models = {model.name: model for model in models}
        self._lock = _acquire(directory / LOCK)
        try:
            super().__init__(_Datastore(self.path))
            self.create_table()
            self._prepare()
        except BaseException:
            os.close(self._lock)
            raise

    def close(self) -> None:
        """Let go of the file."""
        self.datastore.close()
        os.close(self._lock)

    def position(self, model: str) -> int:
        """The position that the model stands at; 0 when it has read nothing."""
        return self.max_tracking_id(model) or 0

    def construct_create_table_statements(self) -> list[str]:
        """The library's table and what the rows were made by."""
        return [
            *super().construct_create_table_statements(),
            "CREATE TABLE IF NOT EXISTS made_by (model TEXT PRIMARY KEY, fingerprint TEXT NOT NULL) WITHOUT ROWID",
        ]

    def _prepare(self) -> None:
        with self.datastore.transaction(commit=True) as c:
            c.execute("SELECT model, fingerprint FROM made_by")
            present = {row["model"]: row["fingerprint"] for row in c.fetchall()}
            for model in self.models.values():
                if present.get(model.name) != model.fingerprint:
                    self._make_anew(c, model)

    def _make_anew(self, c: SQLiteCursor, model: Model) -> None:
        for table in model.tables:
            c.execute(f"DROP TABLE IF EXISTS {table}")
        for statement in (*model.tables.values(), *model.indexes):
            c.execute(statement)
        c.execute("DELETE FROM tracking WHERE application_name = ?", (model.name,))
        c.execute("INSERT OR REPLACE INTO made_by VALUES (?, ?)", (model.name, model.fingerprint))

    def advance(self, names: Sequence[str], page: Sequence[StoredEvent]) -> dict[str, CannotApplyError]:
        """Apply a page, which begins after the position of each of the models, in one transaction.

        A model that cannot take an event keeps what came before it; the answer says which and why.
        """
        stopped: dict[str, CannotApplyError] = {}
        with self.datastore.transaction(commit=True) as c:
            for name in names:
                error = self._advance(c, self.models[name], page)
                if error is not None:
                    stopped[name] = error
        return stopped

    def _advance(self, c: SQLiteCursor, model: Model, page: Sequence[StoredEvent]) -> CannotApplyError | None:
        failed: CannotApplyError | None = None
        try:
            _apply(c, model, page)
        except CannotApplyError as error:
            page = [stored for stored in page if stored.position < error.position]
            _apply(c, model, page)
            failed = error
        if page:
            self._insert_tracking(c, Tracking(model.name, page[-1].position))
        return failed

    def rebuild(self, names: Sequence[str], log: Log, page: int) -> None:
        """Make the models again from the whole log. Readers see the old rows until all of it is there.

        Raises `CannotApplyError`; the old rows then stay.
        """
        with self.datastore.transaction(commit=True) as c:
            for name in names:
                self._make_anew(c, self.models[name])
            position = 0
            while events := log.read(position, page):
                for name in names:
                    _apply(c, self.models[name], events)
                position = events[-1].position
            for name in names:
                self._insert_tracking(c, Tracking(name, position))


def _apply(c: SQLiteCursor, model: Model, page: Sequence[StoredEvent]) -> None:
    """Apply all of the page or, raising `CannotApplyError`, nothing."""
    read = [stored for stored in page if model.reads(stored)]
    c.execute("SAVEPOINT page")
    try:
        _apply_together(c, model, read)
    except sqlite3.IntegrityError:
        # Rows that break a table's constraints: which event made them is seen when each is written alone.
        c.execute("ROLLBACK TO page")
        try:
            for stored in read:
                _apply_alone(c, model, stored)
        except CannotApplyError:
            c.execute("ROLLBACK TO page")
            raise
    finally:
        c.execute("RELEASE page")


def _apply_together(c: SQLiteCursor, model: Model, read: Sequence[StoredEvent]) -> None:
    rows = Rows(c, model.keys)
    for stored in read:
        try:
            model.apply(rows, stored)
        except Exception as error:
            raise CannotApplyError(model.name, stored, error) from error
    rows.write()


def _apply_alone(c: SQLiteCursor, model: Model, stored: StoredEvent) -> None:
    try:
        _apply_together(c, model, [stored])
    except sqlite3.IntegrityError as error:
        raise CannotApplyError(model.name, stored, error) from error


def _acquire(path: Path) -> int:
    held = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(held, 64, 0).decode(errors="replace").strip()
        os.close(held)
        raise ProjectorRunningError(
            f"process {holder or 'unknown'} writes the read models already ({path}): stop it first"
        ) from None
    os.ftruncate(held, 0)
    os.pwrite(held, str(os.getpid()).encode(), 0)
    return held


# --- rows ---------------------------------------------------------------------------------------------------------


def stamp(at: datetime) -> str:
    """A time as it is stored: UTC, of fixed width, so that it sorts as text."""
    return f"{at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec='microseconds')}Z"


def as_json(value: Any) -> str:
    """A nested value as it is stored."""
    return msgspec.json.encode(value).decode()
