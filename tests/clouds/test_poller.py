"""Waiting for many resources costs the cloud as many calls as waiting for one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

import pytest

from engine.clock import monotonic
from engine.clouds.poller import LONGEST, SHORTEST, Poller
from engine.clouds.port import FinalError, PayError, TransientError, Waiting, only_waits, permit, waiting
from engine.clouds.simulated import CloudApi, SimulatedCloud
from engine.clouds.simulated.faults import Call
from tests.clouds.ambiguous import Drawn
from tests.clouds.wishes import Wishes
from tests.simulation.virtual_time import VirtualLoop, run

T = TypeVar("T")


class Far:
    """Things that are there from some moment on, and a count of the looks."""

    def __init__(self, there_at: Mapping[str, float]) -> None:
        self.looks: list[float] = []
        self.errors: list[PayError] = []
        self._there_at = there_at

    async def look(self) -> Mapping[str, str]:
        """What is there now."""
        self.looks.append(monotonic())
        if self.errors:
            raise self.errors.pop(0)
        return {name: name for name, moment in self._there_at.items() if moment <= monotonic()}


def _virtually(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    return run(main(), VirtualLoop())


def _there(found: str | None) -> bool:
    return found is not None


@pytest.mark.parametrize("many", [1, 500])
def test_looks_are_as_many_for_five_hundred_as_for_one(many: int) -> None:
    async def wait() -> Far:
        far = Far({str(number): 60.0 for number in range(many)})
        poller = Poller(far.look)
        await asyncio.gather(*(poller.wait(name, _there) for name in map(str, range(many))))
        assert 60 <= monotonic() <= 60 + LONGEST
        return far

    looks = _virtually(wait).looks
    assert 60 / LONGEST <= len(looks) <= 60
    assert looks[0] == SHORTEST


def test_a_cloud_is_asked_as_often_for_five_hundred_servers_as_for_one() -> None:
    async def build(many: int) -> int:
        drawn = Drawn()
        cloud = SimulatedCloud(api=CloudApi(build_time=30.0))
        wishes = [Wishes(cloud) for _ in range(many)]
        for each in wishes:
            await each.pay(each.port())
        assert isinstance(cloud.api, CloudApi)
        cloud.api.faults.draw = drawn
        drawn.listening = True
        await asyncio.gather(*(each.pay(each.server()) for each in wishes))
        return sum(call.name == "list_servers" and not call.args for call in drawn.calls)

    assert _virtually(lambda: build(500)) <= _virtually(lambda: build(1)) + 1


def test_a_look_that_fails_is_taken_again_when_the_cloud_says() -> None:
    async def wait() -> Far:
        far = Far({"a": 0.0})
        far.errors = [TransientError("cloud_busy", "429", retry_after=10.0)]
        assert await Poller(far.look).wait("a", _there) == "a"
        return far

    first, second = _virtually(wait).looks
    assert second - first >= 10


def test_a_final_error_is_everybodys() -> None:
    async def wait() -> list[Any]:
        far = Far({})
        far.errors = [FinalError("cloud_error", "403 no")]
        poller = Poller(far.look)
        return await asyncio.gather(*(poller.wait(name, _there) for name in "ab"), return_exceptions=True)

    assert [type(error) for error in _virtually(wait)] == [FinalError, FinalError]


def test_who_gives_up_leaves_the_others_waiting_and_nobody_looks_for_nobody() -> None:
    async def wait() -> Far:
        far = Far({"a": 0.0, "b": 20.0})
        poller = Poller(far.look)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.gather(poller.wait("never", _there))
        assert await poller.wait("b", _there) == "b"
        looks = len(far.looks)
        await asyncio.sleep(60)
        assert len(far.looks) == looks
        assert await poller.wait("a", _there) == "a"
        return far

    _virtually(wait)


def test_what_the_waiter_raises_is_the_waiters_own() -> None:
    def refuse(_found: str | None) -> bool:
        raise FinalError("cloud_error", "it broke")

    async def wait() -> list[Any]:
        poller = Poller(Far({"a": 1.0}).look)
        heard = await asyncio.gather(poller.wait("a", refuse), poller.wait("a", _there), return_exceptions=True)
        return list(heard)

    refused, found = _virtually(wait)
    assert isinstance(refused, FinalError)
    assert found == "a"


def test_a_look_that_waits_itself_leaves_its_waiters_alone() -> None:
    async def look() -> dict[str, str]:
        with only_waits():
            await asyncio.sleep(1)
        return {}

    async def wait() -> None:
        told = Waiting()
        waiting.set(told)
        poller = Poller(look)
        heard = asyncio.create_task(poller.wait("a", _there))
        await asyncio.sleep(10)
        assert told.now
        poller.close()
        await asyncio.wait({heard})

    _virtually(wait)


def test_closing_ends_the_wait() -> None:
    async def wait() -> None:
        poller = Poller(Far({}).look)
        heard = asyncio.create_task(poller.wait("a", _there))
        await asyncio.sleep(3)
        poller.close()
        await asyncio.wait({heard})
        assert heard.cancelled()

    _virtually(wait)


class NotOursError(Exception):
    """The owner may not act any more."""


def test_no_call_goes_out_without_the_owners_permit() -> None:
    async def pay() -> list[Call]:
        drawn = Drawn()
        cloud = SimulatedCloud()
        assert isinstance(cloud.api, CloudApi)
        cloud.api.faults.draw = drawn
        wishes = Wishes(cloud)
        drawn.listening = True

        def only_one() -> None:
            if drawn.calls:
                raise NotOursError

        permit.set(only_one)
        with pytest.raises(NotOursError):
            await wishes.pay(wishes.port())
        return drawn.calls

    assert [call.name for call in _virtually(pay)] == ["list_ports"]


def test_no_more_calls_are_open_at_once_than_allowed() -> None:
    async def pay() -> float:
        cloud = SimulatedCloud(latency=1.0, in_flight=2)
        await asyncio.gather(*(Wishes(cloud).pay(Wishes(cloud).port()) for _ in range(6)))
        return monotonic()

    assert _virtually(pay) == 6.0  # six ports, two calls each, two at a time
