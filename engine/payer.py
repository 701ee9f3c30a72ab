"""Who pays what: cloud effects go to the cloud, guest effects to the guest agents, commands to the command stream.

A command to another aggregate bears an id that follows from the effect's key, so it is decided once, however often it
is sent; it is paid when its record is in the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import NAMESPACE_URL, UUID, uuid5

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.js.errors import APIError

from aggregates.base import Event
from aggregates.effects import CloudEffect, Effect, GuestEffect, SendCommand
from aggregates.record import CommandAccepted, CommandRejected, record_id
from engine import crash_points
from engine.clock import monotonic
from engine.clouds.port import Cloud, FinalError, TransientError, check_permit, only_waits
from engine.messages import MSG_ID, CommandEnvelope, CommandSubject, message_id
from engine.store import EventStore

ACTOR = "holdfast"
DECIDED_WITHIN = 30.0  # seconds
PUBLISHED_AT_ONCE = 256  # so that the last one's acknowledgement does not count as missing while it waits its turn
LOOK_AGAIN = 1.0  # seconds; a record committed by this process is seen at once


class GuestPort(Protocol):
    """Where guest effects are paid."""

    async def pay(self, effect: GuestEffect, key: str) -> Mapping[str, Any]:
        """Bring it about. Raises `TransientError` or `FinalError`."""
        ...


class Payer:
    """Pays any effect."""

    def __init__(self, client: Client, store: EventStore, cloud: Cloud, guests: GuestPort) -> None:
        self._stream = client.jetstream()
        self._store = store
        self._cloud = cloud
        self._guests = guests
        self._awaited: dict[UUID, asyncio.Event] = {}
        self._publishing = asyncio.Semaphore(PUBLISHED_AT_ONCE)
        store.listen(self._on_commit)

    async def pay(self, effect: Effect, key: str) -> Mapping[str, Any]:
        """Make the effect true; its facts. Raises `TransientError` or `FinalError`."""
        if isinstance(effect, CloudEffect):
            return await self._cloud.pay(effect, key)
        if isinstance(effect, GuestEffect):
            return await self._guests.pay(effect, key)
        if isinstance(effect, SendCommand):
            await self._send(effect, key)
            return {}
        raise FinalError("unsupported", f"nobody pays {effect.type_name}")

    def _on_commit(self, events: Sequence[Event]) -> None:
        self.decided(event.originator_id for event in events)

    def decided(self, records: Iterable[UUID]) -> None:
        """These command records are in the log: whoever waits for one looks at once."""
        for record in records:
            if record in self._awaited:
                self._awaited[record].set()

    async def _send(self, effect: SendCommand, key: str) -> None:
        command_id = uuid5(NAMESPACE_URL, f"holdfast:effect:{key}")
        awaited = record_id(effect.project, command_id)
        self._awaited[awaited] = asyncio.Event()
        try:
            record = await self._store.decision(effect.project, command_id)
            if record is None:
                await self._publish(effect, command_id)
                with only_waits():
                    record = await self._decided(effect.project, command_id, self._awaited[awaited])
        finally:
            del self._awaited[awaited]
        if isinstance(record, CommandRejected):
            raise FinalError(record.code, record.reason)

    async def _publish(self, effect: SendCommand, command_id: UUID) -> None:
        envelope = CommandEnvelope(
            command_id=command_id, args=effect.args, actor=ACTOR, issued_at=datetime.fromtimestamp(0, UTC)
        )
        body = msgspec.json.encode(envelope)
        subject = CommandSubject(effect.project, effect.kind, str(effect.aggregate_id), effect.command)
        headers = {MSG_ID: message_id(effect.project, command_id, body)}
        async with self._publishing:
            check_permit()
            crash_points.reach("call", effect.command)
            try:
                await self._stream.publish(str(subject), body, headers=headers, timeout=10)
            except (nats.errors.Error, APIError, TimeoutError, OSError) as error:
                raise TransientError("broker_unavailable", f"{effect.command} could not be sent: {error!r}") from error
            crash_points.reach("answer", effect.command)

    async def _decided(
        self, project: str, command_id: UUID, committed: asyncio.Event
    ) -> CommandAccepted | CommandRejected:
        deadline = monotonic() + DECIDED_WITHIN
        while monotonic() < deadline:
            try:
                async with asyncio.timeout(LOOK_AGAIN):
                    await committed.wait()
            except TimeoutError:
                pass
            record = await self._store.decision(project, command_id)
            if record is not None:
                return record
        raise TransientError("not_decided", f"command {command_id} was not decided within {DECIDED_WITHIN:.0f} s")
