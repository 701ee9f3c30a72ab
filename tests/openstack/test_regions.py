"""Several regions of Keystone's catalogue in one adapter: by the requests that each one's endpoints see.

Two regions are registered for each test, each with endpoints of its own before the lab's services. What one holds the
other holds, too, since the services behind are the same; what tells them apart is who was asked.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from openstack.config import OpenStackConfig
from openstack.connection import Connection
from openstack.identity.v3._proxy import Proxy as Keystone

from aggregates.effects import CloudEffect
from engine.clouds.openstack import CloudConfig, open_regions
from engine.clouds.openstack.check import check
from engine.clouds.openstack.config import Region
from engine.clouds.port import FinalError, TransientError
from engine.clouds.regions import Regions
from engine.guest.datastores.catalogue import KNOWN
from tests.openstack.adapter import SERVICES, Enrolment, Instance, configured
from tests.openstack.ledger import holdings, remove
from tests.openstack.proxy import Proxy


class Place:
    """A region in Keystone's catalogue, and the doors that its endpoints are."""

    def __init__(self, name: str, proxies: dict[str, Proxy]) -> None:
        self.name = name
        self.at = proxies

    @property
    def asked(self) -> int:
        """How many requests have come to it."""
        return sum(len(proxy.seen) for proxy in self.at.values())

    def changes(self) -> list[str]:
        """What it was asked to change, and did not refuse."""
        return [f"{each.method} {each.path}" for proxy in self.at.values() for each in proxy.changes()]

    def heard_of(self, resource_id: str) -> bool:
        """Whether a request named the resource, or a list of it was changed by its id."""
        return any(resource_id in each.path for proxy in self.at.values() for each in proxy.seen if each.changes)

    async def down(self) -> None:
        """Nothing of it answers."""
        for proxy in self.at.values():
            await proxy.close()

    async def up(self) -> None:
        """It answers again, at the same endpoints."""
        for proxy in self.at.values():
            await proxy.open()


@contextmanager
def registered(admin: Connection, name: str, urls: dict[str, str]) -> Iterator[None]:
    """Keystone's catalogue has the region, with these endpoints by type of service."""
    keystone = admin.identity
    assert isinstance(keystone, Keystone)
    services = {each.type: each.id for each in keystone.services()}
    region = keystone.create_region(id=name)
    endpoints = []
    try:
        for kind, url in urls.items():
            made = keystone.create_endpoint(service_id=services[kind], interface="public", url=url, region_id=name)
            endpoints.append(made)
        yield
    finally:
        for endpoint in endpoints:
            keystone.delete_endpoint(endpoint)
        keystone.delete_region(region)


@asynccontextmanager
async def place(admin: Connection, service: Connection, word: str) -> AsyncIterator[Place]:
    """A region of its own."""
    urls = {kind: str(service.endpoint_for(kind, interface="public")) for kind in (*SERVICES.values(), "image")}
    proxies = {kind: Proxy(url.rstrip("/")) for kind, url in urls.items()}
    made = Place(f"{word}-{uuid4()}", proxies)
    await made.up()
    try:
        with registered(admin, made.name, {kind: proxy.url for kind, proxy in proxies.items()}):
            yield made
    finally:
        await made.down()


@pytest.fixture
async def one(admin: Connection, service: Connection) -> AsyncIterator[Place]:
    """The region at the top."""
    async with place(admin, service, "one") as made:
        yield made


@pytest.fixture
async def two(admin: Connection, service: Connection) -> AsyncIterator[Place]:
    """The further one."""
    async with place(admin, service, "two") as made:
        yield made


@pytest.fixture
def config(service: Connection, one: Place, two: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CloudConfig:
    """Of both, which are one entry of clouds.yaml."""
    auth = OpenStackConfig().get_one(cloud="lab-service").config["auth"]
    path = tmp_path / "clouds.json"
    path.write_text(json.dumps({"clouds": {"both": {"auth": auth, "regions": [one.name, two.name]}}}))
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(path))
    return configured(service, cloud="both", region=one.name, regions={two.name: Region()})


@asynccontextmanager
async def process(config: CloudConfig) -> AsyncIterator[Regions]:
    """What a process that begins has."""
    cloud = open_regions(config, enrolment=Enrolment(), datastores=KNOWN)
    try:
        yield cloud
    finally:
        await cloud.close()


class There(Instance):
    """An instance of a region: what it wants names the region, as its lifecycle does."""

    def __init__(self, service: Connection, cloud: Regions, region: str | None) -> None:
        super().__init__(service, cloud)
        self.region = region

    async def pay(self, effect: CloudEffect, key: str = "key") -> dict[str, Any]:
        """Pay, and keep the facts."""
        return await super().pay(msgspec.structs.replace(effect, region=self.region), key)

    @property
    def ids(self) -> list[str]:
        """Of what it has, that can be removed by its id."""
        return [self.facts["server_id"], self.facts["volume_id"], self.facts["port_id"]]


