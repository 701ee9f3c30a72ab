"""Fixtures on the lab: connections, what a test made and leaves to be removed, services that can be stopped."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import openstack
import pytest
from openstack.connection import Connection

from engine.clouds.openstack import OpenStackCloud
from tests.openstack.adapter import Doors, Instance, adapter, configured, doors
from tests.openstack.ledger import Requests, remove
from tests.openstack.services import Lab


@pytest.fixture(scope="session")
def lab() -> Lab:
    """The lab, which must be up."""
    found = Lab()
    os.environ["OS_CLIENT_CONFIG_FILE"] = str(found.clouds)
    return found


@pytest.fixture(scope="session")
def admin(lab: Lab) -> Iterator[Connection]:
    """A connection that may do everything and sees all projects."""
    with openstack.connect(cloud="lab-admin") as connection:
        yield connection


@pytest.fixture(scope="session")
def service(lab: Lab) -> Iterator[Connection]:
    """A connection as the user that the engine has."""
    with openstack.connect(cloud="lab-service") as connection:
        yield connection


@pytest.fixture
def mark(admin: Connection) -> Iterator[str]:
    """A word for names, metadata or tags: whatever bears it is removed when the test is over."""
    word = f"test-{uuid.uuid4()}"
    yield word
    remove(admin, word)


@pytest.fixture
def requests(lab: Lab) -> Requests:
    """What the services are asked for from now on."""
    return Requests(lab)


@pytest.fixture
async def through(service: Connection, tmp_path: Path) -> AsyncIterator[Doors]:
    """The doors."""
    async with doors(service, tmp_path) as made:
        yield made


@pytest.fixture
async def cloud(service: Connection, through: Doors) -> AsyncIterator[OpenStackCloud]:
    """An adapter."""
    async with adapter(configured(service), through) as made:
        yield made


@pytest.fixture
def instance(service: Connection, admin: Connection, cloud: OpenStackCloud) -> Iterator[Instance]:
    """An instance, of which nothing is left when the test is over."""
    made = Instance(service, cloud)
    yield made
    remove(admin, str(made.id))
