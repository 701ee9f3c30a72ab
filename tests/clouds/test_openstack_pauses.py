"""A worker that a service has told to wait tells the others: they send nothing to it before the time has passed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from nats.aio.client import Client
from openstack.connection import Connection

from engine.clouds.openstack.calls import Calls, Service
from engine.clouds.openstack.config import Timing
from engine.messages import PAUSE_SUBJECT
from engine.pauses import Pause, Pauses
from tests.openstack.proxy import Door, Proxy
from tests.support.broker import Broker, running_broker
from tests.support.eventually import eventually
from tests.support.pauses import hearing

RETRY_AFTER = 2.0


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with running_broker(tmp_path / "broker") as started:
        yield started


@pytest.fixture
async def service() -> AsyncIterator[Proxy]:
    """A service that answers whatever it is asked, behind a door that can say 429."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as served:
        door = Proxy(f"http://127.0.0.1:{served.sockets[0].getsockname()[1]}", retry_after=RETRY_AFTER)
        await door.open()
        try:
            yield door
        finally:
            await door.close()


class Worker:
    """What a worker has of this: a connection to the broker, and one to the cloud."""

    def __init__(self, client: Client, pauses: Pauses, connection: Connection, url: str, timing: Timing) -> None:
        self.client = client
        self.pauses = pauses
        self._url = url
        self.calls = Calls(connection, at_once=8, timing=timing, pauses=pauses)
        self.nova = Service("nova", self.calls, lambda made: made.session)
        self._known_as = f"nova of {self.calls.cloud}"

    async def look(self) -> int:
        """One call to the service."""
        return int((await self.nova.look("list_servers", lambda session: session.get(self._url))).status_code)

    def hears(self) -> asyncio.Event:
        """Set once it has heard of a pause of its service."""
        heard = asyncio.Event()
        self.pauses.listen(self._known_as, lambda _: heard.set())
        return heard

    async def tell(self, seconds: float) -> None:
        """Have everybody hear of a pause, as a worker would tell it that has lost its mind."""
        await self.client.publish(PAUSE_SUBJECT, msgspec.json.encode(Pause(self._known_as, seconds)))


@asynccontextmanager
async def worker(broker: Broker, service: Proxy, region: str = "one", **timing: float) -> AsyncIterator[Worker]:
    """A worker that tells and listens."""
    async with hearing(broker.url) as (client, pauses):
        with Connection(auth_type="none", auth={"endpoint": service.url}, region_name=region) as connection:
            made = Worker(client, pauses, connection, service.url, Timing(**timing))
            try:
                yield made
            finally:
                made.calls.close()


async def test_when_one_is_told_to_wait_the_others_send_nothing_before_the_time_has_passed(
    broker: Broker, service: Proxy
) -> None:
    async with worker(broker, service) as told, worker(broker, service) as other:
        service.plan("GET", "/", Door.BUSY)
        heard = other.hears()
        waiting = asyncio.create_task(told.look())
        await heard.wait()
        assert set(await asyncio.gather(waiting, other.look())) == {200}
    refused, *answered = service.seen
    assert (refused.status, [each.status for each in answered]) == (429, [200, 200])
    assert min(each.at for each in answered) >= refused.at + RETRY_AFTER


async def test_another_region_and_another_service_go_on(broker: Broker, service: Proxy) -> None:
    async with worker(broker, service) as told, worker(broker, service, region="two") as elsewhere:
        service.plan("GET", "/", Door.BUSY)
        heard = told.hears()
        waiting = asyncio.create_task(told.look())
        await heard.wait()
        cinder = Service("cinder", told.calls, lambda made: made.session)
        await cinder.look("list_volumes", lambda session: session.get(service.url))
        assert await elsewhere.look() == 200
        assert not waiting.done()
        refused, *answered = service.seen
        assert max(each.at for each in answered) < refused.at + RETRY_AFTER
        assert await waiting == 200


async def test_what_many_calls_are_told_at_once_is_told_the_others_once(broker: Broker, service: Proxy) -> None:
    async with worker(broker, service) as told, worker(broker, service) as other:
        service.plan("GET", "/", Door.BUSY, times=6)
        heard: list[float] = []
        other.pauses.listen("nova of one", heard.append)
        assert await asyncio.gather(*(told.look() for _ in range(6))) == [200] * 6
        assert [each.status for each in service.seen[:6]] == [429] * 6
        await told.client.flush()
        await other.client.flush()
        assert heard == [RETRY_AFTER]


async def test_no_word_of_another_holds_a_worker_longer_than_it_would_be_patient_by_itself(
    broker: Broker, service: Proxy
) -> None:
    async with worker(broker, service, busy=1.0) as held:
        heard = held.hears()
        begun = asyncio.get_running_loop().time()
        await held.client.publish(PAUSE_SUBJECT, b"no pause")
        await held.client.publish(PAUSE_SUBJECT, msgspec.json.encode({"service": "nova of one", "seconds": -1e9}))
        await held.tell(1e9)
        await heard.wait()
        async with asyncio.timeout(10):
            assert await held.look() == 200
    assert service.seen[0].at >= begun + 1.0


async def test_without_a_broker_a_worker_is_told_by_the_service_itself(broker: Broker, service: Proxy) -> None:
    async with worker(broker, service) as told, worker(broker, service) as other:
        broker.stop()
        await eventually(lambda: _is(not told.client.is_connected))
        service.plan("GET", "/", Door.BUSY, times=2)
        waiting = asyncio.create_task(told.look())
        await eventually(lambda: _is(len(service.seen) == 1))
        assert await other.look() == 200
        assert await waiting == 200
        heard = other.hears()
        broker.start()
        await eventually(lambda: _is(told.client.is_connected and other.client.is_connected))
        await told.client.flush()
        await other.client.flush()
        assert not heard.is_set()  # what was told while the broker was away is told nobody later
    assert [each.status for each in service.seen[:2]] == [429, 429]


async def _is(so: bool) -> bool:
    return so
