"""Operations: the stretch of an aggregate's history under one command, its progress and how it ended.

It ends when a state is entered that owes nothing: cancelled if it was undone by a command, failed if a failure was
recorded in it, else done. A deletion that came while it ran cancels it at once. A deletion that reached its end is
done, also when the clean stop before it had failed; what was abandoned has failed, whatever came before.
"""

from __future__ import annotations

import sqlite3
from typing import Any

import msgspec

from aggregates.base import AttemptFailed, LastLookDue, OperationParked, RetryRequested, Transitioned
from aggregates.instance_events import CancelRequested, OperationAbandoned
from engine.messages import Outcome
from projections.answers import Error, OperationAnswer, StatePassed
from projections.base import Model, StoredEvent, as_json, stamp
from projections.listing import Listing, found
from projections.rows import Rows
from projections.words import LIFECYCLES, effect_owed, owes

TABLES = {
    "operations": """CREATE TABLE operations (
        id TEXT NOT NULL, project TEXT NOT NULL, kind TEXT NOT NULL, instance_id TEXT NOT NULL,
        command TEXT NOT NULL, actor TEXT NOT NULL, plan TEXT NOT NULL, n INTEGER NOT NULL, m INTEGER NOT NULL,
        state TEXT, effect TEXT, attempts INTEGER NOT NULL DEFAULT 0, error TEXT, retry_at TEXT,
        deadline TEXT NOT NULL, started_at TEXT NOT NULL, finished_at TEXT, duration REAL, outcome TEXT NOT NULL,
        failure TEXT, parked INTEGER NOT NULL DEFAULT 0, cancelled_by TEXT, states TEXT NOT NULL,
        PRIMARY KEY (project, id))""",
    # How far each aggregate has been read, and its running operation: tells a command that began none from one unread.
    "operation_progress": """CREATE TABLE operation_progress (
        aggregate_id TEXT PRIMARY KEY, project TEXT NOT NULL, version INTEGER NOT NULL, operation_id TEXT
        ) WITHOUT ROWID""",
}
INDEXES = (
    "CREATE INDEX operations_started ON operations (project, started_at, id)",
    "CREATE INDEX operations_outcome ON operations (project, outcome, started_at, id)",
    "CREATE INDEX operations_instance ON operations (project, instance_id, started_at, id)",
    "CREATE INDEX operations_parked ON operations (project, started_at, id) WHERE parked = 1",
)
LISTING = Listing(
    table="operations",
    answer=OperationAnswer,
    key="id",
    filters={name: name for name in ("outcome", "instance_id", "command", "actor", "parked", "kind")},
    sorts={"started_at": "started_at"},
    sort="-started_at",
)


def get(connection: sqlite3.Connection, project: str, operation_id: str) -> OperationAnswer | None:
    """The operation, or None."""
    answer: OperationAnswer | None = found(
        OperationAnswer, connection, "operations", {"project": project, "id": operation_id}
    )
    return answer


def apply(rows: Rows, stored: StoredEvent) -> None:
    """Take one event."""
    event, aggregate_id = stored.event, str(stored.aggregate_id)
    if stored.version == 1:
        project = event.project
        rows.insert(
            "operation_progress",
            {"aggregate_id": aggregate_id, "project": project, "version": 1, "operation_id": None},
        )
        running = None
    else:
        row = rows.get("operation_progress", (aggregate_id,))
        project, running = row["project"], row["operation_id"]
        rows.update("operation_progress", (aggregate_id,), {"version": stored.version})
    kind = stored.topic.partition(".")[0]
    if kind not in LIFECYCLES:
        return
    if (begun := getattr(event, "operation", None)) is not None:
        if running is not None:
            _cancel(rows, project, running, str(begun.id), event)
        running = _begin(rows, project, kind, aggregate_id, event)
    if running is not None:
        _progress(rows, project, kind, running, aggregate_id, event)


