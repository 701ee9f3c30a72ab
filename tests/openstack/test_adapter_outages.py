"""A cloud that is away, busy or slow, or does not know us any more: what may pass is waited for, and told."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from openstack.connection import Connection

from engine.clouds.openstack import OpenStackCloud
from engine.clouds.openstack.config import Timing
from engine.clouds.poller import SHORTEST
from engine.clouds.port import PayError, TransientError, UnknownOutcomeError
from engine.pauses import Pauses
from tests.openstack.adapter import Doors, Instance, adapter, configured, with_metadata
from tests.openstack.ledger import holdings, remove
from tests.openstack.proxy import Door
from tests.support.broker import Broker, running_broker
from tests.support.eventually import soon
from tests.support.pauses import hearing

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize(("service_name", "effect"), [("network", Instance.port), ("block_storage", Instance.volume)])
async def test_a_service_that_is_down_is_transient_and_paid_when_it_is_back(
    instance: Instance, through: Doors, service_name: str, effect: Callable[[Instance], Any]
) -> None:
    await instance.cloud.catalogue()
    await through.at[service_name].close()
    with pytest.raises(TransientError) as raised:
        await instance.pay(effect(instance))
    assert not isinstance(raised.value, UnknownOutcomeError)
    assert raised.value.code == "cloud_unreachable"
    await through.at[service_name].open()
    await instance.pay(effect(instance))


async def test_a_service_that_goes_down_while_a_server_is_waited_for_is_waited_for_too(
    instance: Instance, through: Doors
) -> None:
    await instance.pay(instance.port())
    compute = through.at["compute"]
    compute.amend("POST", r"/servers$", with_metadata("server", lab__delay="4"))
    compute.plan("GET", "changes-since", Door.CUT, times=3)
    await instance.pay(instance.server())
    assert [each.status for each in compute.seen].count(0) == 3


async def test_many_servers_are_waited_for_by_the_lists_of_one(
    instance: Instance, admin: Connection, service: Connection, through: Doors
) -> None:
    compute = through.at["compute"]
    built = [Instance(service, instance.cloud) for _ in range(5)]
    compute.amend("POST", r"/servers$", with_metadata("server", lab__delay="5"), times=len(built))
    try:
        await asyncio.gather(*(each.pay(each.port()) for each in built))
        await asyncio.gather(*(each.pay(each.server()) for each in built))
    finally:
        for each in built:
            remove(admin, str(each.id))
    lists = [each.at for each in compute.seen if "changes-since" in each.path or each.path.endswith("/servers/detail")]
    assert len(lists) <= (max(lists) - min(lists)) / SHORTEST + 1
    single = [each for each in compute.seen if re.search(r"/servers/[0-9a-f-]{36}$", each.path)]
    assert len(single) == len(built)  # each once, when the list says that it is done


async def test_a_cloud_that_takes_no_more_calls_is_obeyed_by_all(
    instance: Instance, admin: Connection, service: Connection, through: Doors
) -> None:
    network = through.at["network"]
    others = [Instance(service, instance.cloud) for _ in range(5)]
    network.retry_after = 4.0
    network.plan("GET", r"/ports", Door.BUSY)
    try:
        await asyncio.gather(*(each.pay(each.port()) for each in others))
    finally:
        for each in others:
            remove(admin, str(each.id))
    refused = [each for each in network.seen if each.status == 429]
    first = min(each.at for each in refused)
    assert len(refused) == 1
    during = [each for each in network.seen if first < each.at < first + network.retry_after]
    assert len(during) < len(others)  # no more than what was on its way
    assert len(network.changes()) == len(others)


async def test_a_cloud_that_takes_no_more_calls_is_obeyed_by_the_workers_that_were_not_told(
    service: Connection, admin: Connection, through: Doors, tmp_path: Path
) -> None:
    network = through.at["network"]
    network.retry_after = 4.0
    with running_broker(tmp_path / "broker") as broker:
        async with _worker(broker, service, through) as told, _worker(broker, service, through) as other:
            heard = asyncio.Event()
            other.pauses.listen(f"neutron of {other.cloud._calls.cloud}", lambda _: heard.set())
            instances = [Instance(service, each.cloud) for each in (told, other)]
            try:
                network.plan("GET", r"/ports", Door.BUSY)
                waiting = asyncio.create_task(instances[0].pay(instances[0].port()))
                await heard.wait()
                await instances[1].pay(instances[1].port())
                await waiting
            finally:
                for each in instances:
                    remove(admin, str(each.id))
    (first,) = [each for each in network.seen if each.status == 429]
    after = [each for each in network.seen if each.at > first.at]
    assert min(each.at for each in after) >= first.at + network.retry_after
    assert len(network.changes()) == len(instances)


class _Worker(NamedTuple):
    cloud: OpenStackCloud
    pauses: Pauses


@asynccontextmanager
async def _worker(broker: Broker, service: Connection, through: Doors) -> AsyncIterator[_Worker]:
    """The adapter of a worker, which hears of pauses."""
    async with hearing(broker.url) as (_, pauses), adapter(configured(service), through, pauses) as cloud:
        yield _Worker(cloud, pauses)


async def test_an_answer_that_does_not_come_in_time_is_unknown(
    service: Connection, admin: Connection, through: Doors
) -> None:
    config = configured(service, timing=Timing(call=2.0, latest_effect=5.0))
    async with adapter(config, through) as cloud:
        slow = Instance(service, cloud)
        await slow.pay(slow.port())
        through.at["block_storage"].plan("POST", r"/volumes$", Door.NEVER)
        with pytest.raises(UnknownOutcomeError) as raised:
            await slow.pay(slow.volume())
        assert raised.value.code == "cloud_timeout"
        await slow.pay(slow.volume())
        await slow.remove()
    assert holdings(admin, str(slow.id)) == []


async def test_a_token_that_has_expired_is_renewed(instance: Instance, admin: Connection, through: Doors) -> None:
    await instance.pay(instance.port())
    assert isinstance(instance.cloud, OpenStackCloud)
    token = instance.cloud._calls._connection.auth_token
    admin.identity.delete("/auth/tokens", headers={"X-Subject-Token": token})
    soon(lambda: admin.identity.head("/auth/tokens", headers={"X-Subject-Token": token}).status_code == 404)
    await instance.pay(instance.volume())
    refused = [each for each in through.at["block_storage"].seen if each.changes and each.status == 401]
    assert len(refused) <= 1


async def test_credentials_that_are_refused_are_told(service: Connection, through: Doors) -> None:
    through.password = "wrong"
    async with adapter(configured(service), through) as cloud:
        with pytest.raises(PayError) as raised:
            await cloud.catalogue()
    assert raised.value.code == "cloud_unauthorised"
    assert "wrong" not in raised.value.message
