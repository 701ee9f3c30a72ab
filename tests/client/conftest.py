from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from engine.client import BrokerSettings, Context, TaskManager
from tests.client.responder import Responder
from tests.support.broker import Broker, running_broker


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with running_broker(tmp_path / "broker") as started:
        yield started


@pytest.fixture
async def responder(broker: Broker) -> AsyncIterator[Responder]:
    started = Responder()
    try:
        await started.start(BrokerSettings(url=broker.url))
        yield started
    finally:
        await started.stop()


@pytest.fixture
async def manager(broker: Broker, responder: Responder) -> AsyncIterator[TaskManager]:
    async with TaskManager(Context(project="acme", actor="alice"), broker=broker.url) as client:
        yield client
