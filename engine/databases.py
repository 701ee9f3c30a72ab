"""The library's connections to SQLite and PostgreSQL, made to end: every call returns, or fails as unavailable in time.

A connection on which something went wrong is not used again. A call that was cut off may have been carried out all
the same: who cares must look.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from uuid import uuid4

import psycopg
from eventsourcing.persistence import IntegrityError, InterfaceError, InternalError, OperationalError, PersistenceError
from eventsourcing.postgres import PostgresDatastore
from eventsourcing.sqlite import SQLiteConnection, SQLiteConnectionPool, SQLiteCursor, SQLiteDatastore
from psycopg.rows import DictRow

# Seconds.
CALL = 30.0  # for one call; PostgreSQL itself ends a statement by then
CUT_AFTER = CALL + 5.0  # when it does not, because it was stopped or the network is gone
CONNECT = 5.0
APPLICATION = "holdfast-"  # what our connections are called at the server, before the name of the session
_LOOK = 1.0

# PostgreSQL's words for what passes, under a class that is else a defect: a transaction that idled (we were stopped),
# a server that only reads (a standby not promoted yet).
_PASSES = frozenset({"25P03", "25006"})


# PostgreSQL's words for a server that will take us in a while; all its other refusals stay until somebody acts.
_SOON = ("starting up", "shutting down", "terminating", "recovery", "too many", "connection slots")
_BUSY = ("locked", "busy", "full", "unable to open database file")


class StoreRefusedError(Exception):
    """The event store cannot be used as it is, and waiting will not help. Code `store_refused`."""


class StoreUnavailableError(Exception):
    """The event store cannot be used, and is not waited for any longer. Code `store_unavailable`."""


def is_unavailable(error: BaseException) -> bool:
    """Whether the database is away, full or busy, so that the same call may succeed later."""
    if isinstance(error, InternalError):
        return isinstance(error.__cause__, psycopg.Error) and error.__cause__.sqlstate in _PASSES
    return isinstance(error, (OperationalError, InterfaceError))


def hindrance(url: str) -> str | None:
    """Why the server at the URL does not take a connection just now; None when it does, or needs none.

    Raises `StoreRefusedError`.
    """
    if not url.startswith(("postgresql:", "postgres:")):
        return None
    try:
        psycopg.connect(url.partition("?")[0], connect_timeout=int(CONNECT)).close()
    except psycopg.OperationalError as error:
        words = " ".join(str(error).split())
        if "FATAL:" in words and not any(each in words for each in _SOON):
            said = words.partition("FATAL:")[2].strip()
            raise StoreRefusedError(
                f"store_refused: PostgreSQL does not take us ({said}); correct --store, or give its user what it lacks"
            ) from None
        return words
    return None


def refusal(error: PersistenceError) -> StoreRefusedError | None:
    """What to say of an error in opening a store, if waiting does not help."""
    if is_unavailable(error) and any(each in str(error) for each in (*_BUSY, *_SOON, "connection")):
        return None
    words = " ".join(str(error).split())
    return StoreRefusedError(
        f"store_refused: the event store cannot be opened ({words}); correct --store or its rights"
    )


# --- SQLite -------------------------------------------------------------------------------------------------------


class _DurableConnection(SQLiteConnection):
    @contextmanager
    def transaction(self, *, commit: bool) -> Iterator[SQLiteCursor]:
        """The library's own leaves a transaction open whose commit failed, and the connection in use."""
        try:
            with super().transaction(commit=commit) as cursor:
                yield cursor
        except IntegrityError:
            raise
        except PersistenceError:
            self._closing.set()
            raise
        except sqlite3.Error as error:  # by its BEGIN
            self._closing.set()
            raise OperationalError(str(error)) from error


class _DurablePool(SQLiteConnectionPool):
    def _create_connection(self) -> SQLiteConnection:
        try:
            made = super()._create_connection()
            connection = _DurableConnection(made._sqlite_conn, self.max_age)  # noqa: SLF001 - the library's has no hook
            cursor = connection.cursor()
            # An acknowledged command must outlive a power cut: one fsync for each commit, whatever the build's default.
            cursor.execute("PRAGMA synchronous=FULL")
            cursor.execute("PRAGMA cache_size=-65536")
        except sqlite3.Error as error:
            raise OperationalError(str(error)) from error
        return connection

    def get_connection(self, timeout: float | None = None, *, is_writer: bool | None = None) -> SQLiteConnection:
        """The library's own keeps the writer's lock for ever when no connection can be made."""
        before = self._num_writers
        try:
            return super().get_connection(timeout, is_writer=is_writer)
        except (OperationalError, InterfaceError):
            if is_writer and self._num_writers > before:
                self._num_writers -= 1
                self._writer_lock.release()
            raise


