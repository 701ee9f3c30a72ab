"""Commands: what was decided about each, and what has come of the operation that it began.

The decision is there as soon as the log holds it and never changes. The outcome is the operation's: a command that
began none (such as one about quota) is done once the aggregate has been read up to the version it led to.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from aggregates.record import CommandAccepted
from projections.answers import CommandAnswer
from projections.base import Model, StoredEvent, stamp
from projections.listing import Listing, found
from projections.rows import Rows

TABLES = {
    "commands": """CREATE TABLE commands (
        project TEXT NOT NULL, command_id TEXT NOT NULL, command TEXT NOT NULL, kind TEXT NOT NULL,
        aggregate_id TEXT NOT NULL, accepted INTEGER NOT NULL, version INTEGER, code TEXT, reason TEXT,
        actor TEXT NOT NULL, decided_at TEXT NOT NULL, PRIMARY KEY (project, command_id))""",
}
INDEXES = (
    "CREATE INDEX commands_decided ON commands (project, decided_at, command_id)",
    "CREATE INDEX commands_aggregate ON commands (project, aggregate_id, decided_at, command_id)",
    "CREATE INDEX commands_accepted ON commands (project, accepted, decided_at, command_id)",
)
# The outcome is read from the operations, not copied, so that neither model waits for the other.
_JOINED = """(SELECT c.*,
    CASE WHEN NOT c.accepted THEN NULL WHEN o.id IS NOT NULL THEN o.outcome
         WHEN p.version >= c.version THEN 'done' ELSE 'running' END AS outcome,
    o.failure AS error,
    CASE WHEN o.id IS NOT NULL THEN o.finished_at WHEN p.version >= c.version THEN c.decided_at END AS finished_at
    FROM commands AS c
    LEFT JOIN operations AS o ON o.project = c.project AND o.id = c.command_id AND c.accepted
    LEFT JOIN operation_progress AS p ON p.aggregate_id = c.aggregate_id AND c.accepted)"""
LISTING = Listing(
    table=_JOINED,
    answer=CommandAnswer,
    key="command_id",
    filters={name: name for name in ("accepted", "aggregate_id", "kind", "command", "code", "actor", "outcome")},
    sorts={"decided_at": "decided_at"},
    sort="-decided_at",
)


def get(connection: sqlite3.Connection, project: str, command_id: str) -> CommandAnswer | None:
    """The command, or None while it is not decided."""
    answer: CommandAnswer | None = found(
        CommandAnswer, connection, _JOINED, {"project": project, "command_id": command_id}
    )
    return answer


def touched(page: Sequence[StoredEvent]) -> dict[str, None]:
    """The ids of commands and aggregates whose answer may be another one after these events, in their order."""
    ids = dict.fromkeys(str(stored.aggregate_id) for stored in page)
    ids.update(dict.fromkeys(str(stored.event.command_id) for stored in page if stored.topic.startswith("command.")))
    return ids


def apply(rows: Rows, stored: StoredEvent) -> None:
    """Take one event."""
    event = stored.event
    accepted = isinstance(event, CommandAccepted)
    rows.insert(
        "commands",
        {
            "project": event.project,
            "command_id": str(event.command_id),
            "command": event.command,
            "kind": event.aggregate_kind,
            "aggregate_id": str(event.aggregate_id),
            "accepted": accepted,
            "version": event.version if accepted else None,
            "code": None if accepted else event.code,
            "reason": None if accepted else event.reason,
            "actor": event.actor,
            "decided_at": stamp(event.timestamp),
        },
    )


MODEL = Model(
    name="commands",
    tables=TABLES,
    keys={"commands": ("project", "command_id")},
    indexes=INDEXES,
    kinds=frozenset({"command"}),
    apply=apply,
)
