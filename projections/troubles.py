"""What may need a person, looked up when asked: operations that are parked, overdue or tried often, and instances
that are down or have drifted.

Has no rows of its own: it is as new as `instances` and `operations`. It lists at most so many of each kind, and counts
all. Under the project `$all`, which no project can be named and so no publisher's rights hold, it answers for all.
"""

from __future__ import annotations

import sqlite3
from datetime import datetime
from typing import Any, TypeVar

from engine.messages import EVERY_PROJECT, Outcome
from projections.answers import (
    Answer,
    DriftTrouble,
    InstanceTrouble,
    OperationTrouble,
    TroublesAnswer,
    columns,
    from_row,
)
from projections.base import stamp

SHOWN = 50  # of each kind
MANY_TRIES = 5

A = TypeVar("A", bound=Answer)


def get(connection: sqlite3.Connection, project: str, now: datetime) -> TroublesAnswer:
    """The troubles of the project at the time."""
    looking = _Looking(connection, project)
    running, going = {"outcome = ?": Outcome.RUNNING}, {"parked = ?": 0}
    parked = looking.find(OperationTrouble, "operations", "started_at", {**running, "parked = ?": 1})
    late = {**running, **going, "deadline < ?": stamp(now)}
    overdue = looking.find(OperationTrouble, "operations", "started_at", late)
    tried = {**running, **going, "deadline >= ?": stamp(now), "attempts >= ?": MANY_TRIES}
    struggling = looking.find(OperationTrouble, "operations", "started_at", tried)
    silent = {"deleted = ?": 0, "health = ?": "DOWN", "status IN ('ACTIVE', ?)": "ERROR"}
    down = looking.find(InstanceTrouble, "instances", "updated_at", silent)
    drifted = looking.find(DriftTrouble, "instances", "updated_at", {"deleted = ?": 0, "drift <> ?": "[]"})
    found = {"parked": parked, "overdue": overdue, "struggling": struggling, "down": down, "drifted": drifted}
    return TroublesAnswer(
        parked=parked[0],
        overdue=overdue[0],
        struggling=struggling[0],
        down=down[0],
        drifted=drifted[0],
        numbers={name: number for name, (_, number) in found.items()},
    )


class _Looking:
    """Looks for rows of one project, or of all."""

    def __init__(self, connection: sqlite3.Connection, project: str) -> None:
        self._connection = connection
        self._scope = {} if project == EVERY_PROJECT else {"project = ?": project}

    def find(self, answer: type[A], table: str, sort: str, conditions: dict[str, Any]) -> tuple[tuple[A, ...], int]:
        """The first rows, and how many there are. Tables, columns and conditions are constants of this module."""
        given = {**self._scope, **conditions}
        where, values = " AND ".join(given), tuple(given.values())
        rows = self._connection.execute(
            f"SELECT {columns(answer)} FROM {table} WHERE {where} ORDER BY {sort} LIMIT {SHOWN}",  # noqa: S608
            values,
        ).fetchall()
        (number,) = self._connection.execute(f"SELECT count(*) FROM {table} WHERE {where}", values).fetchone()  # noqa: S608
        return tuple(from_row(answer, row) for row in rows), number
