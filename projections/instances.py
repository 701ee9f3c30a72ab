"""Instances as they are now: state, words for it, what they hold in the cloud, and what led to it.

Follows from the log alone. Health is what the health aggregate recorded; the last beat itself is in `heartbeats`.
"""

from __future__ import annotations

import sqlite3
from typing import Any

import msgspec

from aggregates.base import Intervention, LateOutcome, OperationParked, RetryRequested, StepSkipped, Transitioned
from aggregates.catalogue import Flavor
from aggregates.effects import Access
from aggregates.health import HealthChanged, HealthStatus, HealthWatched
from aggregates.instance_events import (
    NOTHING,
    DriftFound,
    DriftGone,
    InstanceRequested,
    Observed,
    OrphanAdopted,
    PortDeleted,
    ServerDeleted,
    SnapshotDeleted,
    VolumeDeleted,
)
from aggregates.resources import Resource, ResourceKind
from projections.answers import DriftAnswer, Error, InstanceAnswer
from projections.base import Model, StoredEvent, as_json, stamp
from projections.listing import Listing, found
from projections.rows import Rows
from projections.words import operating_status, owes, status, trove_status

KIND = "instance"
TABLES = {
    "instances": """CREATE TABLE instances (
        id TEXT PRIMARY KEY, project TEXT NOT NULL, name TEXT NOT NULL, state TEXT NOT NULL, status TEXT NOT NULL,
        trove_status TEXT NOT NULL, operating_status TEXT NOT NULL, health TEXT NOT NULL,
        flavor_id TEXT NOT NULL, flavor TEXT NOT NULL, vcpus INTEGER NOT NULL, ram INTEGER NOT NULL,
        datastore TEXT NOT NULL, datastore_version TEXT NOT NULL, address TEXT, port INTEGER,
        volume_size INTEGER NOT NULL, volume_type TEXT, region TEXT, availability_zone TEXT, image_id TEXT,
        locality TEXT,
        public_address TEXT, access TEXT, host TEXT, server_id TEXT,
        volume_id TEXT, snapshot_id TEXT, port_id TEXT, operation_id TEXT, operation TEXT,
        parked INTEGER NOT NULL DEFAULT 0, failure TEXT, drift TEXT NOT NULL,
        created_at TEXT NOT NULL, updated_at TEXT NOT NULL,
        deleted INTEGER NOT NULL DEFAULT 0, deleted_at TEXT, version INTEGER NOT NULL,
        lifecycle_version INTEGER NOT NULL, last_event TEXT NOT NULL, last_command TEXT NOT NULL,
        last_actor TEXT NOT NULL)""",
    "instance_healths": """CREATE TABLE instance_healths (
        health_id TEXT PRIMARY KEY, instance_id TEXT NOT NULL, health TEXT NOT NULL) WITHOUT ROWID""",
}
INDEXES = (
    "CREATE INDEX instances_created ON instances (project, deleted, created_at, id)",
    "CREATE INDEX instances_name ON instances (project, deleted, name, id)",
    "CREATE INDEX instances_updated ON instances (project, deleted, updated_at, id)",
    "CREATE INDEX instances_status ON instances (project, deleted, status, created_at, id)",
    "CREATE INDEX instances_host ON instances (project, deleted, host, created_at, id)",
    "CREATE INDEX instances_health ON instance_healths (instance_id)",
)
_FILTERS = (
    "id", "name", "state", "status", "trove_status", "operating_status", "health", "flavor_id", "flavor", "datastore",
    "datastore_version", "region", "host", "address", "server_id", "volume_id", "port_id", "operation", "operation_id",
    "parked", "deleted",
)  # fmt: skip
LISTING = Listing(
    table="instances",
    answer=InstanceAnswer,
    key="id",
    filters={name: name for name in _FILTERS},
    sorts={name: name for name in ("created_at", "updated_at", "name")},
    sort="-created_at",
    default={"deleted": 0},
)
# Facts of events that are columns under the same name.
_FACTS = (
    "address",
    "public_address",
    "port",
    "port_id",
    "volume_id",
    "snapshot_id",
    "server_id",
    "host",
    "volume_size",
    "image_id",
)
# What is gone is no longer shown as held.
_GONE: dict[type[Any], dict[str, None]] = {
    ServerDeleted: {"server_id": None, "host": None},
    PortDeleted: {"port_id": None, "address": None},
    VolumeDeleted: {"volume_id": None},
    SnapshotDeleted: {"snapshot_id": None},
}


def get(connection: sqlite3.Connection, project: str, instance_id: str) -> InstanceAnswer | None:
    """The instance, also when it is deleted; or None."""
    answer: InstanceAnswer | None = found(
        InstanceAnswer, connection, "instances", {"project": project, "id": instance_id}
    )
    return answer


def apply(rows: Rows, stored: StoredEvent) -> None:
    """Take one event."""
    event = stored.event
    match event:
        case InstanceRequested():
            _insert(rows, stored)
        case HealthWatched():
            _watched(rows, stored)
        case HealthChanged():
            _health(rows, stored)
        case Transitioned():
            _transition(rows, stored)
        case LateOutcome():
            _update(rows, stored, {name: event.facts[name] for name in _FACTS if name in event.facts})
        case OperationParked():
            _update(rows, stored, {"parked": 1})
        case RetryRequested():
            _update(rows, stored, {"parked": 0})
        case Observed():
            _observed(rows, stored)
        case StepSkipped():
            _update(rows, stored, _because(event.intervention))
        case _:
            _update(rows, stored, {})


