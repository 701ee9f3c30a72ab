"""A seeded load of commands, and what must hold when it is over: nothing acknowledged is lost, doubled or stuck.

The publisher is an honest one: it sends the same message again until the broker acknowledges it, and counts nothing
else.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.js.errors import APIError

from aggregates.instance import Instance
from aggregates.record import CommandAccepted, CommandRejected, record_id
from engine.broker import BrokerSettings, connect
from engine.event_log import Stored, fold
from engine.messages import MSG_ID, CommandSubject, message_id
from engine.store import EventStore
from projections.base import ReadModels
from projections.models import MODELS
from tests.engine.conftest import Engine
from tests.projections.asking import catch_up
from tests.projections.asking import connect as reading
from tests.support.eventually import eventually
from tests.support.publisher import CREATE

SECONDS = float(os.environ.get("HOLDFAST_FAULT_SECONDS", "2"))  # of one outage, or of a time of random faults
SEEDS = range(int(os.environ.get("HOLDFAST_FAULT_SEEDS", "1")))
OVER_WITHIN = 60.0

COMMANDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("restart", {}),
    ("reboot", {"hard": True}),
    ("resize_volume", {"new_size": 2}),
    ("resize_flavor", {"flavor": "large"}),
    ("stop_instance", {}),
    ("start_instance", {}),
    ("delete_instance", {}),
)


class Sent(msgspec.Struct, frozen=True):
    """A command that the broker acknowledged."""

    command_id: UUID
    instance_id: UUID
    command: str
    subject: str
    body: bytes


class Load:
    """Several lanes, each the life of one instance after the other, as quickly as the pace says."""

    def __init__(self, client: Client, seed: int, *, lanes: int = 6, pace: float = 0.1) -> None:
        self.acknowledged: list[Sent] = []
        self.refused: Counter[str] = Counter()
        self._stream = client.jetstream()
        self._random = Random(seed)
        self._lanes = lanes
        self._pace = pace
        self._stopping = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Publish within."""
        lanes = [asyncio.create_task(self._lane()) for _ in range(self._lanes)]
        try:
            yield
        finally:
            self._stopping.set()
            await asyncio.gather(*lanes)

    async def refuses(self, error: str) -> None:
        """Returns when the broker has refused a command with such an error."""

        async def refused() -> int:
            return self.refused[error]

        await eventually(refused)

    async def acknowledges(self, commands: int) -> None:
        """Returns when the broker has acknowledged so many."""

        async def acknowledged() -> bool:
            return len(self.acknowledged) >= commands

        await eventually(acknowledged)

    async def _lane(self) -> None:
        while not self._stopping.is_set():
            instance_id = self._id()
            await self._publish("create_instance", instance_id, CREATE)
            for _ in range(self._random.randint(2, 12)):
                await asyncio.sleep(self._pace * self._random.uniform(0.5, 1.5))
                command, args = self._random.choice(COMMANDS)
                await self._publish(command, instance_id, args)

    async def _publish(self, command: str, instance_id: UUID, args: dict[str, Any]) -> None:
        command_id = self._id()
        body = json.dumps(
            {
                "command_id": str(command_id),
                "args": args,
                "actor": "alice",
                "issued_at": datetime.now(UTC).isoformat(),
            }
        ).encode()
        subject = str(CommandSubject("acme", "instance", str(instance_id), command))
        headers = {MSG_ID: message_id("acme", command_id, body)}
        while not self._stopping.is_set():
            try:
                await self._stream.publish(subject, body, headers=headers, timeout=2)
            except (nats.errors.Error, APIError, OSError) as error:
                self.refused[type(error).__name__] += 1
                await asyncio.sleep(0.05)
            else:
                self.acknowledged.append(Sent(command_id, instance_id, command, subject, body))
                return

    def _id(self) -> UUID:
        return UUID(int=self._random.getrandbits(128), version=4)


@asynccontextmanager
async def load(engine: Engine, seed: int, **options: Any) -> AsyncIterator[Load]:
    """A load on a connection of its own."""
    client = await connect(BrokerSettings(url=engine.broker.url), name="publisher", timeout=None)
    try:
        yield Load(client, seed, **options)
    finally:
        await client.close()