def made_by(place: Place) -> list[str]:
    """What was made by its endpoints, by the last word of the path; tags and attachments are told apart by it."""
    kinds = [each.partition(" ")[2].rstrip("/").rpartition("/")[2] for each in place.changes() if "POST " in each]
    return sorted(each.removesuffix("s").removesuffix(".json") for each in kinds)


@pytest.mark.timeout(300)
async def test_each_instance_is_made_and_removed_by_the_endpoints_of_its_region(
    service: Connection, admin: Connection, config: CloudConfig, one: Place, two: Place
) -> None:
    async with process(config) as cloud:
        there, here = There(service, cloud, two.name), There(service, cloud, one.name)
        try:
            await there.build()
            assert (one.asked, {"port", "server", "volume"} <= set(made_by(two))) == (0, True)
            asked = len(two.changes())
            await here.build()
            assert (len(two.changes()), {"port", "server", "volume"} <= set(made_by(one))) == (asked, True)
            # What a process has of each does not depend on whom it asked first, nor does that of the next one.
            async with process(config) as anew:
                here.cloud = there.cloud = anew
                before = Instance(service, anew)  # of what names no region
                await asyncio.gather(here.pay(here.stop()), there.pay(there.stop()), before.pay(before.volume()))
                await asyncio.gather(here.remove(), there.remove(), before.remove())
            assert [each for each in there.ids if not two.heard_of(each) or one.heard_of(each)] == []
            assert [each for each in here.ids if not one.heard_of(each) or two.heard_of(each)] == []
            assert one.heard_of(before.facts["volume_id"])
            assert [holdings(admin, str(each.id)) for each in (here, there, before)] == [[], [], []]
        finally:
            remove(admin, str(there.id))
            remove(admin, str(here.id))


@pytest.mark.timeout(300)
async def test_a_region_that_is_down_holds_up_nothing_of_the_other(
    service: Connection, admin: Connection, config: CloudConfig, one: Place, two: Place
) -> None:
    async with process(config) as cloud:
        here, there = There(service, cloud, one.name), There(service, cloud, two.name)
        try:
            offered = await cloud.catalogue()
            assert (offered.region_names, offered.whole) == ((one.name, two.name), True)
            await there.build()
            seen = await cloud.inventory()
            assert {each.region for each in seen.resources if each.instance_id == there.id} == {one.name, two.name}
            await two.down()
            await here.build()
            with pytest.raises(TransientError) as raised:
                await there.pay(there.stop())
            assert raised.value.code == "cloud_unreachable"
            known = (await cloud.catalogue()).within(two.name)
            assert known is not None
            assert known.flavors == offered.flavors  # as it said last
            seen = await cloud.inventory()
            assert {each.region for each in seen.resources} == {one.name}
            assert (set(seen.regions), set(seen.silent)) == ({None, one.name}, {two.name})
            async with process(config) as anew:
                unknown = (await anew.catalogue()).within(two.name)
                assert unknown is not None
                assert "cloud_unreachable" in (unknown.unavailable or "")
            await two.up()
            await there.pay(there.stop())
            assert (await cloud.inventory()).regions == {None, one.name, two.name}
        finally:
            remove(admin, str(there.id))
            remove(admin, str(here.id))


@pytest.mark.timeout(300)
async def test_a_region_that_is_configured_no_more_is_asked_for_nothing(
    service: Connection, config: CloudConfig, one: Place, two: Place
) -> None:
    async with process(msgspec.structs.replace(config, regions={})) as cloud:
        lost = There(service, cloud, two.name)
        for effect in (lost.port(), lost.volume(), lost.no_port(), lost.no_volume()):
            with pytest.raises(FinalError) as raised:
                await lost.pay(effect)
            assert raised.value.code == "region_unknown"
    assert one.asked == two.asked == 0


async def test_the_check_looks_at_each_region_and_tells_them_apart(config: CloudConfig, one: Place, two: Place) -> None:
    found = await asyncio.to_thread(lambda: list(check(config, KNOWN, tries=False)))
    for name in (one.name, two.name):
        about = {each.check: each.ok for each in found if each.check.startswith(f"{name}: ")}
        assert about[f"{name}: credentials"]
        assert about[f"{name}: compute"]
        assert about[f"{name}: flavors"]
    lacked = {each.check for each in found if each.needed and not each.ok}
    assert len([each for each in found if each.check == "timing"]) == 1
    await two.down()
    found = await asyncio.to_thread(lambda: list(check(config, KNOWN, tries=False)))
    lacks = {each.check for each in found if each.needed and not each.ok} - lacked
    assert lacks >= {f"{two.name}: compute", f"{two.name}: flavors", f"{two.name}: images"}
    assert not [each for each in lacks if each.startswith(one.name)]
    await two.up()
