"""An instance's health as its heartbeats show it: an aggregate of its own, so that it never disturbs the lifecycle.

UNKNOWN until the first beat, HEALTHY while beats say so, SUSPECT after a short silence or a beat that is not healthy,
DOWN after a long one. Only changes become events. It says what was heard, not why.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar
from uuid import NAMESPACE_URL, UUID, uuid5

from eventsourcing.domain import Aggregate as LibraryAggregate

from aggregates import base


class HealthStatus(StrEnum):
    """The words of health."""

    UNKNOWN = "UNKNOWN"
    HEALTHY = "HEALTHY"
    SUSPECT = "SUSPECT"
    DOWN = "DOWN"


def health_id(instance_id: UUID) -> UUID:
    """The id of the health of an instance."""
    return uuid5(NAMESPACE_URL, f"holdfast:health:{instance_id}")


class HealthEvent(base.Event):
    """Base of health's events."""

    kind: ClassVar[str] = "health"


class HealthWatched(HealthEvent, base.Created):
    """Beats of the instance are listened for."""

    instance_id: UUID


class HealthChanged(HealthEvent):
    """The health is another one now. `reason` says what was heard, or for how long nothing was."""

    health: HealthStatus
    previous: HealthStatus
    reason: str

    def apply(self, aggregate: Any) -> None:
        """Assign."""
        aggregate.health = self.health


class HealthForgotten(HealthEvent):
    """The instance is deleted; nothing is listened for any more."""

    def apply(self, aggregate: Any) -> None:
        """Assign."""
        aggregate.watched = False


class Health(LibraryAggregate):
    """The health of one instance."""

    TOPIC = "health"
    kind: ClassVar[str] = "health"

    class Event(LibraryAggregate.Event):
        """Required by the library beside an explicit topic; never recorded."""

        TOPIC = "health.Event"

    class Created(Event, LibraryAggregate.Created):
        """Required by the library beside an explicit topic; never recorded."""

        TOPIC = "health.Created"

    def __init__(self, project: str, partition: int, instance_id: UUID) -> None:
        self.project = project
        self.partition = partition
        self.instance_id = instance_id
        self.health = HealthStatus.UNKNOWN
        self.watched = True

    @classmethod
    def watch(cls, instance_id: UUID, *, project: str, partition: int, at: datetime) -> Health:
        """Begin to listen for an instance."""
        return cls._create(
            HealthWatched,
            id=health_id(instance_id),
            timestamp=at,
            project=project,
            partition=partition,
            instance_id=instance_id,
        )

    def observe(self, health: HealthStatus, reason: str, *, at: datetime) -> None:
        """Record a change; the same health again is no event."""
        if self.watched and health != self.health:
            self.trigger_event(HealthChanged, timestamp=at, health=health, previous=self.health, reason=reason)

    def forget(self, *, at: datetime) -> None:
        """Stop listening; forgetting twice is no second event."""
        if self.watched:
            self.trigger_event(HealthForgotten, timestamp=at)
