from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from engine.client import BrokerSettings, Context, TaskManager
from tests.client.broker import Broker, Responder


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    started = Broker(tmp_path / "broker")
    try:
        started.start()
        yield started
    finally:
        started.stop()


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
