"""Calls go out in threads: no more than are allowed at once, each with its deadline, none without a permit."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from openstack.connection import Connection
from openstack.exceptions import HttpException
from requests import Response

from engine.clouds.openstack.calls import Calls, Service
from engine.clouds.openstack.config import Timing
from engine.clouds.port import FinalError, TransientError, UnknownOutcomeError, permit
from engine.clouds.traffic import Counts
from tests.support.eventually import eventually

Call = Callable[[Connection], object]


@pytest.fixture
def connection() -> Iterator[Connection]:
    """To no cloud: what is called here calls nobody."""
    with Connection(auth_type="none", auth={"endpoint": "http://127.0.0.1:1"}) as made:
        yield made


def _service(connection: Connection, at_once: int = 2, **timing: float) -> Service[Connection]:
    calls = Calls(connection, at_once=at_once, timing=Timing(**timing))
    return Service("nova", calls, lambda made: made)


class Held:
    """A call that goes on until it is let go, and knows how many of it there were at once."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.now = self.most = 0
        self._lock = threading.Lock()

    def __call__(self, _: Connection) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        self.let_go.wait(10)
        with self._lock:
            self.now -= 1


async def test_no_more_calls_are_open_than_are_allowed(connection: Connection) -> None:
    held, service = Held(), _service(connection)
    asking = [asyncio.create_task(service.look("get_server", held)) for _ in range(6)]
    await eventually(lambda: _is(held.now == 2))
    held.let_go.set()
    await asyncio.gather(*asking)
    assert held.most == 2


async def test_a_call_that_is_given_up_keeps_its_place_until_it_ends(connection: Connection) -> None:
    held, service = Held(), _service(connection, at_once=1, call=0.2)
    with pytest.raises(UnknownOutcomeError) as raised:
        await service.change("create_server", held)
    assert raised.value.code == "cloud_timeout"
    next_one = asyncio.create_task(service.look("get_server", lambda _: "answer"))
    await asyncio.wait({next_one}, timeout=0.3)
    assert not next_one.done()
    held.let_go.set()
    assert await next_one == "answer"


class NotOursError(Exception):
    """The range is another's."""


async def test_without_a_permit_nothing_is_called_and_no_place_is_lost(connection: Connection) -> None:
    service = _service(connection, at_once=1)

    def refuse() -> None:
        raise NotOursError

    token = permit.set(refuse)
    try:
        for _ in range(3):
            with pytest.raises(NotOursError):
                await service.change("create_server", lambda _: pytest.fail("it was called"))
    finally:
        permit.reset(token)
    assert await service.look("get_server", lambda _: "answer") == "answer"


def _answers(status: int, seconds: float = 0.0) -> Call:
    def call(_: Connection) -> None:
        answer = Response()
        answer.status_code = status
        answer.headers["Retry-After"] = str(seconds)
        raise HttpException(response=answer, details="slow down")

    return call


def _busy(seconds: float) -> Call:
    return _answers(429, seconds)


async def test_a_service_that_stays_busy_is_told_in_the_end(connection: Connection) -> None:
    service = _service(connection, busy=1.0)
    begun = time.monotonic()
    with pytest.raises(TransientError) as raised:
        await service.change("create_server", _busy(0.3))
    assert raised.value.code == "cloud_busy"
    assert time.monotonic() - begun < 3.0


async def test_one_service_that_is_busy_does_not_hold_another(connection: Connection) -> None:
    busy, free = _service(connection), _service(connection)
    waiting = asyncio.create_task(busy.look("get_server", _busy(30.0)))
    await asyncio.wait({waiting}, timeout=0.2)
    assert await free.look("get_server", lambda _: "answer") == "answer"
    waiting.cancel()


async def test_it_is_counted_what_each_service_answers(connection: Connection) -> None:
    calls = Calls(connection, at_once=4, timing=Timing(call=0.2, busy=0.1))
    nova, cinder = (Service[Connection](name, calls, lambda made: made) for name in ("nova", "cinder"))
    assert await nova.look("get_server", lambda _: "answer") == "answer"
    assert await nova.present("get_server", _answers(404)) is None
    with pytest.raises(FinalError, match="quota"):
        await nova.change("create_server", _refuses)
    for status in (500, 503):
        with pytest.raises(UnknownOutcomeError):
            await nova.change("create_server", _answers(status))
    held = Held()
    for made in (nova.look("get_server", held), cinder.look("get_volume", _busy(30.0))):
        with pytest.raises(TransientError):
            await made
    held.let_go.set()
    assert calls.traffic == {
        "nova": Counts(calls=6, unanswered=1, failed=2),
        "cinder": Counts(calls=1, busy=1),
    }


def _refuses(_: Connection) -> None:
    answer = Response()
    answer.status_code = 403
    raise HttpException(response=answer, details="Quota exceeded for instances")


async def _is(so: bool) -> bool:
    return so
