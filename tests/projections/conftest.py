from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from projections.base import ReadModels
from projections.models import MODELS
from projections.run import Projections
from tests.projections.served import Served, connected
from tests.projections.story import Story
from tests.support.broker import Broker, running_broker


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    told = Story(tmp_path / "events.db")
    yield told
    told.close()


@pytest.fixture
def models(tmp_path: Path) -> Iterator[ReadModels]:
    opened = ReadModels(tmp_path / "read-models", MODELS)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with running_broker(tmp_path_factory.mktemp("broker")) as started:
        yield started


@pytest.fixture
async def served(broker: Broker, story: Story, tmp_path: Path) -> AsyncIterator[Served]:
    clients = [await connected(broker.url) for _ in range(3)]
    read = await Projections.start(story.log, tmp_path / "read-models", clients[0])
    begun = Served(story, read, asking=clients[1], again=clients[2])
    yield begun
    await begun.read.close()
    for client in clients:
        await client.close()
