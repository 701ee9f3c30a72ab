"""Clouds to test: each is closed, and nothing of it is left, also when a test fails."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from engine.clouds.local import LocalCloud
from engine.clouds.simulated import SimulatedCloud
from tests.clouds.local_setup import cloud_directory, local_cloud
from tests.clouds.wishes import Cloud


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


@pytest.fixture(params=["local", "simulated"])
async def cloud(request: pytest.FixtureRequest, directory: Path) -> AsyncIterator[Cloud]:
    """Each of the clouds."""
    made: Cloud = local_cloud(directory / "cloud") if request.param == "local" else SimulatedCloud(latency=0.01)
    await made.start()
    yield made
    await made.close()
