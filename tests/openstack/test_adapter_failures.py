"""What goes wrong at the cloud ends as it should: with the cloud's words, and with nothing left when it is undone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import uuid4

import pytest
from openstack.connection import Connection

from engine.clouds.openstack.config import Networks
from engine.clouds.port import FinalError, PayError, TransientError
from tests.openstack.adapter import Doors, Instance, adapter, configured, with_metadata
from tests.openstack.ledger import holdings, remove

pytestmark = pytest.mark.timeout(300)


async def _ends(instance: Instance, admin: Connection, effect: Any) -> PayError:
    """The error with which the effect ends, however often it is tried; then nothing is left by what undoes it."""
    error: PayError = TransientError("never_tried", "")
    for _ in range(10):
        with pytest.raises(PayError) as raised:
            await instance.pay(effect)
        error = raised.value
        if isinstance(error, FinalError):
            break
    await instance.remove()
    assert holdings(admin, str(instance.id)) == []
    return error


# --- the cloud has no room, or lacks what is needed -----------------------------------------------------------------


@pytest.fixture
async def poor(service: Connection, admin: Connection, through: Doors) -> AsyncIterator[Instance]:
    """An instance in a project of its own, of the same user, which has one port and may have nothing else."""
    identity: Any = admin.identity
    user, present = service.current_user_id, service.current_project_id
    made = identity.create_project(name=f"test-{uuid4()}", domain_id="default")
    for each in list(identity.role_assignments(user_id=user, scope_project_id=present)):
        identity.assign_project_role_to_user(made.id, user, each.role["id"])
    through.project = made.name
    async with adapter(configured(service), through) as cloud:
        instance = Instance(service, cloud)
        await instance.pay(instance.port())
        admin.compute.update_quota_set(made.id, instances=0)
        admin.block_storage.update_quota_set(made.id, volumes=0)
        admin.network.update_quota(made.id, ports=1, security_groups=1, floatingip=0)
        yield instance
    remove(admin, str(instance.id))
    for group in list(admin.network.security_groups(project_id=made.id)):
        admin.network.delete_security_group(group.id)
    admin.network.delete_quota(made.id)
    admin.compute.revert_quota_set(made.id)
    admin.block_storage.revert_quota_set(made.id)
    identity.delete_project(made.id)


@pytest.mark.parametrize(
    "effect",
    [Instance.management_port, Instance.security_group, Instance.address, Instance.volume, Instance.server],
    ids=["port", "security group", "floating address", "volume", "server"],
)
async def test_a_full_quota_is_final(poor: Instance, admin: Connection, effect: Callable[[Instance], Any]) -> None:
    error = await _ends(poor, admin, effect(poor))
    assert error.code == "quota_exceeded"
    assert "req-" in error.message


async def test_no_valid_host_is_final_and_told_in_the_schedulers_words(instance: Instance, admin: Connection) -> None:
    await instance.pay(instance.port())
    error = await _ends(instance, admin, instance.server(flavor_id=instance.flavor("lab.impossible")))
    assert error.code == "no_valid_host"
    assert "No valid host was found" in error.message
    assert "req-" in error.message


async def test_a_resize_that_finds_no_host_leaves_the_server_as_it_was(instance: Instance, admin: Connection) -> None:
    await instance.build()
    with pytest.raises(FinalError) as raised:
        await instance.pay(instance.resize("lab.impossible"))
    assert raised.value.code == "no_valid_host"
    await instance.pay(instance.revert())
    await instance.remove()
    assert holdings(admin, str(instance.id)) == []


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"datastore_version": "99"}, "image_missing"),
        ({"image_id": "00000000-0000-4000-8000-000000000000"}, "invalid_argument"),
        ({"flavor_id": "00000000-0000-4000-8000-000000000000"}, "invalid_argument"),
        ({"availability_zone": "nowhere"}, "invalid_argument"),
        ({"port_id": "00000000-0000-4000-8000-000000000000"}, "invalid_argument"),
    ],
)
async def test_what_a_server_lacks_is_final(
    instance: Instance, admin: Connection, given: dict[str, str], code: str
) -> None:
    await instance.pay(instance.port())
    error = await _ends(instance, admin, instance.server(**given))
    assert error.code == code


async def test_a_network_that_is_gone_is_final(service: Connection, admin: Connection, through: Doors) -> None:
    config = configured(service, networks=Networks(tenant="gone"))
    async with adapter(config, through) as cloud:
        error = await _ends(lost := Instance(service, cloud), admin, lost.port())
    assert error.code == "cloud_misconfigured"
    assert "there is no network gone" in error.message


async def test_a_network_that_gives_no_address_is_final(service: Connection, admin: Connection, through: Doors) -> None:
    network = service.network.create_network(name=f"test-{uuid4()}")
    try:
        async with adapter(configured(service, networks=Networks(tenant=network.id)), through) as cloud:
            error = await _ends(bare := Instance(service, cloud), admin, bare.port())
    finally:
        service.network.delete_network(network.id)
    assert error.code == "no_address"


# --- the cloud breaks what it was told to do ------------------------------------------------------------------------


async def test_a_server_that_breaks_is_final_with_novas_words(
    instance: Instance, admin: Connection, through: Doors
) -> None:
    await instance.pay(instance.port())
    through.at["compute"].amend("POST", r"/servers$", with_metadata("server", lab__fail="spawn"))
    error = await _ends(instance, admin, instance.server())
    assert error.code in ("cloud_error", "no_valid_host")  # Nova tries other hosts, and is left without one
    assert "is in status ERROR: " in error.message
    assert "req-" in error.message


async def test_a_volume_that_breaks_is_final(instance: Instance, admin: Connection, through: Doors) -> None:
    through.at["block_storage"].amend("POST", r"/volumes$", with_metadata("volume", lab__fail="create"))
    error = await _ends(instance, admin, instance.volume())
    assert error.code == "cloud_error"
    assert "is in status error" in error.message


async def test_an_attachment_that_breaks_is_told_and_tried_again(
    instance: Instance, admin: Connection, through: Doors
) -> None:
    for effect in (instance.port, instance.volume):
        await instance.pay(effect())
    through.at["compute"].amend("POST", r"/servers$", with_metadata("server", lab__fail="attach_volume"))
    await instance.pay(instance.server())
    with pytest.raises(TransientError) as raised:
        await instance.pay(instance.attachment())
    assert "was not attached" in raised.value.message
    assert "lab:fail asked attach_volume" in raised.value.message
    server_id = instance.facts["server_id"]
    admin.compute.delete_server_metadata(server_id, ["lab:fail"])
    await instance.pay(instance.attachment())
    admin.compute.set_server_metadata(server_id, **{"lab:fail": "detach_volume"})
    with pytest.raises(TransientError) as kept:
        await instance.pay(instance.detachment())
    assert "was not detached" in kept.value.message
    admin.compute.delete_server_metadata(server_id, ["lab:fail"])
    await instance.pay(instance.detachment())


@pytest.mark.parametrize(
    ("fails", "effect"),
    [("power_off", Instance.stop), ("spawn", Instance.rebuild), ("resize", lambda i: i.resize("lab.small"))],
)
async def test_an_action_that_breaks_is_told_in_novas_words(
    instance: Instance, admin: Connection, fails: str, effect: Callable[[Instance], Any]
) -> None:
    await instance.build()
    admin.compute.set_server_metadata(instance.facts["server_id"], **{"lab:fail": fails})
    with pytest.raises(FinalError) as raised:
        await instance.pay(effect(instance))
    assert f"lab:fail asked {fails}" in raised.value.message or "No valid host" in raised.value.message
    assert "req-" in raised.value.message


async def test_an_extension_that_breaks_is_final(instance: Instance, through: Doors) -> None:
    through.at["block_storage"].amend("POST", r"/volumes$", with_metadata("volume", lab__fail="extend"))
    await instance.pay(instance.volume())
    with pytest.raises(FinalError) as raised:
        await instance.pay(instance.extend(2))
    assert "error_extending" in raised.value.message


async def test_a_volume_that_cannot_be_deleted_says_so(instance: Instance, admin: Connection, through: Doors) -> None:
    through.at["block_storage"].amend("POST", r"/volumes$", with_metadata("volume", lab__fail="delete"))
    volume_id = (await instance.pay(instance.volume()))["volume_id"]
    with pytest.raises(PayError) as raised:
        await instance.pay(instance.no_volume())
    assert "error_deleting" in raised.value.message
    with pytest.raises(FinalError) as again:
        await instance.pay(instance.no_volume())
    assert f"openstack volume set --state error {volume_id}" in again.value.message
    admin.block_storage.delete_volume_metadata(volume_id, ["lab:fail"])
    admin.block_storage.reset_volume_status(volume_id, "error")
    await instance.pay(instance.no_volume())
    assert holdings(admin, str(instance.id)) == []
