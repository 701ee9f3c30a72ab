from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from nats.aio.client import Client

from engine.broker import BrokerSettings, connect
from engine.embedded import EmbeddedBroker
from engine.state import StateDirectory
from tests.broker.servers import PlainServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PlainServer]:
    running = PlainServer(tmp_path)
    running.start()
    try:
        yield running
    finally:
        running.kill()


@pytest.fixture
async def client(server: PlainServer) -> AsyncIterator[Client]:
    connected = await connect(BrokerSettings(url=server.url), name="test")
    try:
        yield connected
    finally:
        await connected.close()


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    made = StateDirectory(tmp_path / "state")
    made.prepare()
    return made


@pytest.fixture
async def broker(state: StateDirectory) -> AsyncIterator[EmbeddedBroker]:
    running = EmbeddedBroker(state, None)
    await running.start()
    try:
        yield running
    finally:
        await running.stop()
