"""Health comes from what is heard and from silence, and never from this side having been away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from uuid import UUID, uuid4

import msgspec
import pytest

from aggregates.health import HealthChanged, health_id
from engine import health
from engine.messages import GuestStatus, Heartbeat, heartbeat_subject
from tests.engine.conftest import Engine
from tests.support.publisher import CREATE, Publisher

pytestmark = pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
INTERVAL = 0.4


class Guest:
    """Beats as an agent does, until it falls silent."""

    def __init__(self, publisher: Publisher, instance_id: UUID) -> None:
        self.status = GuestStatus.HEALTHY
        self._client = publisher.client
        self._instance_id = instance_id
        self._task = asyncio.create_task(self._beat())

    async def _beat(self) -> None:
        sequence = 0
        while True:
            sequence += 1
            beat = Heartbeat(
                instance_id=self._instance_id,
                boot="boot",
                sequence=sequence,
                sent_at=datetime(1999, 1, 1, tzinfo=UTC),  # a guest's clock decides nothing
                interval=INTERVAL,
                status=self.status,
            )
            await self._client.publish(heartbeat_subject(self._instance_id), msgspec.json.encode(beat))
            await asyncio.sleep(INTERVAL)

    async def fall_silent(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@pytest.fixture
async def instance_id(engine: Engine, publisher: Publisher) -> UUID:
    made = uuid4()
    await publisher.send("create_instance", made, CREATE)
    await engine.settled(made)
    return made


@pytest.fixture
async def guest(publisher: Publisher, instance_id: UUID) -> AsyncIterator[Guest]:
    beating = Guest(publisher, instance_id)
    yield beating
    await beating.fall_silent()


async def changes(engine: Engine, instance_id: UUID) -> list[str]:
    events = await engine.store.events_of(health_id(instance_id))
    return [str(event.health) for event in events if isinstance(event, HealthChanged)]


async def until(engine: Engine, instance_id: UUID, true: Callable[[list[str]], bool], within: float = 40) -> list[str]:
    deadline = time.monotonic() + within
    while not true(seen := await changes(engine, instance_id)):
        assert time.monotonic() < deadline, seen
        await asyncio.sleep(0.05)
    return seen


async def test_only_changes_become_events(engine: Engine, guest: Guest, instance_id: UUID) -> None:
    await until(engine, instance_id, lambda seen: seen == ["HEALTHY"])
    guest.status = GuestStatus.CRASHED
    await until(engine, instance_id, lambda seen: seen == ["HEALTHY", "SUSPECT"])
    guest.status = GuestStatus.HEALTHY
    await until(engine, instance_id, lambda seen: seen == ["HEALTHY", "SUSPECT", "HEALTHY"])


async def test_silence_becomes_suspect_then_down_then_ends(
    engine: Engine, publisher: Publisher, guest: Guest, instance_id: UUID
) -> None:
    await until(engine, instance_id, lambda seen: seen == ["HEALTHY"])
    await guest.fall_silent()
    await until(engine, instance_id, lambda seen: seen == ["HEALTHY", "SUSPECT", "DOWN"])
    back = Guest(publisher, instance_id)
    await until(engine, instance_id, lambda seen: seen[-1] == "HEALTHY")
    await back.fall_silent()


async def test_nobody_is_marked_down_because_the_engine_was_away(
    engine: Engine, guest: Guest, instance_id: UUID
) -> None:
    await until(engine, instance_id, lambda seen: seen == ["HEALTHY"])
    await engine.stop()
    await asyncio.sleep((health.DOWN_AFTER + 2) * health.LEAST_INTERVAL * 0.5)
    await engine.start()
    # Long enough for a verdict about a silence that had begun before.
    await asyncio.sleep(health.SUSPECT_AFTER * health.LEAST_INTERVAL + 2 * health.TICK)
    assert await changes(engine, instance_id) == ["HEALTHY"]


async def test_one_that_fell_silent_while_the_engine_was_away_is_found_out(
    engine: Engine, guest: Guest, instance_id: UUID
) -> None:
    await until(engine, instance_id, lambda seen: seen == ["HEALTHY"])
    await engine.stop()
    await guest.fall_silent()
    await engine.start()
    await until(engine, instance_id, lambda seen: seen == ["HEALTHY", "SUSPECT", "DOWN"])


async def test_a_lost_broker_is_nobodys_silence(engine: Engine, guest: Guest, instance_id: UUID) -> None:
    await until(engine, instance_id, lambda seen: seen == ["HEALTHY"])
    engine.broker.kill()
    await asyncio.sleep(health.SUSPECT_AFTER * health.LEAST_INTERVAL + 2 * health.TICK)
    engine.broker.start()
    await asyncio.sleep(health.SUSPECT_AFTER * health.LEAST_INTERVAL - health.TICK)
    assert await changes(engine, instance_id) == ["HEALTHY"]


async def test_a_deleted_instance_is_listened_for_no_longer(
    engine: Engine, publisher: Publisher, guest: Guest, instance_id: UUID
) -> None:
    await until(engine, instance_id, lambda seen: seen == ["HEALTHY"])
    await publisher.send("delete_instance", instance_id)
    await engine.settled(instance_id)
    deadline = time.monotonic() + 20
    while (await engine.store.load(health_id(instance_id))).watched:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    assert await changes(engine, instance_id) == ["HEALTHY"]