class Ends(msgspec.Struct, frozen=True):
    """What became of the acknowledged commands."""

    acknowledged: int
    accepted: int
    outcomes: Counter[str]
    rejected: Counter[str]

    def figures(self, injected: str) -> str:
        """One line for people."""
        ended = ", ".join(f"{n} {outcome}" for outcome, n in sorted(self.outcomes.items()))
        refused = ", ".join(f"{n} {code}" for code, n in sorted(self.rejected.items()))
        return (
            f"{injected}: {self.acknowledged} commands acknowledged, {self.accepted} accepted ({ended}), "
            f"{sum(self.rejected.values())} rejected ({refused}); 0 lost, 0 doubled, 0 stuck"
        )


async def ended(engine: Engine, sent: list[Sent], directory: Path) -> Ends:
    """Wait until all is over, and see that nothing was lost, doubled or left."""
    records = {record_id("acme", each.command_id) for each in sent}
    assert engine.running, "the worker ended by itself"

    async def decided() -> bool:
        return await engine.store.existing(records) == records

    async def settled() -> bool:
        return not await engine.store.owing()

    lost = f"not decided within {OVER_WITHIN:.0f} s"
    try:
        await eventually(decided, OVER_WITHIN, 0.1)
        lost = f"still owing after {OVER_WITHIN:.0f} s"
        await eventually(settled, OVER_WITHIN, 0.1)
    except TimeoutError:
        missing = records - await engine.store.existing(records)
        raise AssertionError(f"{lost}: {len(missing)} lost, owing: {await engine.store.owing()}") from None
    assert engine.running, "the worker ended by itself"
    log = await whole_log(engine.store)
    decisions = [stored.event for stored in log if isinstance(stored.event, CommandAccepted | CommandRejected)]
    assert not [each for each, times in Counter(d.originator_id for d in decisions).items() if times > 1]
    accepted = {d.command_id for d in decisions if isinstance(d, CommandAccepted) and d.aggregate_kind == "instance"}
    begun = Counter(stored.event.operation.id for stored in log if hasattr(stored.event, "operation"))
    assert set(begun) == accepted, "an operation for each accepted command, and no other"
    assert set(begun.values()) <= {1}
    outcomes = await asyncio.to_thread(outcomes_of, engine, directory)
    assert "running" not in outcomes
    await nothing_left(engine, {stored.aggregate_id for stored in log if stored.topic.startswith("instance.")})
    ours = [d for d in decisions if d.originator_id in records]
    return Ends(
        acknowledged=len(sent),
        accepted=len([d for d in ours if isinstance(d, CommandAccepted)]),
        outcomes=outcomes,
        rejected=Counter(d.code for d in ours if isinstance(d, CommandRejected)),
    )


async def whole_log(store: EventStore) -> list[Stored]:
    """Every event."""
    log: list[Stored] = []
    while page := await store.read(log[-1].position if log else 0, 1000):
        log += page
    return log


def outcomes_of(engine: Engine, directory: Path) -> Counter[str]:
    """How operations ended, as a read model built from the log says."""
    models = ReadModels(directory / "read-models", MODELS)
    try:
        catch_up(models, engine.store.log)
    finally:
        models.close()
    with closing(reading(directory / "read-models")) as connection:
        return Counter(row["outcome"] for row in connection.execute("SELECT outcome FROM operations"))


async def nothing_left(engine: Engine, instances: set[UUID]) -> None:
    """The cloud holds what living instances have, once, and nothing else."""
    inventory = await engine.cloud.contents()
    wanted: dict[str, set[str | None]] = {"servers": set(), "volumes": set(), "ports": set()}
    for instance_id in instances:
        instance: Instance = fold(await engine.store.events_of(instance_id))
        assert instance.owes() is None
        assert instance.parked is None, instance.parked
        if instance.state in {"DELETED", "FAILED"}:
            continue
        wanted["servers"].add(instance.server_id)
        wanted["volumes"].add(instance.volume_id)
        wanted["ports"].add(instance.port_id)
    held = {kind: set(found) for kind, found in inventory.items()}
    assert held == {kind: wanted.get(kind, set()) for kind in held}
