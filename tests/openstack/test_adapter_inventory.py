"""What the adapter lists of the lab, and what it removes by its id: what bears our name and our mark, no more."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from openstack.connection import Connection

from aggregates import effects
from aggregates.resources import Resource, ResourceKind, resource_name
from engine.clouds.port import FinalError
from tests.openstack.adapter import Instance, adapter, configured, doors
from tests.openstack.ledger import holdings, remove


@pytest.fixture
async def instance(service: Connection, admin: Connection, tmp_path: Path) -> AsyncIterator[Instance]:
    """An instance with something of each kind; nothing of it is left afterwards."""
    async with doors(service, tmp_path) as through, adapter(configured(service), through) as cloud:
        made = Instance(service, cloud)
        try:
            await made.build_all()
            yield made
        finally:
            remove(admin, str(made.id))


async def listed(instance: Instance) -> dict[ResourceKind, Resource]:
    found = [each for each in (await instance.cloud.inventory()).resources if each.instance_id == instance.id]
    assert len({each.kind for each in found}) == len(found)
    return {each.kind: each for each in found}


def gone(instance: Instance, kind: ResourceKind, resource_id: str, name: str | None = None) -> effects.ResourceAbsent:
    return effects.ResourceAbsent(
        instance_id=instance.id, kind=kind, name=name or resource_name(instance.id, kind), resource_id=resource_id
    )


@pytest.mark.timeout(300)
async def test_all_of_an_instance_is_listed_and_can_be_removed_by_its_id(instance: Instance) -> None:
    found = await listed(instance)
    assert {kind: each.id for kind, each in found.items()} == {
        kind: instance.facts[f"{kind}_id"] for kind in ResourceKind
    }
    assert {kind: each.name for kind, each in found.items()} == {
        kind: resource_name(instance.id, kind) for kind in ResourceKind
    }
    server, port, volume = (found[kind] for kind in (ResourceKind.SERVER, ResourceKind.PORT, ResourceKind.VOLUME))
    assert (server.status, server.flavor_id, server.host) == (
        "ACTIVE", instance.flavor("lab.tiny"), instance.facts["host"],
    )  # fmt: skip
    assert (volume.status, volume.size, volume.server_id, volume.project) == ("in-use", 1, server.id, "tenant")
    assert port.server_id == server.id
    assert found[ResourceKind.FLOATING_ADDRESS].port_id == port.id
    for kind in ResourceKind:
        for _ in range(2):
            await instance.pay(gone(instance, kind, found[kind].id))
    assert await listed(instance) == {}


@pytest.mark.timeout(300)
async def test_an_address_that_somebody_has_led_elsewhere_is_listed_as_it_is(
    instance: Instance, service: Connection
) -> None:
    network = service.network
    own = network.get_port(instance.facts["port_id"])
    other = network.create_port(network_id=own.network_id, name=f"other-{instance.id}")
    for elsewhere in (other.id, None):
        network.update_ip(instance.facts["floating_address_id"], port_id=elsewhere)
        assert (await listed(instance))[ResourceKind.FLOATING_ADDRESS].port_id == elsewhere


@pytest.mark.timeout(300)
async def test_what_has_our_name_and_not_our_mark_is_nobodys_and_stays(
    instance: Instance, service: Connection, admin: Connection
) -> None:
    stranger = service.block_storage.create_volume(name=instance.name, size=1)
    try:
        shown = [each for each in (await instance.cloud.inventory()).resources if each.id == stranger.id]
        assert [(each.name, each.instance_id) for each in shown] == [(instance.name, None)]
        with pytest.raises(FinalError) as raised:
            await instance.pay(gone(instance, ResourceKind.VOLUME, stranger.id))
        assert raised.value.code == "conflict"
        assert stranger.id in {each.id for each in holdings(admin, instance.name)}
    finally:
        remove(admin, instance.name)


@pytest.mark.timeout(300)
async def test_what_bears_another_name_stays(instance: Instance) -> None:
    other: UUID = uuid4()
    for kind in ResourceKind:
        with pytest.raises(FinalError) as raised:
            await instance.pay(gone(instance, kind, instance.facts[f"{kind}_id"], f"holdfast-{other}"))
        assert raised.value.code == "conflict"
    assert len(await listed(instance)) == len(ResourceKind)
