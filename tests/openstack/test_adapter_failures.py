"""What goes wrong at the cloud ends as it should: with the cloud's words, and with nothing left when it is undone."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from openstack.connection import Connection

from engine.clouds.fences import port_mac
from engine.clouds.openstack import OpenStackCloud
from engine.clouds.openstack.config import Networks, Servers, Timing
from engine.clouds.openstack.connection import cinder
from engine.clouds.poller import SHORTEST
from engine.clouds.port import FinalError, PayError, TransientError, UnknownOutcomeError
from tests.openstack.adapter import Doors, Instance, adapter, configured, doors, with_metadata
from tests.openstack.ledger import holdings, remove
from tests.openstack.proxy import Door
from tests.support.eventually import soon

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
async def through(service: Connection, tmp_path: Path) -> AsyncIterator[Doors]:
    """The doors."""
    async with doors(service, tmp_path) as made:
        yield made


@pytest.fixture
async def cloud(service: Connection, through: Doors) -> AsyncIterator[OpenStackCloud]:
    """An adapter."""
    async with adapter(configured(service), through) as made:
        yield made


@pytest.fixture
def instance(service: Connection, admin: Connection, cloud: OpenStackCloud) -> Iterator[Instance]:
    """An instance, of which nothing is left when the test is over."""
    made = Instance(service, cloud)
    yield made
    remove(admin, str(made.id))


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


# --- the cloud is away, busy or slow --------------------------------------------------------------------------------


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
