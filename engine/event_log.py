"""Reading the event log: pages of it, one aggregate's events, and the aggregate that they lead to.

Synchronous, from any thread, also from other processes than the writer's. A snapshot only saves work: one that cannot
be read is passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

import msgspec
import structlog

from aggregates.health import Health, HealthForgotten, HealthWatched
from aggregates.snapshots import Snapshot
from engine.databases import give_up
from engine.mapper import MsgspecMapper, UnknownEventError
from engine.recorders import EventRecorder, snapshot_recorder

log = structlog.get_logger(__name__)


class Stored(msgspec.Struct, frozen=True):
    """An event as it stands in the log. `position` grows along the log; gaps are normal."""

    position: int
    aggregate_id: UUID
    version: int
    topic: str
    event: Any


class EventLog:
    """The log behind one recorder. `read` is for who must know each event, `read_any` for who passes some over."""

    def __init__(self, recorder: EventRecorder, mapper: MsgspecMapper) -> None:
        self.recorder = recorder
        self.snapshots = snapshot_recorder(recorder)
        self.mapper = mapper

    def read(self, after: int, limit: int) -> list[Stored]:
        """Up to `limit` events after the position. Raises `UnknownEventError`."""
        return self._read(after, limit, self.mapper.to_domain_event)

    def read_any(self, after: int, limit: int) -> list[Stored]:
        """The same, with a `Stranger` for each event that this version does not know."""
        return self._read(after, limit, self.mapper.to_event_or_stranger)

    def _read(self, after: int, limit: int, decode: Callable[[Any], Any]) -> list[Stored]:
        notifications = self.recorder.select_notifications(after, limit, inclusive_of_start=False)
        return [Stored(n.id, _uuid(n.originator_id), n.originator_version, n.topic, decode(n)) for n in notifications]

    def project_of(self, aggregate_id: UUID) -> str:
        """The project that the aggregate's first event names, whatever version wrote it."""
        (first,) = self.recorder.select_events(aggregate_id, limit=1)
        return str(self.mapper.to_event_or_stranger(first).project)

    def end(self) -> int:
        """The position of the last event; 0 when there is none."""
        return self.recorder.max_notification_id() or 0

    def events_of(self, aggregate_id: UUID, after: int = 0) -> list[Any]:
        """The aggregate's events after a version, in order."""
        return [self.mapper.to_domain_event(s) for s in self.recorder.select_events(aggregate_id, gt=after)]

    def load(self, aggregate_id: UUID) -> Any:
        """The aggregate as it is, from its last snapshot on; None when there is none."""
        snapshot = self._last_snapshot(aggregate_id)
        if snapshot is None:
            return fold(self.events_of(aggregate_id))
        return fold(self.events_of(aggregate_id, snapshot.originator_version), snapshot.restore())

    def _last_snapshot(self, aggregate_id: UUID) -> Snapshot | None:
        for stored in self.snapshots.select_events(aggregate_id, desc=True, limit=1):
            try:
                snapshot: Snapshot = self.mapper.to_domain_event(stored)
            except (UnknownEventError, msgspec.ValidationError):
                return None  # of another version: the history says the same
            return snapshot
        return None

    def watched(self) -> list[Health]:
        """The health of every instance whose beats are listened for."""
        topics = [HealthWatched.TOPIC, HealthForgotten.TOPIC]
        found: dict[UUID, bool] = {}
        after = 0
        while page := self.recorder.select_notifications(after, 1000, topics=topics, inclusive_of_start=False):
            for notification in page:
                found[_uuid(notification.originator_id)] = notification.topic == HealthWatched.TOPIC
            after = page[-1].id
        return [health for health_id, watched in found.items() if watched for health in self._readable(health_id)]

    def _readable(self, aggregate_id: UUID) -> list[Any]:
        """The aggregate, or nothing where a newer version has written to it: that is left to others."""
        try:
            return [fold(self.events_of(aggregate_id))]
        except UnknownEventError as unknown:
            log.warning("left_to_others", aggregate_id=str(aggregate_id), topic=unknown.topic)
            return []

    def give_up(self) -> None:
        """End the calls under way: who is to end does not wait for a database that does not answer."""
        give_up(self.recorder.datastore)

    def close(self) -> None:
        """Close the connections."""
        self.recorder.datastore.close()


def _uuid(value: UUID | str) -> UUID:
    return value if isinstance(value, UUID) else UUID(value)


def fold(events: Sequence[Any], aggregate: Any = None) -> Any:
    """The aggregate that the events lead to: the library's projector without its check of each event's protocol."""
    for event in events:
        aggregate = event.mutate(aggregate)
    return aggregate
