"""Commands as a publisher sends them, and three ways to send them: all at once, pipelined, one at a time.

The bodies are made before the clock runs. A command here is a quota's: decided without effects, so that what is
measured is the way of a command and nothing else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import count
from typing import Any
from uuid import UUID, uuid4

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg

from engine.messages import MSG_ID, REPLY_TO, CommandEnvelope, CommandSubject, message_id
from tests.benchmarks.bed import Publisher, twin_of

PROJECT = "bench"
IN_FLIGHT = 256
_QUOTAS = 64
_HOLDERS = 8

_ram = count(1)


class Sent(msgspec.Struct, frozen=True):
    """A command ready to be published."""

    subject: str
    body: bytes
    message_id: str


def command(kind: str, aggregate_id: UUID, name: str, args: dict[str, Any], project: str = PROJECT) -> Sent:
    """One command under an id of its own."""
    command_id = uuid4()
    body = msgspec.json.encode(
        CommandEnvelope(command_id=command_id, args=args, actor="bench", issued_at=datetime.now(UTC))
    )
    subject = str(CommandSubject(project, kind, str(aggregate_id), name))
    return Sent(subject, body, message_id(project, command_id, body))


def accepted(number: int) -> list[Sent]:
    """Commands that are accepted: each changes a reservation, so it leaves a record and an event."""
    quotas = [uuid4() for _ in range(_QUOTAS)]
    holders = [uuid4() for _ in range(_HOLDERS)]
    return [
        command(
            "quota",
            quotas[ordinal % _QUOTAS],
            "reserve_quota",
            {"instance_id": str(holders[ordinal // _QUOTAS % _HOLDERS]), "ram": next(_ram), "volumes": 1},
        )
        for ordinal in range(number)
    ]


def refused(number: int) -> list[Sent]:
    """Commands that are refused: to instances that do not exist. Each leaves a record."""
    return [command("instance", uuid4(), "restart", {}) for _ in range(number)]


def creates(number: int, projects: int = 32) -> list[Sent]:
    """Commands that each make an instance, spread over projects, whose quotas they share."""
    args = {"name": "orders", "flavor": "small", "datastore": "postgresql", "volume_size": 1}
    return [command("instance", uuid4(), "create_instance", args, f"bench-{n % projects}") for n in range(number)]


async def publish_all(client: Client, commands: Sequence[Sent]) -> None:
    """Publish as fast as the broker takes them; returns when all are acknowledged."""
    stream = client.jetstream(publish_async_max_pending=1000)
    for start in range(0, len(commands), 500):
        acks = [
            await stream.publish_async(each.subject, each.body, headers={MSG_ID: each.message_id})
            for each in commands[start : start + 500]
        ]
        await asyncio.gather(*acks)


async def acknowledged(client: Client, commands: Sequence[Sent], in_flight: int = IN_FLIGHT) -> float:
    """Publish into the twin with so many in flight; commands per second, from publish to acknowledgement."""
    stream = client.jetstream()

    async def send(each: Sent) -> None:
        headers = {MSG_ID: each.message_id, REPLY_TO: "nobody"}
        await stream.publish(twin_of(each.subject), each.body, headers=headers, timeout=60)

    return await _pipelined(commands, in_flight, send)


async def decided(publisher: Publisher, commands: Sequence[Sent], in_flight: int = IN_FLIGHT) -> float:
    """Publish with so many in flight; commands per second, from publish to the decision received."""
    async with Decisions(publisher) as decisions:
        return await _pipelined(commands, in_flight, decisions.send)


async def decided_as_they_come(publisher: Publisher, commands: Sequence[Sent], in_flight: int = IN_FLIGHT) -> float:
    """So many publishes in flight, of which none waits for a decision; commands per second until the last decision."""
    async with Decisions(publisher) as decisions:
        waiting: list[asyncio.Future[bytes]] = []

        async def publish(each: Sent) -> None:
            waiting.append(await decisions.publish(each))

        began = time.monotonic()
        await _pipelined(commands, in_flight, publish)
        async with asyncio.timeout(120):
            await asyncio.gather(*waiting)
        return len(commands) / (time.monotonic() - began)


async def _pipelined(commands: Sequence[Sent], in_flight: int, send: Any) -> float:
    left = iter(commands)

    async def lane() -> None:
        for each in left:
            await send(each)

    began = time.monotonic()
    await asyncio.gather(*(lane() for _ in range(in_flight)))
    return len(commands) / (time.monotonic() - began)


class Decisions:
    """Publishes commands and hands each its decision, over one subscription."""

    def __init__(self, publisher: Publisher) -> None:
        self._stream = publisher.sends.jetstream()
        self._hears = publisher.hears
        self._inbox = publisher.hears.new_inbox()
        self._waiting: dict[str, asyncio.Future[bytes]] = {}
        self._ordinal = count()
        self._subscription: Any = None

    async def __aenter__(self) -> Decisions:
        self._subscription = await self._hears.subscribe(f"{self._inbox}.*", cb=self._on_decision)
        await self._hears.flush()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._subscription.unsubscribe()

    async def _on_decision(self, message: Msg) -> None:
        waiting = self._waiting.pop(message.subject.rpartition(".")[2], None)
        if waiting is not None and not waiting.done():
            waiting.set_result(message.data)

    async def publish(self, each: Sent) -> asyncio.Future[bytes]:
        """Publish with acknowledgement; the decision to come."""
        token = str(next(self._ordinal))
        waiting = self._waiting[token] = asyncio.get_running_loop().create_future()
        headers = {MSG_ID: each.message_id, REPLY_TO: f"{self._inbox}.{token}"}
        await self._stream.publish(each.subject, each.body, headers=headers, timeout=60)
        return waiting

    async def send(self, each: Sent) -> bytes:
        """Publish with acknowledgement, then wait for the decision."""
        return await asyncio.wait_for(await self.publish(each), 60)
