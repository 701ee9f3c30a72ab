"""Clouds to test: each is closed, and nothing of it is left, also when a test fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from engine.clouds.local import LocalCloud
from engine.clouds.port import TransientError
from engine.clouds.simulated import CloudApi, SimulatedCloud
from engine.clouds.simulated.client import FarSide, RemoteCloud
from engine.clouds.simulated.server import serve
from engine.clouds.simulated.site import Site
from engine.clouds.simulated.wire import Settings
from tests.clouds.local_setup import cloud_directory, local_cloud
from tests.clouds.wishes import Cloud
from tests.support.eventually import eventually


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory for a local cloud."""
    with cloud_directory() as made:
        yield made


@pytest.fixture
async def local(directory: Path) -> AsyncIterator[LocalCloud]:
    """A local cloud."""
    cloud = local_cloud(directory / "cloud")
    await cloud.start()
    yield cloud
    await cloud.close()


@asynccontextmanager
async def _behind_a_socket(path: Path) -> AsyncIterator[RemoteCloud]:
    stop = asyncio.Event()
    settings = Settings(latest_effect=0, deadline=30)
    serving = asyncio.create_task(serve(path, Site(latency=0.01), settings, stop))
    cloud = RemoteCloud(FarSide(path), in_flight=64)
    await eventually(lambda: _started(cloud))
    yield cloud
    await cloud.close()
    stop.set()
    await serving


async def _started(cloud: RemoteCloud) -> bool:
    try:
        await cloud.start()
    except TransientError:
        return False
    return True


@pytest.fixture(params=["local", "simulated", "simulated that takes its time", "simulated behind a socket"])
async def cloud(request: pytest.FixtureRequest, directory: Path) -> AsyncIterator[Cloud]:
    """Each of the clouds."""
    if request.param == "simulated behind a socket":
        async with _behind_a_socket(directory / "cloud.sock") as remote:
            yield remote
        return
    made: Cloud
    match request.param:
        case "local":
            made = local_cloud(directory / "cloud")
        case "simulated":
            made = SimulatedCloud(latency=0.01)
        case _:
            made = SimulatedCloud(api=CloudApi(build_time=0.05))
    await made.start()
    yield made
    await made.close()
