"""Objects of any size are there whole or not at all, and nothing is left of what is removed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from openstack.connection import Connection

from engine.clouds.openstack.calls import Calls, Service
from engine.clouds.openstack.config import Timing
from engine.clouds.openstack.connection import connect
from engine.clouds.openstack.objects import Objects
from engine.clouds.port import FinalError
from tests.openstack.adapter import configured

SMALL = 1024 * 1024


@pytest.fixture
async def objects(service: Connection) -> AsyncIterator[Objects]:
    """A container, which is gone when the test is over."""
    calls = Calls(connect(configured(service, cloud="lab-service")), at_once=4, timing=Timing())
    name = f"test-{uuid4()}"
    made = Objects(Service("swift", calls, lambda connection: connection.object_store), name, part=SMALL)
    await made.prepare()
    yield made
    for each in list(service.object_store.objects(name)):
        service.object_store.delete_object(each, container=name)
    service.object_store.delete_container(name)
    calls.close()


async def _bytes(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def _read(objects: Objects, name: str) -> bytes:
    return b"".join([piece async for piece in objects.read(name)])


@pytest.mark.parametrize("size", [0, 1, SMALL, 3 * SMALL + 7])
async def test_what_is_written_is_read(objects: Objects, size: int) -> None:
    content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    pieces = [content[at : at + 300_000] for at in range(0, size, 300_000)]
    for _ in range(2):
        assert await objects.write("backups/one", _bytes(*pieces)) == size
    assert await _read(objects, "backups/one") == content
    assert await objects.names("backups/") == ["backups/one"]


async def test_nothing_is_left_of_what_is_removed(objects: Objects) -> None:
    await objects.write("one", _bytes(b"x" * SMALL, b"y"))
    for _ in range(2):
        await objects.remove("one")
    assert await objects._listed("") == []
    with pytest.raises(FinalError) as raised:
        await objects.size("one")
    assert raised.value.code == "not_found"


async def test_what_is_written_halfway_is_not_there_and_is_removed_by_its_name(objects: Objects) -> None:
    async def breaks() -> AsyncIterator[bytes]:
        yield b"x" * SMALL
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await objects.write("half", breaks())
    assert await objects.names() == []
    assert await objects._listed("") != []
    await objects.remove("half")
    assert await objects._listed("") == []


async def test_what_is_overwritten_halfway_is_what_it_was(objects: Objects) -> None:
    async def breaks() -> AsyncIterator[bytes]:
        yield b"y" * SMALL
        raise ConnectionResetError

    await objects.write("one", _bytes(b"x" * SMALL))
    with pytest.raises(ConnectionResetError):
        await objects.write("one", breaks())
    assert await _read(objects, "one") == b"x" * SMALL
    await objects.remove("one")
    assert await objects._listed("") == []


async def test_a_shorter_content_leaves_no_part_of_the_longer(objects: Objects) -> None:
    await objects.write("one", _bytes(b"x" * (3 * SMALL)))
    await objects.write("one", _bytes(b"y"))
    assert await _read(objects, "one") == b"y"
    assert len(await objects._listed("")) == 2
