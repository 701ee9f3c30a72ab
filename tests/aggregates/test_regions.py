"""Where an instance lies is chosen once and recorded; all that it is offered or owed from then on is that region's."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import msgspec
import pytest

from aggregates.base import Refusal
from aggregates.catalogue import Catalogue
from aggregates.commands import (
    Command,
    CreateInstance,
    DeleteInstance,
    Migrate,
    Rebuild,
    ResizeFlavor,
    ResizeVolume,
    Restart,
    UpdateAccess,
)
from aggregates.effects import CloudEffect
from aggregates.instance import Instance
from aggregates.instance_events import InstanceRequested
from aggregates.observation import adopt, drift, orphans, surplus
from aggregates.resources import Resource, ResourceKind, resource_name
from tests.support.given import CATALOGUE, REGIONS, YIELDS, context

TWO = REGIONS.regions["two"]
AWAY = msgspec.structs.replace(
    REGIONS,
    regions={"two": Catalogue(flavors=(), datastores=(), region="two", unavailable="cloud_unreachable: no route")},
)


def made(catalogue: Catalogue = REGIONS, **arguments: Any) -> Instance:
    """An instance whose create was accepted."""
    given: dict[str, Any] = {
        "name": "orders",
        "flavor": "small",
        "datastore": "postgresql",
        "volume_size": 1,
    } | arguments
    return Instance.create(uuid4(), CreateInstance(**given), context(catalogue=catalogue))


def settled(instance: Instance) -> Instance:
    """All that it owes succeeds."""
    while (owed := instance.owes()) is not None:
        instance.take(owed.then, at=context().at, **owed.facts, **YIELDS.get(owed.then, {}))
    return instance


def refused(instance: Instance, command: Command, catalogue: Catalogue = REGIONS) -> Refusal:
    with pytest.raises(Refusal) as raised:
        instance.execute(command, context(catalogue=catalogue))
    return raised.value


def create_refused(catalogue: Catalogue, **arguments: Any) -> Refusal:
    with pytest.raises(Refusal) as raised:
        made(catalogue, **arguments)
    return raised.value


# --- create -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "lies"), [(None, "one"), ("", "one"), ("one", "one"), ("two", "two")])
def test_the_region_that_was_asked_for_or_the_clouds_own_is_recorded(asked: str | None, lies: str) -> None:
    instance = made(region=asked)
    event = instance.pending_events[0]
    assert isinstance(event, InstanceRequested)
    assert (event.region, instance.region) == (lies, lies)


def test_what_a_create_is_given_is_what_its_region_offers() -> None:
    instance = made(region="two", volume_type="fast", availability_zone="az-9")
    assert (instance.flavor, instance.management_network) == (TWO.flavors[0], "management-2")
    assert instance.access is None  # nobody's is guarded there


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"region": "three"}, "no region three; there are: one, two"),
        ({"region": "two", "volume_type": "local"}, "no volume_type local; there are: fast"),
        ({"region": "two", "availability_zone": "az-1"}, "no availability_zone az-1; there are: az-9"),
        ({"region": "two", "datastore": "redis"}, "no datastore redis; there are: postgresql"),
        ({"region": "two", "volume_size": 6}, "at most 5 GiB"),
        ({"region": "one", "flavor": "huge"}, "no flavor huge; there are: small, large"),
    ],
)
def test_what_the_region_does_not_offer_is_refused_with_what_it_does(arguments: dict[str, Any], says: str) -> None:
    refusal = create_refused(REGIONS, **arguments)
    assert refusal.code == "invalid_argument"
    assert says in refusal.message


def test_what_the_region_does_not_honour_is_refused_there_alone() -> None:
    assert create_refused(REGIONS, region="two", image_id="image-1").code == "unsupported"
    assert made(region="one", image_id="image-1").image_id == "image-1"


def test_a_cloud_without_regions_takes_none() -> None:
    assert create_refused(CATALOGUE, region="one").code == "unsupported"
    assert made(CATALOGUE, region="").region is None


def test_of_a_region_that_has_not_answered_yet_nothing_is_decided_and_of_the_others_all() -> None:
    refusal = create_refused(AWAY, region="two")
    assert refusal.code == "region_unavailable"
    assert "cloud_unreachable: no route" in refusal.message
    assert made(AWAY).region == "one"


# --- what comes later ---------------------------------------------------------------------------------------------


def test_all_that_the_cloud_owes_it_names_its_region_over_its_whole_life() -> None:
    instance = made(REGIONS, region="two")
    named: list[str | None] = []
    for command in (
        None,
        ResizeFlavor(flavor="huge"),
        ResizeVolume(new_size=2),
        Migrate(),
        Rebuild(),
        DeleteInstance(),
    ):
        if command is not None:
            instance.execute(command, context(catalogue=REGIONS))
        while (owed := instance.owes()) is not None:
            if isinstance(owed.effect, CloudEffect):
                named.append(owed.effect.region)
            instance.take(owed.then, at=context().at, **owed.facts, **YIELDS.get(owed.then, {}))
    assert instance.state == "DELETED"
    assert len(named) > 15
    assert set(named) == {"two"}


def test_each_command_is_decided_by_what_its_region_offers() -> None:
    here, there = settled(made(region="one")), settled(made(region="two"))
    assert "no flavor huge" in refused(here, ResizeFlavor(flavor="huge")).message
    assert "at most 5 GiB" in refused(there, ResizeVolume(new_size=6)).message
    assert "host-8, host-9" in refused(there, Migrate(host="host-2")).message
    assert "host-1, host-2" in refused(here, Migrate(host="host-9")).message
    assert refused(there, Rebuild(image_id="image-1")).code == "unsupported"
    assert refused(there, UpdateAccess(public=True)).code == "unsupported"
    here.execute(UpdateAccess(public=True), context(catalogue=REGIONS))
    there.execute(ResizeVolume(new_size=5), context(catalogue=REGIONS))
    assert there.offline
    assert settled(there).volume_size == 5
    there.execute(ResizeFlavor(flavor="large"), context(catalogue=REGIONS))
    assert there.new_flavor == TWO.flavors[1]


@pytest.mark.parametrize(
    "command",
    [ResizeFlavor(flavor="large"), ResizeVolume(new_size=2), Migrate(host="host-9"), UpdateAccess(public=True)],
)
def test_what_needs_the_offer_of_a_region_that_is_away_or_gone_is_refused(command: Command) -> None:
    instance = settled(made(region="two"))
    assert refused(instance, command, AWAY).code == "region_unavailable"
    gone = msgspec.structs.replace(REGIONS, regions={})
    refusal = refused(instance, command, gone)
    assert refusal.code == "forbidden_state"
    assert "region two" in refusal.message
    assert "there are: one" in refusal.message


def test_what_needs_no_offer_is_taken_whatever_is_known_of_the_region() -> None:
    instance = settled(made(region="two"))
    instance.execute(Restart(), context(catalogue=AWAY))
    settled(instance).execute(DeleteInstance(), context(catalogue=msgspec.structs.replace(REGIONS, regions={})))
    assert instance.operation is not None


def test_one_from_before_there_were_regions_lies_in_the_clouds_own() -> None:
    instance = settled(made(CATALOGUE))
    assert instance.region is None
    assert "there are: small, large" in refused(instance, ResizeFlavor(flavor="huge")).message
    instance.execute(Migrate(host="host-2"), context(catalogue=REGIONS))
    owed = instance.owes()
    assert owed is not None
    settled(instance).execute(DeleteInstance(), context(catalogue=REGIONS))
    owed = instance.owes()
    while owed is not None and not isinstance(owed.effect, CloudEffect):
        instance.take(owed.then, at=context().at, **owed.facts)
        owed = instance.owes()
    assert owed is not None
    assert isinstance(owed.effect, CloudEffect)
    assert owed.effect.region is None


# --- what is seen -------------------------------------------------------------------------------------------------


def whole(instance: Instance, region: str | None) -> list[Resource]:
    """What a look shows of an instance that is as it should be."""
    own = [(kind, instance.held(kind)) for kind in ResourceKind]
    about: dict[str, Any] = {
        ResourceKind.SERVER: {"status": "ACTIVE", "flavor_id": instance.flavor.id, "host": instance.host},
        ResourceKind.VOLUME: {"size": instance.volume_size, "server_id": instance.server_id},
    }
    return [
        Resource(kind=kind, id=held, name=resource_name(instance.id, kind), region=region, **about.get(kind, {}))
        for kind, held in own
        if held is not None
    ]


def test_what_is_seen_in_another_region_is_no_surplus_and_makes_up_for_nothing() -> None:
    instance = settled(made(region="two"))
    there, elsewhere = whole(instance, "two"), whole(instance, "one")
    assert (drift(instance, there), surplus(instance, there)) == ((), ())
    assert {each.id for each in drift(instance, elsewhere)} == {each.id for each in there}
    double = Resource(kind=ResourceKind.VOLUME, id="volume-9", name=instance.resource_name, region="one")
    assert surplus(instance, [*there, double]) == ()
    assert orphans(instance, [*there, double]) == (double,)
    twin = msgspec.structs.replace(double, region="two")
    assert surplus(instance, [*there, twin]) == (twin,)


def test_what_lies_in_another_region_is_not_adopted() -> None:
    instance = settled(made(region="two"))
    found = Resource(kind=ResourceKind.VOLUME, id="volume-9", name=instance.resource_name, region="one")
    with pytest.raises(Refusal, match="it is in region one, and the instance in region two"):
        adopt(instance, found, [found], actor="bob", at=context().at)


@pytest.mark.parametrize("region", [None, "one"])
def test_one_from_before_there_were_regions_is_seen_wherever_it_is(region: str | None) -> None:
    instance = settled(made(CATALOGUE))
    assert drift(instance, whole(instance, region)) == ()
