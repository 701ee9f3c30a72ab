"""Snapshots: what an aggregate with a long history knew at one version, typed, so that loading it need not fold all.

A snapshot only saves work: it can be dropped at any time, and one whose class is not known any more is not used. The
history stays the truth.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

import msgspec
from eventsourcing.utils import register_topic

from aggregates.base import Failure, Intervention, LastLook, Operation, Parked
from aggregates.catalogue import Flavor
from aggregates.effects import Access, Database, User
from aggregates.instance import Instance
from aggregates.quota import NOTHING, Held, OwnLimits, Quota
from aggregates.resources import Drift, Resource

EVERY = 100  # versions between two snapshots of an aggregate


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What all aggregates know. Further fields are the attributes of the aggregate's class, by name."""

    TOPIC: ClassVar[str]
    of: ClassVar[type[Any]]

    originator_id: UUID
    originator_version: int
    timestamp: datetime
    created_on: datetime
    project: str
    partition: int

    @classmethod
    def take(cls, aggregate: Any) -> Snapshot:
        """The snapshot of the aggregate as it is."""
        known = {name: getattr(aggregate, name) for name in cls.__struct_fields__ if name not in _ENVELOPE}
        return cls(
            originator_id=aggregate.id,
            originator_version=aggregate.version,
            timestamp=aggregate.modified_on,
            created_on=aggregate.created_on,
            **known,
        )

    def restore(self) -> Any:
        """The aggregate as it was."""
        aggregate = object.__new__(self.of)
        known = {name: getattr(self, name) for name in self.__struct_fields__ if name not in _ENVELOPE}
        aggregate.__dict__.update(
            _id=self.originator_id,
            _version=self.originator_version,
            _created_on=self.created_on,
            _modified_on=self.timestamp,
            _pending_events=[],
            **known,
        )
        return aggregate


_ENVELOPE = {"originator_id", "originator_version", "timestamp", "created_on"}


class InstanceSnapshot(Snapshot, frozen=True, kw_only=True):
    """An instance at one version."""

    TOPIC: ClassVar[str] = "instance.Snapshot.5"
    of: ClassVar[type[Any]] = Instance

    state: str
    entered: int
    operation: Operation | None
    attempts: int
    retry_at: datetime | None
    parked: Parked | None
    last_look: LastLook | None
    last_error: str | None
    intervention: Intervention | None
    unanswered_until: datetime | None
    overtaken: bool
    server_gone: bool
    floating_address_gone: bool
    port_gone: bool
    management_port_gone: bool
    snapshot_gone: bool
    volume_gone: bool
    security_group_gone: bool
    server_group_gone: bool
    failure: Failure | None
    name: str
    flavor: Flavor
    new_flavor: Flavor | None
    datastore: str
    datastore_version: str
    volume_size: int
    new_volume_size: int | None
    volume_type: str | None
    databases: tuple[Database, ...]
    users: tuple[User, ...]
    root_password_ref: str | None
    overrides: dict[str, str]
    availability_zone: str | None
    keep_on_failure: bool
    image_id: str | None
    new_image_id: str | None
    nics: tuple[str, ...]
    management_network: str | None
    locality: str | None
    access: Access | None
    new_access: Access | None
    old_access: Access | None
    datastore_port: int | None
    region: str | None
    server_group_id: str | None
    security_group_id: str | None
    management_port_id: str | None
    floating_address_id: str | None
    public_address: str | None
    offline: bool
    snapshot: bool
    snapshot_due: bool
    snapshot_id: str | None
    port_id: str | None
    address: str | None
    port: int | None
    volume_id: str | None
    server_id: str | None
    host: str | None
    target_host: str | None
    new_host: str | None
    hard: bool
    removed: tuple[str, ...]
    left_behind: tuple[str, ...]
    skipped: tuple[str, ...]
    surplus: tuple[Resource, ...]
    drift: tuple[Drift, ...]


class QuotaSnapshot(Snapshot, frozen=True, kw_only=True):
    """A project's quota at one version."""

    TOPIC: ClassVar[str] = "quota.Snapshot.2"
    of: ClassVar[type[Any]] = Quota

    held: dict[UUID, Held]
    as_of: dict[UUID, int]
    backups: set[UUID]
    released: dict[UUID, datetime]
    limits: OwnLimits

    def restore(self) -> Any:
        """The quota as it was, with the sum that follows from what is held."""
        quota = super().restore()
        quota.total = NOTHING
        for held in quota.held.values():
            quota.total = quota.total.changed(NOTHING, held)
        return quota


CLASSES: dict[type[Any], type[Snapshot]] = {Instance: InstanceSnapshot, Quota: QuotaSnapshot}

for _class in CLASSES.values():
    register_topic(_class.TOPIC, _class)


def due(before: int, after: int) -> bool:
    """Whether a snapshot is due when an aggregate goes from one version to another."""
    return before // EVERY < after // EVERY