def _begin(rows: Rows, project: str, kind: str, aggregate_id: str, event: Any) -> str:
    operation = event.operation
    state = getattr(event, "state", operation.plan[0])
    rows.insert(
        "operations",
        {
            "id": str(operation.id),
            "project": project,
            "kind": kind,
            "instance_id": aggregate_id,
            "command": operation.command,
            "actor": operation.actor,
            "plan": as_json(operation.plan),
            "n": 1,
            "m": len(operation.plan),
            "state": state,
            "effect": effect_owed(kind, state),
            "deadline": stamp(operation.deadline),
            "started_at": stamp(event.timestamp),
            "outcome": Outcome.RUNNING,
            "failure": None,
            "cancelled_by": None,
            "states": as_json([StatePassed(state=state, at=event.timestamp)]),
        },
    )
    _set_running(rows, aggregate_id, str(operation.id))
    return str(operation.id)


def _cancel(rows: Rows, project: str, operation_id: str, by: str, event: Any) -> None:
    row = rows.get("operations", (project, operation_id))
    _end(rows, (project, operation_id), event, row["started_at"], {"outcome": Outcome.CANCELLED, "cancelled_by": by})


def _progress(rows: Rows, project: str, kind: str, operation_id: str, aggregate_id: str, event: Any) -> None:
    key = (project, operation_id)
    match event:
        case AttemptFailed():
            error = as_json(Error(code=event.code, message=event.message))
            rows.update(
                "operations",
                key,
                {"attempts": event.attempt, "error": error, "retry_at": stamp(event.retry_at), "effect": event.effect},
            )
        case LastLookDue():
            error = as_json(Error(code=event.code, message=event.message))
            due = {"attempts": 0, "error": error, "retry_at": stamp(event.due_at), "effect": event.effect}
            rows.update("operations", key, due)
        case OperationParked():
            error = as_json(Error(code=event.code, message=event.message))
            rows.update("operations", key, {"parked": 1, "error": error, "retry_at": None, "effect": event.effect})
        case RetryRequested():
            rows.update("operations", key, {"parked": 0, "attempts": 0, "retry_at": None})
        case Transitioned() if getattr(event, "operation", None) is None:
            _transition(rows, key, kind, aggregate_id, event)


def _transition(rows: Rows, key: tuple[str, str], kind: str, aggregate_id: str, event: Any) -> None:
    row = rows.get("operations", key)
    state, failure = event.state, row["failure"]
    if (failed := getattr(event, "failure", None)) is not None:
        failure = as_json(Error(code=failed.code, message=failed.message, state=failed.state))
    cancelled_by = str(event.intervention.command_id) if isinstance(event, CancelRequested) else row["cancelled_by"]
    states = msgspec.json.decode(row["states"], type=list[StatePassed])
    states.append(StatePassed(state=state, at=event.timestamp))
    plan = msgspec.json.decode(row["plan"], type=list[str])
    change = {
        "n": plan.index(state) + 1 if state in plan else row["n"],
        "attempts": 0,
        "error": failure,
        "retry_at": None,
        "failure": failure,
        "parked": 0,
        "cancelled_by": cancelled_by,
        "states": as_json(states),
    }
    if owes(kind, state):
        rows.update("operations", key, {**change, "state": state, "effect": effect_owed(kind, state)})
        return
    if failure is None or state == "DELETED":
        change.update(outcome=Outcome.DONE, n=row["m"])
    elif cancelled_by is not None and not isinstance(event, OperationAbandoned):
        change.update(outcome=Outcome.CANCELLED)
    else:
        change.update(outcome=Outcome.FAILED)
    _end(rows, key, event, row["started_at"], change)
    _set_running(rows, aggregate_id, None)


def _end(rows: Rows, key: tuple[str, str], event: Any, started: str, change: dict[str, Any]) -> None:
    begun = msgspec.convert(started, type(event.timestamp))
    rows.update(
        "operations",
        key,
        {
            **change,
            "state": None,
            "effect": None,
            "retry_at": None,
            "parked": 0,
            "finished_at": stamp(event.timestamp),
            "duration": round((event.timestamp - begun).total_seconds(), 6),
        },
    )


def _set_running(rows: Rows, aggregate_id: str, operation_id: str | None) -> None:
    rows.update("operation_progress", (aggregate_id,), {"operation_id": operation_id})


MODEL = Model(
    name="operations",
    tables=TABLES,
    keys={"operations": ("project", "id"), "operation_progress": ("aggregate_id",)},
    indexes=INDEXES,
    kinds=frozenset({"instance", "quota", "health"}),
    apply=apply,
)
