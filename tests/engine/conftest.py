"""The engine around a simulated cloud: real broker, real store, everything else as in production."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from nats.aio.client import Client

from engine.broker import BrokerSettings, connect, ensure_streams
from engine.clouds.simulated import BARE, SimulatedCloud, SimulatedGuests
from engine.event_log import fold
from engine.store import EventStore, open_store
from engine.tasks import end
from engine.worker import Worker
from tests.support.broker import Broker, running_broker
from tests.support.publisher import Publisher


class Vault:
    """Keeps secrets in memory."""

    def __init__(self) -> None:
        self.secrets: dict[str, str] = {}

    def put(self, secret: str, *, project: str) -> str:
        reference = f"vault:{project}-{len(self.secrets)}"
        self.secrets[reference] = secret
        return reference


class Engine:
    """A worker that can be stopped, killed and started anew around the same cloud, store and broker."""

    def __init__(self, broker: Broker, store_url: str) -> None:
        self.broker = broker
        self.store_url = store_url
        self.cloud = SimulatedCloud(catalogue=BARE, latest_effect=timedelta(0))
        self.guests = SimulatedGuests()
        self.options: dict[str, Any] = {}  # of the worker
        self.streams: dict[str, Any] = {}  # their sizes
        self.client: Client
        self.store: EventStore
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.client = await connect(BrokerSettings(url=self.broker.url), name="worker")
        await ensure_streams(self.client.jetstream(), **self.streams)
        self.store = open_store(self.store_url)
        self.store.start()
        worker = Worker(self.client, self.store, self.cloud, self.guests, Vault(), **self.options)
        self._task = asyncio.create_task(worker.run())

    @property
    def running(self) -> bool:
        """Whether the worker has not ended by itself."""
        return self._task is not None and not self._task.done()

    async def stop(self) -> None:
        if self._task is None:
            return
        await end(self._task)
        self._task = None
        await self.store.close()
        await self.client.close()

    async def held(self) -> list[str]:
        """What the cloud holds, one word for each resource."""
        inventory = await self.cloud.contents()
        return sorted(kind for kind, resources in inventory.items() for _ in resources)

    async def instance(self, instance_id: UUID) -> Any:
        return fold(await self.store.events_of(instance_id))

    async def settled(self, instance_id: UUID, within: float = 30) -> Any:
        """The instance once it owes nothing or is parked."""
        async with asyncio.timeout(within):
            while True:
                instance = await self.instance(instance_id)
                if instance is not None and (instance.owes() is None or instance.parked is not None):
                    return instance
                await asyncio.sleep(0.02)

    async def until(self, instance_id: UUID, state: str, within: float = 30) -> Any:
        async with asyncio.timeout(within):
            while True:
                instance = await self.instance(instance_id)
                if instance is not None and instance.state == state:
                    return instance
                await asyncio.sleep(0.01)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with running_broker(tmp_path / "broker") as running:
        yield running


@pytest.fixture
async def engine(broker: Broker, store_url: str) -> AsyncIterator[Engine]:
    started = Engine(broker, store_url)
    await started.start()
    yield started
    await started.stop()


@pytest.fixture
async def publisher(engine: Engine) -> AsyncIterator[Publisher]:
    client = await connect(BrokerSettings(url=engine.broker.url), name="publisher")
    yield Publisher(client)
    await client.close()