def _insert(rows: Rows, stored: StoredEvent) -> None:
    event = stored.event
    state = event.operation.plan[0]
    word = status(KIND, state)
    rows.insert(
        "instances",
        {
            "id": str(stored.aggregate_id),
            "project": event.project,
            "name": event.name,
            "state": state,
            "status": word,
            "trove_status": trove_status(word),
            "operating_status": "",
            "health": HealthStatus.UNKNOWN,
            **_flavor(event.flavor),
            "datastore": event.datastore,
            "datastore_version": event.datastore_version,
            "volume_size": event.volume_size,
            "volume_type": event.volume_type,
            "region": event.region,
            "availability_zone": event.availability_zone,
            "image_id": event.image_id,
            "locality": event.locality,
            "access": _access(event.access),
            "drift": "[]",
            "operation_id": str(event.operation.id),
            "operation": event.operation.command,
            "created_at": stamp(event.timestamp),
            "updated_at": stamp(event.timestamp),
            "version": stored.version,
            "lifecycle_version": stored.version,
            "last_event": type(event).__name__,
            "last_command": event.operation.command,
            "last_actor": event.operation.actor,
        },
    )


def _transition(rows: Rows, stored: StoredEvent) -> None:
    event = stored.event
    word = status(KIND, event.state)
    change: dict[str, Any] = {
        "state": event.state,
        "status": word,
        "trove_status": trove_status(word),
        "operating_status": "",
        "parked": 0,
        "lifecycle_version": stored.version,
        "last_event": type(event).__name__,
        **{name: getattr(event, name) for name in _FACTS if hasattr(event, name)},
        **_GONE.get(type(event), {}),
    }
    if word == "ACTIVE":
        row = rows.get("instances", (str(stored.aggregate_id),))
        change["operating_status"] = operating_status(word, row["health"])
    if hasattr(event, "access"):
        change["access"] = _access(event.access)
    if hasattr(event, "flavor"):
        change.update(_flavor(event.flavor))
    if hasattr(event, "failure"):
        change["failure"] = _failure(event.failure)
    if (operation := getattr(event, "operation", None)) is not None:
        change.update(
            operation_id=str(operation.id),
            operation=operation.command,
            last_command=operation.command,
            last_actor=operation.actor,
        )
    elif not owes(KIND, event.state):
        change.update(operation_id=None, operation=None)
    if (intervention := getattr(event, "intervention", None)) is not None:
        change.update(_because(intervention))
    if word in NOTHING:
        change.update(drift="[]")
    if word == "DELETED":
        change.update(deleted=1, deleted_at=stamp(event.timestamp))
    _update(rows, stored, change)


def _observed(rows: Rows, stored: StoredEvent) -> None:
    """What was seen in the cloud leads to no state, so when it was updated last is not touched."""
    key, event = (str(stored.aggregate_id),), stored.event
    change: dict[str, Any] = {"version": stored.version}
    if isinstance(event, (DriftFound, DriftGone)):
        known = msgspec.json.decode(rows.get("instances", key)["drift"], type=list[DriftAnswer])
        drift = [each for each in known if (each.resource, each.what) != event.drift.about]
        if isinstance(event, DriftFound):
            told = msgspec.structs.asdict(event.drift)
            drift.append(DriftAnswer(**told, says=str(event.drift), since=event.timestamp))
        change["drift"] = as_json(drift)
    if isinstance(event, OrphanAdopted):
        change.update(_adopted(rows.get("instances", key)["drift"], event.found))
    rows.update("instances", key, change)


def _adopted(drift: str, found: Resource) -> dict[str, Any]:
    known = [each for each in msgspec.json.decode(drift, type=list[DriftAnswer]) if each.resource != found.kind]
    change: dict[str, Any] = {"drift": as_json(known)}
    if f"{found.kind}_id" in _FACTS:
        change[f"{found.kind}_id"] = found.id
    if found.kind is ResourceKind.SERVER and found.host is not None:
        change["host"] = found.host
    return change


def _because(intervention: Intervention) -> dict[str, Any]:
    return {"last_command": intervention.command, "last_actor": intervention.actor}


def _update(rows: Rows, stored: StoredEvent, change: dict[str, Any]) -> None:
    change = {**change, "version": stored.version, "updated_at": stamp(stored.event.timestamp)}
    rows.update("instances", (str(stored.aggregate_id),), change)


def _watched(rows: Rows, stored: StoredEvent) -> None:
    rows.insert(
        "instance_healths",
        {
            "health_id": str(stored.aggregate_id),
            "instance_id": str(stored.event.instance_id),
            "health": HealthStatus.UNKNOWN,
        },
    )


def _health(rows: Rows, stored: StoredEvent) -> None:
    health, key = str(stored.event.health), (str(stored.aggregate_id),)
    instance = (rows.get("instance_healths", key)["instance_id"],)
    word = operating_status(rows.get("instances", instance)["status"], health)
    rows.update("instance_healths", key, {"health": health})
    rows.update("instances", instance, {"health": health, "operating_status": word})


def _flavor(flavor: Flavor) -> dict[str, Any]:
    return {"flavor_id": flavor.id, "flavor": flavor.name, "vcpus": flavor.vcpus, "ram": flavor.ram}


def _access(access: Access | None) -> str | None:
    return None if access is None else as_json(access)


def _failure(failure: Any) -> str | None:
    if failure is None:
        return None
    return as_json(Error(code=failure.code, message=failure.message, state=failure.state))


MODEL = Model(
    name="instances",
    tables=TABLES,
    keys={"instances": ("id",), "instance_healths": ("health_id",)},
    indexes=INDEXES,
    kinds=frozenset({KIND, "health"}),
    apply=apply,
)
