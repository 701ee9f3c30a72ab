"""`holdfast worker` as it is, on a machine of its own, with what a test wants to go wrong, told by the environment.

`WORKERS_STOP_AT=<point>:<subject>` has it stopped by SIGSTOP when it passes that point for the first time;
`WORKERS_STOP_IN=transaction` when it has written its first events and not committed them. `WORKERS_CARELESS` makes it
believe that it owns for ever what it once owned: neither lease nor fence is heeded.
"""

from __future__ import annotations

import os
import signal
from typing import Any
from uuid import uuid4

from engine import crash_points, partitions
from engine.cli import main
from engine.partitions import Leases
from engine.recorders import PostgresEventRecorder
from engine.store import EventStore


def stop() -> None:
    """Stand still until SIGCONT; the whole process, since the signal is meant for that."""
    os.kill(os.getpid(), signal.SIGSTOP)


def live_apart() -> None:
    """Nobody can look whether this process lives, as if it ran on another machine."""
    machine = uuid4().hex
    partitions._machine = lambda: machine


def stop_at(wanted: str) -> None:
    passed = False

    def heard(point: str, subject: str) -> None:
        nonlocal passed
        if f"{point}:{subject}" == wanted and not passed:
            passed = True
            stop()

    crash_points.listener.set(heard)


def stop_in_transaction() -> None:
    fetch = PostgresEventRecorder._fetch_ids_after_insert_events
    passed = False

    def fetching(self: PostgresEventRecorder, *arguments: Any, **kwargs: Any) -> Any:
        nonlocal passed
        if self.events_table_name == "stored_events" and not passed:
            passed = True
            stop()
        return fetch(self, *arguments, **kwargs)

    setattr(PostgresEventRecorder, "_fetch_ids_after_insert_events", fetching)  # noqa: B010 - mypy takes no assignment


def be_careless() -> None:
    commit = EventStore.commit

    async def unfenced(self: EventStore, *arguments: Any, **kwargs: Any) -> None:
        await commit(self, *arguments, **{**kwargs, "fences": ()})

    setattr(EventStore, "commit", unfenced)  # noqa: B010
    setattr(Leases, "holds", lambda self, name: True)  # noqa: ARG005, B010
    setattr(Leases, "_drop", lambda self, ranges: None)  # noqa: ARG005, B010


if __name__ == "__main__":
    live_apart()
    if at := os.environ.get("WORKERS_STOP_AT"):
        stop_at(at)
    if os.environ.get("WORKERS_STOP_IN") == "transaction":
        stop_in_transaction()
    if os.environ.get("WORKERS_CARELESS"):
        be_careless()
    main()
