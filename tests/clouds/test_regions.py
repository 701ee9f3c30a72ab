"""Two clouds as the regions of one: nothing of the one is ever asked of the other, and neither holds the other up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from aggregates.catalogue import Catalogue, Flavor
from aggregates.effects import CloudEffect, ResourceAbsent
from aggregates.resources import ResourceKind
from engine.clouds.port import FinalError, TransientError
from engine.clouds.regions import Regions
from engine.clouds.simulated import CATALOGUE, Fault, SimulatedCloud
from engine.clouds.simulated.faults import Call, Kind
from engine.tasks import end
from tests.clouds.wishes import Wishes

OTHER = msgspec.structs.replace(
    CATALOGUE, flavors=(Flavor(id="small", name="small", vcpus=2, ram=1024),), hosts=("host-9",)
)
ANSWERS_NOT = Fault(kind=Kind.REFUSED, status=503)
HANGS = Fault(kind=Kind.LOST)


class There(Wishes):
    """An instance of a region: what it wants names the region, as its lifecycle does."""

    def __init__(self, cloud: Any, region: str | None) -> None:
        super().__init__(cloud)
        self.region = region

    async def pay(self, effect: CloudEffect, key: str = "key") -> dict[str, Any]:
        """Pay, and keep the facts."""
        return await super().pay(msgspec.structs.replace(effect, region=self.region), key)


class Two:
    """The clouds, and both as one."""

    def __init__(self) -> None:
        self.one = SimulatedCloud(latest_effect=timedelta(0), deadline=600)
        self.two = SimulatedCloud(catalogue=OTHER, latest_effect=timedelta(seconds=9), deadline=600)
        self.cloud = Regions(self.one, "one", {"two": self.two})

    async def held(self) -> tuple[int, int]:
        """How many resources there are in each."""
        counts = [sum(len(held) for held in (await each.contents()).values()) for each in (self.one, self.two)]
        return counts[0], counts[1]

    def breaks(self, cloud: SimulatedCloud, fault: Fault, *calls: str) -> None:
        """Every such call of the region meets the fault from now on."""
        for call in calls:
            cloud.api.faults.plan(call, fault, 1000)  # type: ignore[attr-defined]

    def mends(self, cloud: SimulatedCloud) -> None:
        """And now none does."""
        cloud.api.faults = type(cloud.api.faults)()  # type: ignore[attr-defined]


@pytest.fixture
async def both() -> AsyncIterator[Two]:
    made = Two()
    yield made
    await made.cloud.close()


async def test_what_two_regions_are_asked_for_never_mixes(both: Two) -> None:
    here, there, before = There(both.cloud, "one"), There(both.cloud, "two"), There(both.cloud, None)
    await asyncio.gather(*(each.build() for each in (here, there, before)))
    assert {entry.name for entry in both.one.ledger} >= {here.name, before.name}
    assert there.name not in {entry.name for entry in both.one.ledger}
    assert {entry.name for entry in both.two.ledger} - {str(there.id)} == {there.name}
    assert await both.held() == (6, 3)
    assert both.one.traffic.keys() == both.two.traffic.keys()
    assert both.cloud.traffic == {
        f"{service} of {name}": counts
        for name, cloud in (("one", both.one), ("two", both.two))
        for service, counts in cloud.traffic.items()
    }
    assert Regions(both.one).traffic == both.one.traffic != {}
    await there.remove()
    assert await both.held() == (6, 0)
    await here.remove()
    await before.remove()
    assert await both.held() == (0, 0)


async def test_what_is_owed_in_a_region_that_is_not_there_any_more_is_done_nowhere(both: Two) -> None:
    lost = There(both.cloud, "three")
    for effect in (lost.port(), lost.volume(), lost.no_server(), lost.no_volume()):
        with pytest.raises(FinalError, match="region three is not in the cloud's configuration") as raised:
            await lost.pay(effect)
        assert raised.value.code == "region_unknown"
    assert both.one.ledger == both.two.ledger == []
    alone = Regions(both.one)
    with pytest.raises(FinalError, match="there are: none by name"):
        await alone.pay(msgspec.structs.replace(lost.port(), region="three"), "key")


async def test_the_inventory_says_where_each_thing_is_and_it_is_removed_there(both: Two) -> None:
    here, there = There(both.cloud, None), There(both.cloud, "two")
    await here.build()
    await there.build()
    inventory = await both.cloud.inventory()
    assert (set(inventory.regions), inventory.silent) == ({None, "one", "two"}, {})
    assert {(each.instance_id, each.region) for each in inventory.resources} == {(here.id, "one"), (there.id, "two")}
    (volume,) = (each for each in inventory.resources if (each.kind, each.region) == (ResourceKind.VOLUME, "two"))
    # In the other region nothing has this id, so there it is gone, and here it stays.
    await there.pay(there.no_server())
    wanted = ResourceAbsent(instance_id=there.id, kind=volume.kind, name=volume.name, resource_id=volume.id)
    await both.cloud.pay(wanted, "key")
    assert await both.held() == (3, 2)
    await both.cloud.pay(msgspec.structs.replace(wanted, region=volume.region), "key")
    assert await both.held() == (3, 1)


async def test_the_catalogue_says_what_each_region_offers(both: Two) -> None:
    offered = await both.cloud.catalogue()
    assert (offered.region, offered.region_names, offered.whole) == ("one", ("one", "two"), True)
    assert offered.flavors == CATALOGUE.flavors
    there = offered.within("two")
    assert there is not None
    assert (there.region, there.flavors, there.hosts) == ("two", OTHER.flavors, OTHER.hosts)
    assert offered.within("one") is offered.within(None) is offered
    assert offered.within("three") is None


async def test_one_without_a_name_is_as_the_cloud_alone(both: Two) -> None:
    alone = Regions(both.one)
    assert await alone.catalogue() == CATALOGUE
    await There(alone, None).build()
    inventory = await alone.inventory()
    assert (set(inventory.regions), {each.region for each in inventory.resources}) == ({None}, {None})
    both.breaks(both.one, ANSWERS_NOT, "list_servers", "get_catalogue")
    with pytest.raises(TransientError):
        await alone.inventory()
    assert await alone.catalogue() == CATALOGUE  # what it said last
    with pytest.raises(TransientError):
        await Regions(both.one).catalogue()


async def test_names_tell_regions_apart(both: Two) -> None:
    for name in (None, "two"):
        with pytest.raises(ValueError, match="name"):
            Regions(both.one, name, {"two": both.two})
    assert both.cloud.latest_effect == timedelta(seconds=9)


@pytest.mark.parametrize("down", ["one", "two"])
async def test_of_a_region_that_does_not_answer_nothing_is_known_and_of_the_other_all(both: Two, down: str) -> None:
    clouds = {"one": both.one, "two": both.two}
    (up,) = clouds.keys() - {down}
    await There(both.cloud, "one").build()
    await There(both.cloud, "two").build()
    both.breaks(clouds[down], ANSWERS_NOT, "get_catalogue", "list_servers")
    offered = await both.cloud.catalogue()
    quiet, known = offered.within(down), offered.within(up)
    assert quiet is not None
    assert known is not None
    assert not offered.whole
    assert "503" in (quiet.unavailable or "")
    assert (quiet.flavors, quiet.quota, quiet.region) == ((), CATALOGUE.quota, down)
    assert (known.unavailable, known.datastores) == (None, CATALOGUE.datastores)
    inventory = await both.cloud.inventory()
    assert {each.region for each in inventory.resources} == {up}
    assert down not in inventory.regions
    assert (None in inventory.regions) == (up == "one")
    assert "503" in inventory.silent[down]
    both.mends(clouds[down])
    assert (await both.cloud.catalogue()).whole
    assert (await both.cloud.inventory()).regions == {None, "one", "two"}
    both.breaks(clouds[down], ANSWERS_NOT, "get_catalogue")
    assert (await both.cloud.catalogue()).whole  # as it was said last


async def test_where_none_answers_it_is_said(both: Two) -> None:
    for each in (both.one, both.two):
        both.breaks(each, ANSWERS_NOT, "get_catalogue", "list_servers")
    for asked in (both.cloud.catalogue, both.cloud.inventory):
        with pytest.raises(TransientError, match="503"):
            await asked()


async def test_one_that_hangs_holds_up_nobody_for_long_and_is_heard_when_it_answers(
    both: Two,
) -> None:
    both.cloud = Regions(both.one, "one", {"two": both.two}, says_within=0.1, short_look=0.1)
    await There(both.cloud, "one").build()
    both.breaks(both.two, Fault(kind=Kind.LATE, seconds=0.5), "get_catalogue")
    offered = await both.cloud.catalogue()
    there = offered.within("two")
    assert there is not None
    assert there.unavailable == "it has not been asked for long enough"

    async def heard() -> Catalogue:
        while not (said := await both.cloud.catalogue()).whole:
            pass
        return said

    assert (await asyncio.wait_for(heard(), 10)).within("two") is not None
    both.mends(both.two)
    both.breaks(both.two, ANSWERS_NOT, "get_catalogue")
    await both.cloud.catalogue()
    both.breaks(both.two, HANGS, "list_servers")
    inventory = await asyncio.wait_for(both.cloud.inventory(), 10)
    assert (set(inventory.regions), len(inventory.resources)) == ({None, "one"}, 3)
    assert "not said within" in inventory.silent["two"]


async def test_what_one_region_waits_for_keeps_nothing_of_the_other_waiting(both: Two) -> None:
    both.breaks(both.two, HANGS, "list_ports")
    there = There(both.cloud, "two")
    waiting = asyncio.create_task(there.pay(there.port()))
    await There(both.cloud, "one").build()
    assert not waiting.done()
    assert await both.held() == (3, 0)
    await end(waiting)
    assert await both.two.api.call(Call(name="list_volumes")) == []
