"""A project's quota: what is held for which instance and backup, and that the sum never passes the limits.

Limits are the catalogue's, which come with each decision, unless an operator has set the project's own; a changed
limit holds from the next reservation on, and what is held already is never taken back. Reserving or releasing twice is
the same as once, and a command that comes late changes nothing: neither what was reserved since, nor what is over.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, ClassVar
from uuid import UUID

import msgspec
from eventsourcing.domain import Aggregate as LibraryAggregate

from aggregates import base, obligations
from aggregates.base import Context, Refusal
from aggregates.catalogue import Quota as Limits
from aggregates.commands import Command, ReleaseBackup, ReleaseQuota, ReserveBackup, ReserveQuota, SetQuota

# How long it is known who holds nothing any more: commands that are sent again, or late, are long over by then.
REMEMBERED = timedelta(days=1)


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """What one instance holds: memory in MiB, volumes in GiB."""

    ram: int
    volumes: int

    def changed(self, before: Held, after: Held) -> Held:
        """The sum in which one part was this and is that."""
        return Held(ram=self.ram - before.ram + after.ram, volumes=self.volumes - before.volumes + after.volumes)


NOTHING = Held(ram=0, volumes=0)


class OwnLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits that an operator has set for the project; None is the catalogue's."""

    instances: int | None = None
    ram: int | None = None
    volumes: int | None = None
    backups: int | None = None

    def over(self, limits: Limits) -> Limits:
        """The limits that hold."""
        own = {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None}
        return msgspec.structs.replace(limits, **own)


class QuotaEvent(base.Event):
    """Base of a quota's events."""

    kind: ClassVar[str] = "quota"


class QuotaOpened(QuotaEvent, base.Created):
    """The project asked for its first resources, or got limits of its own before."""


class ReservationChanged(QuotaEvent):
    """The instance holds this much now. `as_of`: its version when it asked."""

    instance_id: UUID
    held: Held
    as_of: int = 0  # older versions did not say

    def apply(self, aggregate: Any) -> None:
        """Replace what it held."""
        aggregate.total = aggregate.total.changed(aggregate.held.get(self.instance_id, NOTHING), self.held)
        aggregate.held[self.instance_id] = self.held
        aggregate.as_of[self.instance_id] = self.as_of


class ReservationReleased(QuotaEvent):
    """The instance holds nothing any more."""

    instance_id: UUID

    def apply(self, aggregate: Any) -> None:
        """Forget what it held, and that it is to hold nothing only after a while."""
        aggregate.total = aggregate.total.changed(aggregate.held.pop(self.instance_id, NOTHING), NOTHING)
        aggregate.as_of.pop(self.instance_id, None)
        aggregate.remember(self.instance_id, self.timestamp)


class BackupReserved(QuotaEvent):
    """The backup counts."""

    backup_id: UUID

    def apply(self, aggregate: Any) -> None:
        """Count it."""
        aggregate.backups.add(self.backup_id)


class BackupReleased(QuotaEvent):
    """The backup counts no more."""

    backup_id: UUID

    def apply(self, aggregate: Any) -> None:
        """Forget it."""
        aggregate.backups.discard(self.backup_id)
        aggregate.remember(self.backup_id, self.timestamp)


class LimitsSet(QuotaEvent):
    """An operator has set limits for the project; None is the catalogue's again."""

    limits: OwnLimits
    actor: str

    def apply(self, aggregate: Any) -> None:
        """They hold from now on."""
        aggregate.limits = self.limits


