"""Quota: what each instance of a project holds of it, its backups, and the limits that were set for it."""

from __future__ import annotations

import sqlite3
from uuid import UUID

import msgspec

from aggregates.quota import (
    BackupReleased,
    BackupReserved,
    LimitsSet,
    OwnLimits,
    QuotaOpened,
    ReservationChanged,
    ReservationReleased,
)
from projections.answers import Holding, QuotaAnswer
from projections.base import Model, StoredEvent, as_json
from projections.listing import LIMIT
from projections.rows import Rows

TABLES = {
    "quotas": "CREATE TABLE quotas (id TEXT PRIMARY KEY, project TEXT NOT NULL, limits TEXT NOT NULL) WITHOUT ROWID",
    "quota_backups": """CREATE TABLE quota_backups (
        quota_id TEXT NOT NULL, backup_id TEXT NOT NULL, PRIMARY KEY (quota_id, backup_id)) WITHOUT ROWID""",
    "quota_holdings": """CREATE TABLE quota_holdings (
        quota_id TEXT NOT NULL, instance_id TEXT NOT NULL, ram INTEGER NOT NULL, volumes INTEGER NOT NULL,
        PRIMARY KEY (quota_id, instance_id)) WITHOUT ROWID""",
}
INDEXES = ("CREATE INDEX quotas_project ON quotas (project)",)


def get(connection: sqlite3.Connection, project: str) -> QuotaAnswer:
    """What the project holds."""
    source = "FROM quota_holdings AS h JOIN quotas AS q ON q.id = h.quota_id WHERE q.project = ?"
    total = connection.execute(
        f"SELECT count(*) AS instances, coalesce(sum(ram), 0) AS ram, coalesce(sum(volumes), 0) AS volumes {source}",
        (project,),
    ).fetchone()
    rows = connection.execute(
        f"SELECT instance_id, ram, volumes {source} ORDER BY instance_id LIMIT ?",
        (project, LIMIT),
    )
    backups, limits = connection.execute(
        "SELECT count(b.backup_id), max(q.limits) FROM quotas AS q LEFT JOIN quota_backups AS b ON b.quota_id = q.id "
        "WHERE q.project = ?",
        (project,),
    ).fetchone()
    return QuotaAnswer(
        instances=total["instances"],
        ram=total["ram"],
        volumes=total["volumes"],
        backups=backups,
        limits=OwnLimits() if limits is None else msgspec.json.decode(limits, type=OwnLimits),
        held=tuple(Holding(instance_id=UUID(r["instance_id"]), ram=r["ram"], volumes=r["volumes"]) for r in rows),
    )


def apply(rows: Rows, stored: StoredEvent) -> None:
    """Take one event."""
    quota_id = str(stored.aggregate_id)
    match stored.event:
        case QuotaOpened(project=project):
            rows.insert("quotas", {"id": quota_id, "project": project, "limits": as_json(OwnLimits())})
        case LimitsSet(limits=limits):
            rows.update("quotas", (quota_id,), {"limits": as_json(limits)})
        case BackupReserved(backup_id=backup_id):
            rows.insert("quota_backups", {"quota_id": quota_id, "backup_id": str(backup_id)})
        case BackupReleased(backup_id=backup_id):
            rows.delete("quota_backups", (quota_id, str(backup_id)))
        case ReservationChanged(instance_id=instance_id, held=held):
            holder = str(instance_id)
            rows.delete("quota_holdings", (quota_id, holder))
            rows.insert(
                "quota_holdings",
                {"quota_id": quota_id, "instance_id": holder, "ram": held.ram, "volumes": held.volumes},
            )
        case ReservationReleased(instance_id=instance_id):
            rows.delete("quota_holdings", (quota_id, str(instance_id)))


MODEL = Model(
    name="quota",
    tables=TABLES,
    keys={"quotas": ("id",), "quota_backups": ("quota_id", "backup_id"), "quota_holdings": ("quota_id", "instance_id")},
    indexes=INDEXES,
    kinds=frozenset({"quota"}),
    apply=apply,
)
