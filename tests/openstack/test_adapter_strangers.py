"""What somebody else has made under our names is neither taken nor removed; what we have made twice is."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from openstack.connection import Connection

from engine.clouds.fences import port_mac
from engine.clouds.openstack.connection import cinder
from engine.clouds.port import FinalError, TransientError
from tests.openstack.adapter import Instance
from tests.openstack.ledger import holdings, remove

pytestmark = pytest.mark.timeout(300)


# --- somebody else was there first ----------------------------------------------------------------------------------


async def test_a_strangers_volume_is_neither_adopted_nor_removed(
    instance: Instance, admin: Connection, service: Connection
) -> None:
    stranger = service.block_storage.create_volume(name=instance.name, size=1)
    error = await _refused(instance, instance.volume())
    assert error.code == "name_taken"
    await instance.pay(instance.no_volume())
    assert service.block_storage.get_volume(stranger.id).name == instance.name


async def test_a_strangers_server_is_neither_adopted_nor_removed(
    instance: Instance, admin: Connection, service: Connection
) -> None:
    stranger = service.compute.create_server(
        name=instance.name,
        flavor_id=instance.flavor("lab.tiny"),
        image_id=service.image.find_image("lab-image", ignore_missing=False).id,
        networks="none",
    )
    await instance.pay(instance.port())
    error = await _refused(instance, instance.server())
    assert error.code == "name_taken"
    await instance.pay(instance.no_server())
    assert service.compute.get_server(stranger.id).name == instance.name


async def test_a_strangers_port_of_the_name_is_neither_adopted_nor_removed(
    instance: Instance, service: Connection
) -> None:
    network = service.network.find_network("lab-net", ignore_missing=False)
    stranger = service.network.create_port(network_id=network.id, name=instance.name)
    error = await _refused(instance, instance.port())
    assert error.code == "name_taken"
    await instance.pay(instance.no_port())
    assert service.network.get_port(stranger.id).name == instance.name


async def test_a_port_with_our_mac_address_that_is_not_ours_is_not_adopted(
    instance: Instance, service: Connection
) -> None:
    network = service.network.find_network("lab-net", ignore_missing=False)
    stranger = service.network.create_port(network_id=network.id, mac_address=port_mac(instance.id))
    try:
        error = await _refused(instance, instance.port())
        assert error.code == "name_taken"
        assert stranger.id in error.message
    finally:
        service.network.delete_port(stranger.id)


async def test_a_server_cannot_take_the_port_of_another(
    instance: Instance, admin: Connection, service: Connection
) -> None:
    await instance.build()
    thief = Instance(service, instance.cloud)
    error = await _refused(thief, thief.server(port_id=instance.facts["port_id"]))
    assert error.code == "conflict"
    assert holdings(admin, str(thief.id)) == []


async def test_a_volume_is_not_attached_to_a_second_server(
    instance: Instance, admin: Connection, service: Connection
) -> None:
    await instance.build()
    thief = Instance(service, instance.cloud)
    try:
        await thief.pay(thief.port())
        await thief.pay(thief.server())
        thief.facts["volume_id"] = instance.facts["volume_id"]
        error = await _refused(thief, thief.attachment())
    finally:
        remove(admin, str(thief.id))
    assert error.code == "conflict"


async def test_what_a_server_has_is_not_removed_under_it(instance: Instance) -> None:
    await instance.build()
    for effect in (instance.no_volume(), instance.no_port()):
        with pytest.raises(TransientError) as raised:
            await instance.pay(effect)
        assert raised.value.code == "in_use"


async def test_an_attachment_to_a_server_that_is_gone_keeps_no_volume(
    instance: Instance, admin: Connection, service: Connection
) -> None:
    volume_id = (await instance.pay(instance.volume()))["volume_id"]
    connector = {"host": "fake1", "initiator": "iqn.test", "ip": "127.0.0.1", "mountpoint": "/dev/vdb", "mode": "rw"}
    block_storage = cinder(service)
    made = block_storage.create_attachment(volume_id, instance=str(uuid4()), connector=connector)
    block_storage.complete_attachment(made.id)
    assert block_storage.get_volume(volume_id).status == "in-use"
    await instance.pay(instance.no_volume())
    assert holdings(admin, str(instance.id)) == []


async def _refused(instance: Instance, effect: Any) -> FinalError:
    with pytest.raises(FinalError) as raised:
        await instance.pay(effect)
    return raised.value


# --- what was made twice --------------------------------------------------------------------------------------------


async def test_what_was_made_twice_is_removed_but_for_what_is_recorded(
    instance: Instance, admin: Connection, service: Connection
) -> None:
    await instance.pay(instance.security_group())
    await instance.pay(instance.server_group())
    await instance.build()
    mark = {"holdfast_instance": str(instance.id), "holdfast_project": "tenant"}
    doubles = {
        service.block_storage.create_volume(name=instance.name, size=1, metadata=mark).id,
        service.network.create_security_group(name=instance.group, description=f"holdfast_instance={instance.id}").id,
        service.compute.create_server_group(name=instance.name, policy="anti-affinity").id,
        service.compute.create_server(
            name=instance.name,
            flavor_id=instance.flavor("lab.tiny"),
            image_id=service.image.find_image("lab-image", ignore_missing=False).id,
            networks="none",
            metadata=mark,
        ).id,
    }
    kept = {instance.facts[name] for name in ("volume_id", "security_group_id", "server_group_id")}
    facts = await instance.pay(instance.surplus(*kept))
    assert set(facts["removed"]) == doubles
    assert {each.id for each in holdings(admin, str(instance.id))} == {
        *kept,
        instance.facts["port_id"],
        instance.facts["server_id"],
    }
