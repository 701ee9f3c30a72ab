"""A project's quota: what is held for which instance, and that the sum never passes the limits.

Limits come with each decision (the catalogue's), so that a changed limit holds from the next reservation on; what is
held already is never taken back. Reserving or releasing twice is the same as once.
"""

from __future__ import annotations

from typing import Any, ClassVar
from uuid import UUID

import msgspec
from eventsourcing.domain import Aggregate as LibraryAggregate

from aggregates import base
from aggregates.base import Context, Refusal
from aggregates.catalogue import Quota as Limits
from aggregates.commands import Command, ReleaseQuota, ReserveQuota


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """What one instance holds: memory in MiB, volumes in GiB."""

    ram: int
    volumes: int

    def changed(self, before: Held, after: Held) -> Held:
        """The sum in which one part was this and is that."""
        return Held(ram=self.ram - before.ram + after.ram, volumes=self.volumes - before.volumes + after.volumes)


NOTHING = Held(ram=0, volumes=0)


class QuotaEvent(base.Event):
    """Base of a quota's events."""

    kind: ClassVar[str] = "quota"


class QuotaOpened(QuotaEvent, base.Created):
    """The project asked for its first resources."""


class ReservationChanged(QuotaEvent):
    """The instance holds this much now."""

    instance_id: UUID
    held: Held

    def apply(self, aggregate: Any) -> None:
        """Replace what it held."""
        aggregate.total = aggregate.total.changed(aggregate.held.get(self.instance_id, NOTHING), self.held)
        aggregate.held[self.instance_id] = self.held


class ReservationReleased(QuotaEvent):
    """The instance holds nothing any more."""

    instance_id: UUID

    def apply(self, aggregate: Any) -> None:
        """Forget it."""
        aggregate.total = aggregate.total.changed(aggregate.held.pop(self.instance_id), NOTHING)


class Quota(LibraryAggregate):
    """What the instances of one project hold. `total` is kept: a project with many need not be summed up each time."""

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
        self.total = NOTHING

    @classmethod
    def create(cls, quota_id: UUID, command: Command, context: Context) -> Quota:
        """Open the project's quota with its first command. Raises `Refusal`."""
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
                wanted = Held(ram=command.ram, volumes=command.volumes)
                if self.held.get(command.instance_id) == wanted:
                    return
                self._check(command.instance_id, wanted, context.catalogue.quota)
                self.trigger_event(
                    ReservationChanged, timestamp=context.at, instance_id=command.instance_id, held=wanted
                )
            case ReleaseQuota():
                if command.instance_id in self.held:
                    self.trigger_event(ReservationReleased, timestamp=context.at, instance_id=command.instance_id)
            case _:
                raise Refusal("unknown_command", f"a quota does not know {command.wire_name()}")

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
                raise Refusal(
                    "quota_exceeded", f"the project would hold {held} {what}, and its quota is {limit}; delete some"
                )
