"""However many servers are being built, the cloud is asked as often as for one; each is looked at when it is done."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping

import msgspec
import pytest

from engine.clock import monotonic
from engine.clouds.openstack.waiting import WHOLE, Watch
from engine.clouds.port import TransientError
from tests.simulation.virtual_time import VirtualLoop, run


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """A server, by the cloud's clock."""

    id: str
    status: str
    created_at: str | None
    updated_at: str | None


class Nova:
    """Builds servers in so many seconds, one a tenth of a second after the other, and counts what it is asked."""

    def __init__(self, seconds: float) -> None:
        self.calls: Counter[str] = Counter()
        self.told: list[int] = []
        self._seconds = seconds
        self._begun: dict[str, float] = {}
        self._touched: dict[str, float] = {}
        self._done: dict[str, float] = {}
        self._deleted: dict[str, float] = {}

    def build(self, server_id: str) -> Server:
        """Begin to."""
        self._begun[server_id] = monotonic()
        self._done[server_id] = monotonic() + self._seconds + len(self._done) / 10
        return self._shown(server_id)

    def delete(self, server_id: str) -> None:
        """Begin to, which changes it."""
        self._deleted[server_id] = monotonic() + self._seconds
        self._touched[server_id] = monotonic()

    async def get(self, server_id: str) -> Server | None:
        """One server."""
        self.calls["get"] += 1
        return self._shown(server_id) if self._is_there(server_id) else None

    async def changed(self, since: str | None, seen: Mapping[str, Server]) -> Mapping[str, Server]:
        """What has changed."""
        self.calls["list"] += 1
        there = [self._shown(each) for each in self._done if self._is_there(each)]
        changed = {each.id: each for each in there if since is None or (each.updated_at or "") >= since}
        self.told.append(len(changed))
        before = {} if since is None else {key: each for key, each in seen.items() if self._is_there(key)}
        return before | changed

    def _is_there(self, server_id: str) -> bool:
        return monotonic() < self._deleted.get(server_id, float("inf"))

    def _shown(self, server_id: str) -> Server:
        begun, done = self._begun[server_id], self._done[server_id]
        ready = monotonic() >= done
        return Server(
            id=server_id,
            status="ACTIVE" if ready else "BUILD",
            created_at=f"{begun:09.3f}",
            updated_at=f"{self._touched.get(server_id, done if ready else begun):09.3f}",
        )


def _watch(nova: Nova, patience: float = 600.0) -> Watch[Server]:
    return Watch("server", nova.get, nova.changed, patience=patience)


def _built(number: int) -> Nova:
    async def build() -> Nova:
        nova = Nova(seconds=30.0)
        watch = _watch(nova)
        servers = [nova.build(f"server-{n}") for n in range(number)]
        ready = await asyncio.gather(*(watch.until(each, lambda it: it.status == "ACTIVE") for each in servers))
        assert all(each.status == "ACTIVE" for each in ready)
        return nova

    return run(build(), VirtualLoop())


def test_five_hundred_servers_cost_no_more_calls_in_a_second_than_one() -> None:
    one, many = _built(1), _built(500)
    seconds = 30.0, 30.0 + 500 / 10
    assert many.calls["list"] / seconds[1] <= one.calls["list"] / seconds[0]
    assert many.calls["get"] == 500


def test_all_is_listed_only_now_and_then_else_what_has_changed() -> None:
    async def wait() -> Nova:
        nova = Nova(seconds=20.0)
        for n in range(200):
            nova.build(f"old-{n}")
        await asyncio.sleep(60)
        watch = _watch(nova)
        await watch.until(nova.build("new"), lambda it: it.status == "ACTIVE")
        nova.delete("old-7")
        assert await watch.until_gone("old-7", lambda it: it.status == "ERROR") is None
        return nova

    told = run(wait(), VirtualLoop()).told
    assert sum(number > 1 for number in told) <= len(told) / WHOLE


def test_what_does_not_come_about_in_time_is_given_up() -> None:
    async def wait() -> None:
        nova = Nova(seconds=100.0)
        await _watch(nova, patience=20.0).until(nova.build("slow"), lambda it: it.status == "ACTIVE")

    with pytest.raises(TransientError) as raised:
        run(wait(), VirtualLoop())
    assert raised.value.message == "server slow was not ready within 20 s"


def test_what_goes_while_it_is_waited_for_is_told() -> None:
    async def wait() -> None:
        nova = Nova(seconds=10.0)
        server = nova.build("lost")
        nova.delete("lost")
        await _watch(nova).until(server, lambda it: it.status == "NEVER")

    with pytest.raises(TransientError) as raised:
        run(wait(), VirtualLoop())
    assert raised.value.code == "not_found"
