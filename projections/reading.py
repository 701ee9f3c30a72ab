"""Reading the read models: bounded threads, each with a read-only connection, each read one snapshot with a deadline.

Readers never wait for the writer, nor it for them. A snapshot is as old as its beginning.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

THREADS = 4
LIMIT = 10.0  # seconds that one read may take, from when it has a thread
STEPS = 20_000  # of the database's machine, between two looks at the clock


class ReadTimeoutError(Exception):
    """A read took too long and was given up. Code `timeout`."""


class Reader:
    """Reads one file from threads of its own."""

    def __init__(self, path: Path, threads: int = THREADS) -> None:
        self._uri = f"{path.absolute().as_uri()}?mode=ro"
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=f"read-{path.stem}")
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []

    async def read(self, question: Callable[[sqlite3.Connection], T], limit: float = LIMIT) -> T:
        """What the question answers from one snapshot. Raises `ReadTimeoutError`."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._read, question, limit)

    def close(self) -> None:
        """Finish the reads under way and close the connections."""
        self._threads.shutdown()
        for connection in self._connections:
            connection.close()

    def _read(self, question: Callable[[sqlite3.Connection], T], limit: float) -> T:
        connection = self._connection()
        deadline = time.monotonic() + limit
        connection.set_progress_handler(lambda: time.monotonic() > deadline, STEPS)
        connection.execute("BEGIN")
        try:
            return question(connection)
        except sqlite3.OperationalError as error:
            if time.monotonic() > deadline:
                raise ReadTimeoutError(f"the answer took longer than {limit:g} s; ask for less") from error
            raise
        finally:
            connection.set_progress_handler(None, STEPS)
            connection.execute("ROLLBACK")

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(
                self._uri, uri=True, isolation_level=None, check_same_thread=False, timeout=5, cached_statements=256
            )
            connection.row_factory = sqlite3.Row
            self._local.connection = connection
            self._connections.append(connection)
        return connection
