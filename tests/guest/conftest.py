"""Fixtures for the guest agent: a broker, and a server with its agent for each datastore of this machine."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.guest.server import GuestServer
from tests.support.broker import Broker

DATASTORES = [("postgresql", "16"), ("postgresql", "18"), ("mariadb", "10.11"), ("redis", "6.2")]

# There is no disk to be had without root.
collect_ignore = [] if os.geteuid() == 0 else ["test_disk_mounted.py", "test_volume_let_go.py"]

NewServer = Callable[..., GuestServer]


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker shared by the tests of one process."""
    broker = Broker(tmp_path_factory.mktemp("broker"))
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture(params=DATASTORES, ids=lambda p: f"{p[0]}-{p[1]}")
def datastore(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Each datastore in each version."""
    found: tuple[str, str] = request.param
    return found


@pytest.fixture
async def new_server(broker: Broker, tmp_path: Path) -> AsyncIterator[NewServer]:
    """Makes servers, of Redis unless told otherwise, and removes them."""
    made: list[GuestServer] = []

    def make(datastore: tuple[str, str] = ("redis", "6.2"), **settings: Any) -> GuestServer:
        server = GuestServer(settings.pop("nats_url", broker.url), *datastore, **settings)
        made.append(server)
        return server

    yield make
    for server in made:
        await server.close()


@pytest.fixture
async def guest(datastore: tuple[str, str], new_server: NewServer) -> GuestServer:
    """A server of each datastore, its agent started."""
    server = new_server(datastore)
    await server.open()
    return server