class DurableSQLiteDatastore(SQLiteDatastore):
    """A datastore whose connections fsync each commit. `lock_timeout` in seconds."""

    def __init__(self, db_name: str, *, lock_timeout: int = 10) -> None:
        super().__init__(db_name, lock_timeout=lock_timeout)
        self.pool.close()
        self.pool = _DurablePool(db_name=db_name, lock_timeout=lock_timeout)


# --- PostgreSQL ---------------------------------------------------------------------------------------------------


class _Deadlines:
    """Cuts the connection of a call that takes too long: its thread gets an error in place of the answer."""

    def __init__(self, after: float) -> None:
        self._after = after
        self._running: dict[int, tuple[float, psycopg.Connection[DictRow]]] = {}
        self._turn = threading.Lock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    @contextmanager
    def bound(self, connection: psycopg.Connection[DictRow]) -> Iterator[None]:
        """The connection is used within, and no longer than the time."""
        with self._turn:
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="store-deadlines", daemon=True)
                self._thread.start()
            self._running[id(connection)] = (time.monotonic() + self._after, connection)  # noqa: TID251 - a thread
        try:
            yield
        finally:
            with self._turn:
                self._running.pop(id(connection), None)

    def cut(self, until: float = float("inf")) -> None:
        """End all calls whose time is over by then."""
        with self._turn:
            for key, (deadline, connection) in list(self._running.items()):
                if deadline <= until:
                    del self._running[key]
                    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as wire:
                        wire.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Watch no longer."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(_LOOK):
            self.cut(time.monotonic())  # noqa: TID251 - a thread


class BoundedPostgresDatastore(PostgresDatastore):
    """A datastore whose calls end: by the server's own timeouts, or cut off when it does not answer.

    `session` names its connections at the server, so that others can have them ended there.
    """

    def __init__(self, *, dbname: str, host: str, port: int, user: str, password: str, schema: str) -> None:
        self.session = uuid4().hex
        self._deadlines = _Deadlines(CUT_AFTER)
        super().__init__(
            dbname=dbname,
            host=host,
            port=port,
            user=user,
            password=password,
            schema=schema,
            connect_timeout=CONNECT,
            # A worker stopped inside its transaction must not hold the others for long.
            lock_timeout=5,
            idle_in_transaction_session_timeout=5,
            pool_size=4,
            max_overflow=4,
        )
        self.pool.kwargs = {
            **(self.pool.kwargs if isinstance(self.pool.kwargs, dict) else {}),
            "application_name": f"{APPLICATION}{self.session}",
            "connect_timeout": int(CONNECT),
            "options": f"-c statement_timeout={int(CALL * 1000)}",
            # A machine that vanished says nothing.
            "keepalives_idle": 5,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 15_000,
        }
        self.pool.reconnect_timeout = 2.0  # else its pauses grow with the outage, and go on after it

    @contextmanager
    def get_connection(self) -> Iterator[psycopg.Connection[DictRow]]:
        """The library's, within the deadline."""
        with super().get_connection() as connection, self._deadlines.bound(connection):
            yield connection

    def give_up(self) -> None:
        """End all calls now."""
        self._deadlines.cut()

    def forget_connections(self) -> None:
        """Make those anew that are not in use."""
        with suppress(psycopg.Error):
            self.pool.drain()

    def close(self) -> None:
        """End all calls, and close the connections."""
        self._deadlines.cut()
        self._deadlines.close()
        super().close()


def forget_connections(datastore: SQLiteDatastore | PostgresDatastore) -> None:
    """The database was away: connections to a server that were not in use are no good either."""
    if isinstance(datastore, BoundedPostgresDatastore):
        datastore.forget_connections()


def give_up(datastore: SQLiteDatastore | PostgresDatastore) -> None:
    """End the calls to a server now; those to a file end when the timeout of its lock is over."""
    if isinstance(datastore, BoundedPostgresDatastore):
        datastore.give_up()
