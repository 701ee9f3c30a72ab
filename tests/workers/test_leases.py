"""Leases on a real broker and PostgreSQL: who holds what, by whose clock, and how it comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from nats.aio.client import Client

from engine.broker import BrokerSettings, connect, ensure_streams
from engine.partitions import RANGES, TTL, Leases, Listener
from engine.store import EventStore, open_store
from engine.tasks import end
from tests.support.broker import Broker, running_broker


class Told(Listener):
    """When it was told of what."""

    def __init__(self) -> None:
        self.held: set[str] = set()
        self.gained_at: list[float] = []

    def gained(self, ranges: Collection[str]) -> None:
        self.held |= set(ranges)
        self.gained_at.append(time.monotonic())

    def lost(self, ranges: Collection[str]) -> None:
        self.held -= set(ranges)


class Contender:
    """Leases that can be left lying as by a death, and taken up again."""

    def __init__(self, client: Client, store: EventStore) -> None:
        self.leases = Leases(client, store)
        self.told = Told()
        self.leases.listen(self.told)
        self._task: asyncio.Task[None] | None = None

    def run(self) -> None:
        self._task = asyncio.create_task(self.leases.run())

    async def die(self) -> None:
        """Stop without letting go of anything."""
        if self._task is not None:
            await end(self._task)

    def holding(self) -> set[str]:
        return {name for name in RANGES if self.leases.holds(name)}

    async def holds(self, count: int, within: float = 30) -> None:
        await eventually(lambda: len(self.holding()) == count, within)


async def eventually(look: Callable[[], bool], within: float = 30) -> None:
    async with asyncio.timeout(within):
        while True:
            if look():
                return
            await asyncio.sleep(0.02)


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    with running_broker(tmp_path / "broker") as running:
        yield running


@pytest.fixture
async def url(postgres: str) -> str:
    schema = f"leases_{uuid4().hex}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
    return f"{postgres}?schema={schema}"


@asynccontextmanager
async def contender(broker: Broker, url: str) -> AsyncIterator[Contender]:
    client = await connect(BrokerSettings(url=broker.url), name="worker")
    await ensure_streams(client.jetstream())
    store = open_store(url)
    store.start()
    made = Contender(client, store)
    try:
        yield made
    finally:
        await made.die()
        await store.close()
        await client.close()


async def test_nobody_takes_from_the_dead_before_its_own_lease_shows_that_the_bucket_lost_nothing(
    broker: Broker, url: str
) -> None:
    async with contender(broker, url) as first, contender(broker, url) as second:
        first.run()
        await first.holds(len(RANGES))
        await first.die()
        began = time.monotonic()
        second.run()
        await second.holds(len(RANGES))
        assert min(second.told.gained_at) - began >= TTL
        assert not first.holding()  # by its own clock, though nobody told it


async def test_what_was_let_go_is_taken_at_once(broker: Broker, url: str) -> None:
    async with contender(broker, url) as first, contender(broker, url) as second:
        first.run()
        second.run()
        await eventually(lambda: len(first.holding()) + len(second.holding()) == len(RANGES) and bool(second.holding()))
        await first.die()
        await first.leases.release()
        assert not first.told.held
        await second.holds(len(RANGES))
        assert [member.id for member in await second.leases.members()] == [second.leases.id]


async def test_a_broker_that_was_away_gives_all_back_and_nobody_acts_meanwhile(broker: Broker, url: str) -> None:
    async with contender(broker, url) as only:
        only.run()
        await only.holds(len(RANGES))
        before = await only.leases._store.ranges()
        broker.kill()
        await eventually(lambda: not only.told.held)
        assert not only.holding()
        broker.start()
        await only.holds(len(RANGES))
        after = await only.leases._store.ranges()
        assert all(after[name].epoch > before[name].epoch for name in RANGES)


async def test_what_stands_as_ours_from_an_earlier_lease_goes_to_who_should_have_it_now(
    broker: Broker, url: str
) -> None:
    async with contender(broker, url) as first, contender(broker, url) as second:
        first.run()
        await first.holds(len(RANGES))
        await first.die()
        first.leases._lose_all()
        second.run()
        await eventually(lambda: second.leases._lease is not None)
        first.run()
        await eventually(lambda: {*first.holding(), *second.holding()} == set(RANGES) and len(second.holding()) >= 8)
        assert not first.holding() & second.holding()
