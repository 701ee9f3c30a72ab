"""The outbox: every event of the log is published to NATS as a CloudEvent, in order for each aggregate.

Of several workers one publishes, whoever owns it.

An event that this version does not know is published as it is stored: it holds up none that follow.

At least once: what was published and not noted is published again after a crash, under the same id, which the broker
drops within its window. It is no source of truth; whoever missed events reads them from the log's read models.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
import nats.errors
import structlog
from eventsourcing.persistence import Tracking
from nats.aio.client import Client
from nats.js.errors import APIError

from aggregates.base import Event
from engine import crash_points
from engine.broker import Message, Publisher
from engine.event_log import Stored
from engine.mapper import Stranger
from engine.messages import CloudEvent, event_subject
from engine.partitions import OUTBOX, Listener, Ownership, Sole, fences_of
from engine.store import Conflict, EventStore

log = structlog.get_logger(__name__)

POSITION = "outbox"
PAGE = 500
WAIT = 0.1  # seconds, while it is being handed over
POLL = 5.0  # seconds; commits wake it at once
PROJECTS_KEPT = 50_000


class Outbox(Listener):
    """Publishes one store's log."""

    def __init__(self, client: Client, store: EventStore, ownership: Ownership | None = None) -> None:
        self._publisher = Publisher(client)
        self._store = store
        self._ownership = ownership or Sole()
        self._owned = asyncio.Event()
        self._wake = asyncio.Event()
        self._projects: OrderedDict[UUID, str] = OrderedDict()
        store.listen(self._on_commit)

    def _on_commit(self, events: Sequence[Event]) -> None:
        if events:
            self.wake()

    def wake(self) -> None:
        """There is more in the log."""
        self._wake.set()

    def gained(self, ranges: Collection[str]) -> None:
        """Begin where the owner before has come to."""
        if OUTBOX in ranges:
            self._owned.set()

    def lost(self, ranges: Collection[str]) -> None:
        """Publish nothing more."""
        if OUTBOX in ranges:
            self._owned.clear()

    async def run(self) -> None:
        """Publish until cancelled, as long as it is owned; a lost broker is waited for."""
        self._ownership.listen(self)
        while True:
            await self._owned.wait()
            await self._follow()

    async def _follow(self) -> None:
        position = await self._store.position(POSITION) or 0
        pause = 0.1
        while self._owned.is_set():
            try:
                position = await self._publish_page(position)
                pause = 0.1
            except (nats.errors.Error, APIError, OSError, TimeoutError) as lost:
                log.warning("outbox_interrupted", error=repr(lost), retry_in=pause)
                await asyncio.sleep(pause)
                pause = min(pause * 2, 5.0)
            except Conflict:
                # Another worker published it too; both used the same message ids.
                position = await self._store.position(POSITION) or 0

    async def _publish_page(self, position: int) -> int:
        held = self._ownership.held
        page = await self._store.read(position, PAGE)
        if not page:
            await self._sleep()
            return position
        if not self._ownership.serves(OUTBOX):
            await asyncio.sleep(WAIT)
            return position
        for stored in page:
            self._remember(stored)
        messages = [await self._message(stored) for stored in page]
        crash_points.reach("outbox_before_publish")
        await self._publisher.publish(messages)
        crash_points.reach("outbox_after_publish")
        await self._store.commit(
            [], positions=[Tracking(POSITION, page[-1].position)], fences=fences_of(held, [OUTBOX])
        )
        crash_points.reach("outbox_after_commit")
        return page[-1].position

    async def _sleep(self) -> None:
        try:
            async with asyncio.timeout(POLL):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()

    def _remember(self, stored: Stored) -> None:
        project = getattr(stored.event, "project", None)
        if project is not None:
            self._projects[stored.aggregate_id] = project
            while len(self._projects) > PROJECTS_KEPT:
                self._projects.popitem(last=False)

    async def _message(self, stored: Stored) -> Message:
        project = self._projects.get(stored.aggregate_id)
        if project is None:
            project = self._projects[stored.aggregate_id] = await self._store.project_of(stored.aggregate_id)
        kind, _, name = stored.topic.partition(".")
        event = cloud_event(stored, project, kind, name)
        return Message(event_subject(project, kind, stored.aggregate_id, name), msgspec.json.encode(event), event.id)


def cloud_event(stored: Stored, project: str, kind: str, name: str) -> CloudEvent:
    """The event as the wire shows it: the library's own fields go to the envelope, the facts stay in `data`."""
    event = stored.event
    data: dict[str, Any] = dict(event.state) if isinstance(event, Stranger) else msgspec.to_builtins(event)
    time: datetime = event.timestamp
    for field in ("originator_id", "originator_version", "originator_topic", "timestamp", "class_version"):
        data.pop(field, None)
    return CloudEvent(
        id=f"{stored.aggregate_id}:{stored.version}",
        source=f"/holdfast/{project}/{kind}",
        type=f"holdfast.v1.{kind}.{name}",
        subject=str(stored.aggregate_id),
        time=time,
        sequence=str(stored.position),
        data=data,
    )
