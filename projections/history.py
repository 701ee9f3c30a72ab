"""History: every event of the log, readable, with the operation, command and actor it belongs to.

Shows what was recorded and adds nothing to it but a sentence; secrets are not in it because they are in no event.
"""

from __future__ import annotations

import sqlite3
from typing import Any
from uuid import UUID

from aggregates.instance_events import Observed
from projections.answers import HistoryAnswer
from projections.base import Model, StoredEvent, as_json, stamp
from projections.listing import Listing, found
from projections.rows import Rows
from projections.sentences import sentence

TABLES = {
    "history": """CREATE TABLE history (
        position INTEGER PRIMARY KEY, project TEXT NOT NULL, kind TEXT NOT NULL, aggregate_id TEXT NOT NULL,
        instance_id TEXT, version INTEGER NOT NULL, name TEXT NOT NULL, at TEXT NOT NULL, operation_id TEXT,
        command TEXT, actor TEXT, facts TEXT NOT NULL, sentence TEXT NOT NULL)""",
    # Whose an aggregate is, whom it is about, and the operation that it was last in.
    "history_aggregates": """CREATE TABLE history_aggregates (
        aggregate_id TEXT PRIMARY KEY, project TEXT NOT NULL, instance_id TEXT, operation_id TEXT, command TEXT,
        actor TEXT) WITHOUT ROWID""",
}
INDEXES = (
    "CREATE UNIQUE INDEX history_aggregate ON history (project, aggregate_id, version)",
    "CREATE INDEX history_project ON history (project, position)",
    "CREATE INDEX history_instance ON history (project, instance_id, position)",
    "CREATE INDEX history_operation ON history (project, operation_id, position)",
)
LISTING = Listing(
    table="history",
    answer=HistoryAnswer,
    key="position",
    filters={name: name for name in ("instance_id", "aggregate_id", "operation_id", "kind", "name", "actor")},
    sorts={"position": "position"},
    sort="position",
)
_BASE = frozenset({"originator_id", "originator_version", "timestamp"})


def get(connection: sqlite3.Connection, project: str, aggregate_id: str, version: int) -> HistoryAnswer | None:
    """One event of an aggregate, or None."""
    answer: HistoryAnswer | None = found(
        HistoryAnswer,
        connection,
        "history",
        {"project": project, "aggregate_id": aggregate_id, "version": version},
    )
    return answer


def apply(rows: Rows, stored: StoredEvent) -> None:
    """Take one event."""
    event, aggregate_id = stored.event, str(stored.aggregate_id)
    kind, _, name = stored.topic.partition(".")
    context = _command(event) if kind == "command" else _context(rows, stored, kind)
    rows.insert(
        "history",
        {
            "position": stored.position,
            "kind": kind,
            "aggregate_id": aggregate_id,
            "version": stored.version,
            "name": name,
            "at": stamp(event.timestamp),
            **context,
            "facts": as_json({field: value for field, value in vars(event).items() if field not in _BASE}),
            "sentence": sentence(event),
        },
    )


def _command(event: Any) -> dict[str, Any]:
    return {
        "project": event.project,
        "instance_id": str(event.aggregate_id) if event.aggregate_kind == "instance" else None,
        "operation_id": str(event.command_id),
        "command": event.command,
        "actor": event.actor,
    }


def _context(rows: Rows, stored: StoredEvent, kind: str) -> dict[str, Any]:
    event, key = stored.event, (str(stored.aggregate_id),)
    about: UUID | None = getattr(event, "instance_id", None)
    if stored.version == 1:
        about = stored.aggregate_id if kind == "instance" else about
        rows.insert(
            "history_aggregates",
            {
                "aggregate_id": key[0],
                "project": event.project,
                "instance_id": about and str(about),
                "operation_id": None,
                "command": None,
                "actor": None,
            },
        )
    if (operation := getattr(event, "operation", None)) is not None:
        rows.update(
            "history_aggregates",
            key,
            {"operation_id": str(operation.id), "command": operation.command, "actor": operation.actor},
        )
    row = rows.get("history_aggregates", key)
    by = getattr(event, "intervention", None)
    if isinstance(event, Observed):  # nobody's, but for what somebody asked for
        row = {**row, "operation_id": None, "command": None, "actor": getattr(event, "actor", None)}
    return {
        **{name: row[name] for name in ("project", "instance_id", "operation_id", "command", "actor")},
        **({"instance_id": str(about)} if about else {}),
        **({"command": by.command, "actor": by.actor} if by is not None else {}),
    }


MODEL = Model(
    name="history",
    tables=TABLES,
    keys={"history": ("position",), "history_aggregates": ("aggregate_id",)},
    indexes=INDEXES,
    kinds=frozenset({"instance", "quota", "health", "command"}),
    apply=apply,
    revision=2,
)
