"""The log as it is read: events in their order, aggregates as they are, and what is listed from both.

From any thread and any process, whoever writes. Nothing here is written; a call that a database does not answer raises
what its driver says, and it is the callers' matter to ask again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit
from uuid import UUID

import msgspec
import structlog
from eventsourcing.persistence import PersistenceError

from aggregates.health import Health, HealthForgotten, HealthWatched
from aggregates.instance_events import InstanceRequested, OrphanDisowned, QuotaReleased, SurplusDeleted, SurplusFound
from aggregates.snapshots import Snapshot
from engine.databases import (
    BoundedPostgresDatastore,
    DurableSQLiteDatastore,
    give_up,
    hindrance,
    refusal,
)
from engine.mapper import MsgspecMapper, UnknownEventError
from engine.recorders import (
    EventRecorder,
    PostgresEventRecorder,
    SQLiteEventRecorder,
    create_tables,
    snapshot_recorder,
)

R = TypeVar("R")

log = structlog.get_logger(__name__)

LOOK_AGAIN = 2.0  # seconds until a database that is away is looked for again


class Stored(msgspec.Struct, frozen=True):
    """An event as it stands in the log. `position` grows along the log; gaps are normal."""

    position: int
    aggregate_id: UUID
    version: int
    topic: str
    event: Any


class EventLog:
    """Reading the log: synchronous, from any thread, also from other processes than the writer's."""

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

    def with_surplus(self) -> set[UUID]:
        """The instances of which more was found to be surplus than is gone."""
        topics = [SurplusFound.TOPIC, OrphanDisowned.TOPIC, SurplusDeleted.TOPIC]
        left: Counter[UUID] = Counter()
        after = 0
        while page := self.recorder.select_notifications(after, 1000, topics=topics, inclusive_of_start=False):
            for notification in page:
                left[_uuid(notification.originator_id)] += -1 if notification.topic == SurplusDeleted.TOPIC else 1
            after = page[-1].id
        return {instance_id for instance_id, count in left.items() if count}

    def living(self) -> set[UUID]:
        """The instances that are not deleted."""
        topics = [InstanceRequested.TOPIC, QuotaReleased.TOPIC]
        found: set[UUID] = set()
        after = 0
        while page := self.recorder.select_notifications(after, 1000, topics=topics, inclusive_of_start=False):
            for notification in page:
                if notification.topic == InstanceRequested.TOPIC:
                    found.add(_uuid(notification.originator_id))
                elif self.mapper.to_domain_event(notification).state == "DELETED":
                    found.discard(_uuid(notification.originator_id))
            after = page[-1].id
        return found

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


def fold(events: Sequence[Any], aggregate: Any = None) -> Any:
    """The aggregate that the events lead to: the library's projector without its check of each event's protocol."""
    for event in events:
        aggregate = event.mutate(aggregate)
    return aggregate


def open_log(url: str) -> EventLog:
    """The log for a process that only reads it. The store must exist."""
    return EventLog(open_recorder(url, create=False), MsgspecMapper())


async def when_available(url: str, opening: Callable[[], R]) -> R:
    """What `opening` the store at the URL gives, once its database is there. Raises `StoreRefusedError`."""
    told = False
    while True:
        why = await asyncio.to_thread(hindrance, url)
        if why is None:
            try:
                return await asyncio.to_thread(opening)
            except PersistenceError as error:
                if (refused := refusal(error)) is not None:
                    raise refused from None
                why = str(error)
        if not told:
            log.warning("store_unavailable", error=why, next="it is waited for: start it, or correct --store")
        told = True
        await asyncio.sleep(LOOK_AGAIN)


def open_recorder(url: str, *, create: bool) -> EventRecorder:
    """The tables of the store at the URL. `create`: those that are missing are made."""
    parts = urlsplit(url)
    recorder: EventRecorder
    if parts.scheme == "sqlite":
        recorder = SQLiteEventRecorder(DurableSQLiteDatastore(f"file:{unquote(parts.path)}"))
    elif parts.scheme in {"postgresql", "postgres"}:
        recorder = PostgresEventRecorder(_postgres(url))
    else:
        raise ValueError(f"an event store's URL begins with sqlite: or postgresql:, not {parts.scheme!r}")
    if create:
        create_tables(recorder)
    return recorder


def _postgres(url: str) -> BoundedPostgresDatastore:
    parts = urlsplit(url)
    options = dict(pair.partition("=")[::2] for pair in parts.query.split("&") if pair)
    return BoundedPostgresDatastore(
        dbname=unquote(parts.path.lstrip("/")),
        host=parts.hostname or "127.0.0.1",
        port=parts.port or 5432,
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        schema=options.get("schema", ""),
    )


def _uuid(value: UUID | str) -> UUID:
    return value if isinstance(value, UUID) else UUID(value)
