"""What an operator may configure is in what is made."""

from __future__ import annotations

import pytest
from openstack.connection import Connection

from engine.clouds.openstack.config import Networks, Servers
from tests.openstack.adapter import Doors, Instance, adapter, configured
from tests.openstack.ledger import holdings, remove
from tests.support.eventually import soon

pytestmark = pytest.mark.timeout(300)


async def test_a_port_gets_a_dns_name_where_it_is_to(service: Connection, admin: Connection, through: Doors) -> None:
    config = configured(service, networks=Networks(tenant="lab-net", dns=True))
    async with adapter(config, through) as cloud:
        named = Instance(service, cloud)
        try:
            await named.pay(named.port())
            assert service.network.get_port(named.facts["port_id"]).dns_name == named.name
        finally:
            remove(admin, str(named.id))


async def test_a_server_that_boots_from_a_volume_goes_with_it(
    service: Connection, admin: Connection, through: Doors
) -> None:
    images = configured(service).servers.images
    async with adapter(configured(service, servers=Servers(images=images, boot_volume_size=1)), through) as cloud:
        booted = Instance(service, cloud)
        try:
            await booted.build()
            shown = service.compute.get_server(booted.facts["server_id"])
            assert len(shown.attached_volumes) == 2
            await booted.pay(booted.rebuild())
            await booted.remove()
            volumes = {each["id"] for each in shown.attached_volumes}
            soon(lambda: not volumes & {each.id for each in service.block_storage.volumes()})
        finally:
            remove(admin, str(booted.id))
    assert holdings(admin, str(booted.id)) == []
