"""What every cloud must do. A cloud that passes this can stand behind the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import copy_context
from uuid import uuid4

import pytest

from aggregates.effects import CloudEffect
from aggregates.resources import ResourceKind
from engine.clouds.port import Facts, FinalError, TransientError, only_looks
from tests.clouds.wishes import Cloud, Wishes

BUILT = (ResourceKind.SERVER, ResourceKind.PORT, ResourceKind.VOLUME)  # what an instance has on every cloud


async def left(cloud: Cloud) -> dict[str, int]:
    """How many there are of each kind of which there is any."""
    return {kind: len(found) for kind, found in (await cloud.contents()).items() if found}


@pytest.fixture
async def built(cloud: Cloud) -> Wishes:
    """An instance with server, port and volume."""
    wishes = Wishes(cloud)
    await wishes.build()
    return wishes


async def test_it_offers_what_it_can_make(cloud: Cloud) -> None:
    catalogue = await cloud.catalogue()
    assert catalogue.flavor("small") is not None
    assert len(catalogue.hosts) == 3
    assert "az-1" in catalogue.availability_zones


async def test_ensuring_twice_makes_one(cloud: Cloud) -> None:
    wishes = Wishes(cloud)
    for effect in (wishes.port, wishes.volume, wishes.server):
        first = await wishes.pay(effect())
        assert await wishes.pay(effect()) == first
    for _ in range(2):
        assert await wishes.pay(wishes.attachment()) == {}
    assert await left(cloud) == {"ports": 1, "volumes": 1, "servers": 1}


async def test_racing_ensures_make_one(cloud: Cloud) -> None:
    wishes = Wishes(cloud)
    for effect in (wishes.port, wishes.volume, wishes.server):
        answers = await asyncio.gather(*(wishes.pay(effect()) for _ in range(8)))
        assert all(answer == answers[0] for answer in answers)
    assert await left(cloud) == {"ports": 1, "volumes": 1, "servers": 1}


async def test_every_port_has_an_address_of_its_own(cloud: Cloud) -> None:
    answers = await asyncio.gather(*(cloud.pay(Wishes(cloud).port(), "key") for _ in range(20)))
    assert len({answer["address"] for answer in answers}) == 20
    assert len({answer["port_id"] for answer in answers}) == 20


async def test_a_built_server_is_active_on_a_known_host(built: Wishes) -> None:
    shown = await built.shown()
    assert shown["status"] == "ACTIVE"
    assert shown["flavor_id"] == "small"
    assert shown["host"] == built.facts["host"] in (await built.cloud.catalogue()).hosts


async def test_absent_leaves_nothing(built: Wishes) -> None:
    await built.remove()
    assert await left(built.cloud) == {}
    await built.remove()
    assert await left(built.cloud) == {}


async def test_absent_finds_by_name_what_no_id_was_recorded_for(built: Wishes) -> None:
    built.facts.clear()
    await built.remove()
    assert await left(built.cloud) == {}


async def test_absent_of_nothing_is_fine(cloud: Cloud) -> None:
    wishes = Wishes(cloud)
    await wishes.remove()
    wishes.facts = {"server_id": str(uuid4()), "port_id": str(uuid4()), "volume_id": str(uuid4())}
    await wishes.remove()
    assert await left(cloud) == {}


async def test_a_name_can_be_had_again_after_its_removal(built: Wishes) -> None:
    before = dict(built.facts)
    await built.remove()
    built.facts.clear()
    await built.build()
    assert built.facts["server_id"] != before["server_id"]
    assert built.facts["volume_id"] != before["volume_id"]


async def test_a_server_cannot_take_the_port_of_another(built: Wishes) -> None:
    thief = Wishes(built.cloud)
    with pytest.raises(FinalError) as raised:
        await thief.pay(thief.server(port_id=built.facts["port_id"]))
    assert raised.value.code == "conflict"
    assert list((await built.cloud.contents())["servers"]) == [built.facts["server_id"]]


async def test_two_servers_that_race_for_a_port_become_one(cloud: Cloud) -> None:
    first, second = Wishes(cloud), Wishes(cloud)
    port_id = (await first.pay(first.port()))["port_id"]
    answers = await asyncio.gather(
        first.pay(first.server(port_id=port_id)), second.pay(second.server(port_id=port_id)), return_exceptions=True
    )
    assert sorted(isinstance(answer, FinalError) for answer in answers) == [False, True]
    assert len((await cloud.contents())["servers"]) == 1


async def test_a_volume_cannot_be_attached_to_two_servers(built: Wishes) -> None:
    other = Wishes(built.cloud)
    await other.pay(other.port())
    await other.pay(other.server())
    other.facts["volume_id"] = built.facts["volume_id"]
    with pytest.raises(FinalError):
        await other.pay(other.attachment())


async def test_what_a_server_has_is_not_removed_under_it(built: Wishes) -> None:
    for effect in (built.no_volume(), built.no_port()):
        with pytest.raises(TransientError) as raised:
            await built.pay(effect)
        assert raised.value.code == "in_use"


async def test_a_server_that_is_gone_frees_port_and_volume(built: Wishes) -> None:
    await built.pay(built.no_server())
    other = Wishes(built.cloud)
    await other.pay(other.server(port_id=built.facts["port_id"]))
    other.facts["volume_id"] = built.facts["volume_id"]
    await other.pay(other.attachment())


async def test_volumes_only_grow(built: Wishes) -> None:
    for size, expected in ((2, 2), (2, 2), (1, 2), (3, 3)):
        await built.pay(built.extend(size))
        volumes = (await built.cloud.contents())["volumes"]
        assert volumes[built.facts["volume_id"]]["size"] == expected
    await built.pay(built.volume(1))
    with pytest.raises(FinalError):
        await built.pay(built.volume(4))


async def test_a_resize_awaits_confirmation(built: Wishes) -> None:
    for _ in range(2):
        await built.pay(built.resize("medium"))
        assert (await built.shown())["status"] == "VERIFY_RESIZE"
    for _ in range(2):
        await built.pay(built.confirm())
    shown = await built.shown()
    assert (shown["status"], shown["flavor_id"]) == ("ACTIVE", "medium")


async def test_a_resize_can_be_reverted(built: Wishes) -> None:
    await built.pay(built.resize("medium"))
    for _ in range(2):
        await built.pay(built.revert())
    shown = await built.shown()
    assert (shown["status"], shown["flavor_id"], shown["host"]) == ("ACTIVE", "small", built.facts["host"])


async def test_reverting_what_never_happened_is_fine(built: Wishes) -> None:
    await built.pay(built.revert())
    assert (await built.shown())["status"] == "ACTIVE"


async def test_a_migration_goes_to_another_host(built: Wishes) -> None:
    first = await built.pay(built.migrate())
    assert first["new_host"] != built.facts["host"]
    assert await built.pay(built.migrate()) == first
    shown = await built.shown()
    assert (shown["status"], shown["host"]) == ("VERIFY_RESIZE", first["new_host"])
    await built.pay(built.confirm())
    assert (await built.shown())["status"] == "ACTIVE"


async def test_a_migration_goes_to_the_host_wanted(built: Wishes) -> None:
    wanted = next(h for h in reversed((await built.cloud.catalogue()).hosts) if h != built.facts["host"])
    assert await built.pay(built.migrate(wanted)) == {"new_host": wanted}
    assert (await built.shown())["host"] == wanted


async def test_a_migration_can_be_reverted(built: Wishes) -> None:
    await built.pay(built.migrate())
    for _ in range(2):
        await built.pay(built.revert())
    shown = await built.shown()
    assert (shown["status"], shown["host"]) == ("ACTIVE", built.facts["host"])


async def test_what_makes_no_sense_is_a_final_error(built: Wishes) -> None:
    other = Wishes(built.cloud)
    await other.pay(other.port())
    unknown = Wishes(built.cloud)
    unknown.facts = {"server_id": str(uuid4()), "volume_id": str(uuid4()), "host": "host-1"}
    for wishes, effect in (
        (built, built.migrate("nowhere")),
        (built, built.migrate(built.facts["host"])),
        (built, built.resize("colossal")),
        (built, built.revert(host="nowhere")),
        (other, other.server(flavor_id="colossal")),
        (other, other.server(availability_zone="az-9")),
        (other, other.server(port_id=str(uuid4()))),
        (unknown, unknown.extend(2)),
        (unknown, unknown.attachment()),
        (unknown, unknown.stop()),
        (unknown, unknown.migrate()),
    ):
        with pytest.raises(FinalError) as raised:
            await wishes.pay(effect)
        assert raised.value.code in {"invalid_argument", "not_found"}
    assert len((await built.cloud.contents())["servers"]) == 1


Step = Callable[[Wishes], CloudEffect]

# Effects that may be looked at: what is paid before one can be looked for in vain, and the effect.
LOOKED_AT: dict[str, tuple[tuple[Step, ...], Step]] = {
    "attachment": ((Wishes.port, Wishes.volume, Wishes.server), Wishes.attachment),
    "extend": ((), lambda wishes: wishes.extend(2)),
    "reboot": ((), Wishes.reboot),
    "confirm": ((lambda wishes: wishes.resize("medium"),), Wishes.confirm),
    "revert": ((lambda wishes: wishes.resize("medium"),), Wishes.revert),
    "stop": ((), Wishes.stop),
    "start": ((Wishes.stop,), Wishes.start),
    "no server": ((), Wishes.no_server),
    "no port": ((Wishes.no_server,), Wishes.no_port),
    "no volume": ((Wishes.no_server,), Wishes.no_volume),
}


async def _look(wishes: Wishes, effect: CloudEffect) -> Facts:
    looking = copy_context()
    looking.run(only_looks.set, True)
    return await asyncio.create_task(wishes.cloud.pay(effect, "looked at"), context=looking)


@pytest.mark.parametrize("name", LOOKED_AT)
async def test_whoever_may_only_look_changes_nothing_and_finds_what_is_there(cloud: Cloud, name: str) -> None:
    wishes = Wishes(cloud)
    before, effect = LOOKED_AT[name]
    if name != "attachment":
        await wishes.build()
    for each in before:
        await wishes.pay(each(wishes), "before")
    inventory = await cloud.contents()
    with pytest.raises(FinalError) as raised:
        await _look(wishes, effect(wishes))
    assert raised.value.code == "not_carried_out"
    assert await cloud.contents() == inventory
    facts = await wishes.pay(effect(wishes), "looked at")
    inventory = await cloud.contents()
    assert await _look(wishes, effect(wishes)) == facts
    assert await cloud.contents() == inventory


async def test_stop_and_start(built: Wishes) -> None:
    for effect, status in ((built.stop(), "SHUTOFF"), (built.start(), "ACTIVE")):
        for _ in range(2):
            await built.pay(effect)
            assert (await built.shown())["status"] == status


async def test_a_reboot_leaves_the_server_active(built: Wishes) -> None:
    await built.pay(built.stop())
    for hard in (False, True):
        await built.pay(built.reboot(hard=hard), f"reboot {hard}")
        assert (await built.shown())["status"] == "ACTIVE"


async def test_a_server_made_anew_keeps_its_id_its_port_and_its_volume(built: Wishes) -> None:
    before = await built.shown()
    for key in ("rebuild", "rebuild", "again"):
        await built.pay(built.rebuild(), key)
        shown = await built.shown()
        assert {name: shown[name] for name in ("name", "host", "port_id", "status")} == {
            name: before[name] for name in ("name", "host", "port_id", "status")
        }
    with pytest.raises(TransientError):
        await built.pay(built.no_volume())


async def test_a_rebuild_from_an_image_that_there_is_not_is_refused(built: Wishes) -> None:
    with pytest.raises(FinalError):
        await built.pay(built.rebuild("colossal"))
    assert (await built.shown())["status"] == "ACTIVE"


async def test_the_inventory_shows_what_there_is_and_whose_it_is(built: Wishes) -> None:
    found = {each.kind: each for each in (await built.cloud.inventory()).resources}
    assert len(found) == len((await built.cloud.inventory()).resources) == len(BUILT)
    server, port, volume = (found[kind] for kind in BUILT)
    assert {(each.name, each.instance_id) for each in found.values()} == {(built.name, built.id)}
    assert [server.id, port.id, volume.id] == [built.facts[f"{each}_id"] for each in ("server", "port", "volume")]
    assert (server.status, server.flavor_id, server.host) == ("ACTIVE", "small", built.facts["host"])
    assert (volume.status, volume.size, volume.server_id) == ("in-use", 1, server.id)
    assert port.server_id == server.id
    await built.remove()
    assert list((await built.cloud.inventory()).resources) == []


async def test_what_is_removed_by_its_id_is_gone_and_the_rest_stays(built: Wishes) -> None:
    other = Wishes(built.cloud)
    await other.build()
    for kind in BUILT:
        for _ in range(2):
            await built.pay(built.gone(kind))
    assert {each.instance_id for each in (await built.cloud.inventory()).resources} == {other.id}
    assert len((await built.cloud.inventory()).resources) == len(BUILT)


@pytest.mark.parametrize("kind", BUILT)
async def test_what_bears_another_name_is_not_removed_by_its_id(built: Wishes, kind: ResourceKind) -> None:
    stranger = Wishes(built.cloud)
    stranger.facts = built.facts
    with pytest.raises(FinalError) as raised:
        await stranger.pay(stranger.gone(kind))
    assert raised.value.code == "conflict"
    assert len((await built.cloud.inventory()).resources) == len(BUILT)


@pytest.mark.parametrize("kind", [ResourceKind.PORT, ResourceKind.VOLUME])
async def test_what_a_server_has_is_not_removed_under_it_by_its_id(built: Wishes, kind: ResourceKind) -> None:
    with pytest.raises(TransientError) as raised:
        await built.pay(built.gone(kind))
    assert raised.value.code == "in_use"