class Quota(LibraryAggregate):
    """What one project holds. `total` is kept: a project with many instances need not be summed up each time."""

    TOPIC = "quota"
    kind: ClassVar[str] = "quota"

    class Event(LibraryAggregate.Event):
        """Required by the library beside an explicit topic; never recorded."""

        TOPIC = "quota.Event"

    class Created(Event, LibraryAggregate.Created):
        """Required by the library beside an explicit topic; never recorded."""

        TOPIC = "quota.Created"

    def __init__(self, project: str, partition: int) -> None:
        self.project = project
        self.partition = partition
        self.held: dict[UUID, Held] = {}
        self.as_of: dict[UUID, int] = {}
        self.backups: set[UUID] = set()
        self.released: dict[UUID, datetime] = {}
        self.limits = OwnLimits()
        self.total = NOTHING

    def remember(self, holder: UUID, at: datetime) -> None:
        """That it holds nothing any more, and forget who has done so long ago."""
        self.released.pop(holder, None)
        self.released[holder] = at
        while self.released[oldest := next(iter(self.released))] < at - REMEMBERED:
            del self.released[oldest]

    @classmethod
    def create(cls, quota_id: UUID, command: Command, context: Context) -> Quota:
        """Open the project's quota with its first command. Raises `Refusal`."""
        if quota_id != obligations.quota_id(context.project):
            raise Refusal("not_found", f"no quota {quota_id} in project {context.project}")
        quota = cls._create(
            QuotaOpened,
            id=quota_id,
            timestamp=context.at,
            project=context.project,
            partition=context.partition,
        )
        quota.execute(command, context)
        return quota

    def execute(self, command: Command, context: Context) -> None:
        """Decide a command. Raises `Refusal`."""
        if context.project != self.project:
            raise Refusal("not_found", f"no quota {self.id} in project {context.project}")
        match command:
            case ReserveQuota():
                self._reserve(command, context)
            case ReleaseQuota():
                if command.instance_id not in self.released:
                    self.trigger_event(ReservationReleased, timestamp=context.at, instance_id=command.instance_id)
            case ReserveBackup():
                self._reserve_backup(command, context)
            case ReleaseBackup():
                if command.backup_id not in self.released:
                    self.trigger_event(BackupReleased, timestamp=context.at, backup_id=command.backup_id)
            case SetQuota():
                self._set(command, context)
            case _:
                raise Refusal("unknown_command", f"a quota does not know {command.wire_name()}")

    def _reserve(self, command: ReserveQuota, context: Context) -> None:
        holder, wanted = command.instance_id, Held(ram=command.ram, volumes=command.volumes)
        self._refuse_over(holder)
        if command.as_of < self.as_of.get(holder, 0):
            raise Refusal("conflict", f"instance {holder} has asked for something else since; this came late")
        if self.held.get(holder) == wanted and self.as_of.get(holder) == command.as_of:
            return
        self._check(holder, wanted, self.limits.over(context.catalogue.quota))
        self.trigger_event(
            ReservationChanged, timestamp=context.at, instance_id=holder, held=wanted, as_of=command.as_of
        )

    def _reserve_backup(self, command: ReserveBackup, context: Context) -> None:
        self._refuse_over(command.backup_id)
        if command.backup_id in self.backups:
            return
        limit = self.limits.over(context.catalogue.quota).backups
        if 0 <= limit < len(self.backups) + 1:
            raise _exceeded("backups", len(self.backups) + 1, limit)
        self.trigger_event(BackupReserved, timestamp=context.at, backup_id=command.backup_id)

    def _set(self, command: SetQuota, context: Context) -> None:
        given = msgspec.structs.asdict(command)
        changes = {name: value for name, value in given.items() if value is not msgspec.UNSET}
        if not changes:
            raise Refusal("invalid_argument", f"set at least one of: {', '.join(given)}")
        wanted = msgspec.structs.replace(self.limits, **changes)
        if wanted != self.limits:
            self.trigger_event(LimitsSet, timestamp=context.at, limits=wanted, actor=context.actor)

    def _refuse_over(self, holder: UUID) -> None:
        """What is gone holds nothing, however late it is asked for."""
        if holder in self.released:
            raise Refusal("conflict", f"{holder} holds nothing any more; this came late")

    def _check(self, instance_id: UUID, wanted: Held, limits: Limits) -> None:
        present = self.held.get(instance_id, NOTHING)
        total = self.total.changed(present, wanted)
        instances = len(self.held) + (instance_id not in self.held)
        for what, limit, grows, held in (
            ("instances", limits.instances, instance_id not in self.held, instances),
            ("ram (MiB)", limits.ram, wanted.ram > present.ram, total.ram),
            ("volumes (GiB)", limits.volumes, wanted.volumes > present.volumes, total.volumes),
        ):
            if grows and 0 <= limit < held:
                raise _exceeded(what, held, limit)


def _exceeded(what: str, held: int, limit: int) -> Refusal:
    return Refusal("quota_exceeded", f"the project would hold {held} {what}, and its quota is {limit}; delete some")
