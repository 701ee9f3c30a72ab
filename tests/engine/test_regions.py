"""A worker with two regions, around a real broker and store: each instance lives, is observed and ends in its own."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from aggregates.resources import resource_name
from engine.clouds.regions import Regions
from engine.clouds.simulated import BARE, CloudApi, Fault, SimulatedCloud
from engine.clouds.simulated.faults import Call, Kind
from engine.worker import CATALOGUE_LACKS
from tests.engine.conftest import Engine
from tests.support.eventually import eventually
from tests.support.publisher import CREATE, Publisher

AWAY = Fault(kind=Kind.REFUSED, status=503)


class Site:
    """What goes on when workers end: the two clouds themselves."""

    def __init__(self) -> None:
        self.one, self.two = CloudApi(catalogue=BARE), CloudApi(catalogue=BARE)
        self.looks = 0

    def seen(self, *, without_two: bool = False) -> Regions:
        """What one worker has of them."""
        one, two = (_Watched(self, api) for api in (self.one, self.two))
        return Regions(one, "one", {} if without_two else {"two": two})

    async def held(self) -> tuple[list[str], list[str]]:
        """What each holds, one word for each resource."""
        one, two = [
            sorted(kind for kind, found in (await api.inventory()).items() for _ in found)
            for api in (self.one, self.two)
        ]
        return one, two

    async def looked_at(self, times: int = 6) -> None:
        """Until so many looks have begun from now on."""
        until = self.looks + times

        async def often_enough() -> bool:
            return self.looks >= until

        await eventually(often_enough)


class _Watched(SimulatedCloud):
    def __init__(self, site: Site, api: CloudApi) -> None:
        super().__init__(api=api, latest_effect=timedelta(0))
        self._site = site

    async def inventory(self) -> Any:
        self._site.looks += 1
        return await super().inventory()


WHOLE = ["ports", "servers", "volumes"]


@pytest.fixture
async def site(engine: Engine) -> Site:
    """Looked at ten times a second."""
    await engine.stop()
    made = Site()
    engine.options["observe_every"] = 0.1
    await begin(engine, made.seen())
    return made


async def begin(engine: Engine, clouds: Regions) -> None:
    """A worker begins that has these."""
    await engine.stop()
    engine.cloud = clouds  # type: ignore[assignment]
    await engine.start()


async def made(engine: Engine, publisher: Publisher, region: str | None) -> UUID:
    """An instance that is ACTIVE."""
    instance_id = uuid4()
    decision = await publisher.send("create_instance", instance_id, {**CREATE, "region": region})
    assert decision["accepted"], decision
    assert (await engine.settled(instance_id)).state == "ACTIVE"
    return instance_id


async def test_each_lives_in_its_region_also_by_another_worker(
    engine: Engine, publisher: Publisher, site: Site
) -> None:
    here, there = await made(engine, publisher, None), await made(engine, publisher, "two")
    assert ((await engine.instance(here)).region, (await engine.instance(there)).region) == ("one", "two")
    assert await site.held() == (WHOLE, WHOLE)
    assert {entry.name for entry in site.one.ledger} == {resource_name(here), str(here)}
    assert {entry.name for entry in site.two.ledger} == {resource_name(there), str(there)}
    await begin(engine, site.seen())
    for command, args in (("resize_flavor", {"flavor": "large"}), ("migrate", {}), ("delete_instance", {})):
        assert (await publisher.send(command, there, args))["accepted"]
        assert (await engine.settled(there)).state == ("DELETED" if command == "delete_instance" else "ACTIVE")
    assert await site.held() == (WHOLE, [])
    assert {entry.name for entry in site.one.ledger} == {resource_name(here), str(here)}


async def test_a_region_that_there_is_not_is_refused_by_name(engine: Engine, publisher: Publisher, site: Site) -> None:
    decision = await publisher.send("create_instance", uuid4(), {**CREATE, "region": "three"})
    assert (decision["accepted"], decision["code"]) == (False, "invalid_argument")
    assert "there are: one, two" in decision["reason"]
    assert await site.held() == ([], [])


async def test_what_a_silent_region_holds_is_not_missed_while_the_other_is_observed(
    engine: Engine, publisher: Publisher, site: Site
) -> None:
    here, there = await made(engine, publisher, "one"), await made(engine, publisher, "two")
    for each in ("list_servers", "list_volumes"):
        site.two.faults.plan(each, AWAY, 100_000)
    for api, instance_id in ((site.one, here), (site.two, there)):
        await api.call(Call(name="create_volume", args={"name": resource_name(instance_id), "size": 1}))

    async def cleared() -> bool:
        return (await site.held())[0] == WHOLE

    await eventually(cleared)
    await site.looked_at()
    # Another worker has never seen what was there.
    await begin(engine, site.seen())
    await site.looked_at()
    instance = await engine.instance(there)
    assert (instance.drift, instance.surplus, (await site.held())[1]) == ((), (), [*WHOLE, "volumes"])
    await site.two.call(Call(name="delete_server", args={"id": instance.server_id}))
    site.two.faults = type(site.two.faults)()

    async def noticed() -> bool:
        return {str(each.resource) for each in (await engine.instance(there)).drift} >= {"server"}

    await eventually(noticed)

    async def cleared_there() -> bool:
        return (await site.held())[1] == ["ports", "volumes"]

    await eventually(cleared_there)
    assert (await engine.instance(here)).drift == ()


async def test_a_region_taken_out_of_the_configuration_parks_what_is_owed_there_until_it_is_back(
    engine: Engine, publisher: Publisher, site: Site
) -> None:
    there = await made(engine, publisher, "two")
    await begin(engine, site.seen(without_two=True))
    await site.looked_at()
    assert (await engine.instance(there)).drift == ()
    refusal = await publisher.send("resize_flavor", there, {"flavor": "large"})
    assert (refusal["code"], "no more" in refusal["reason"]) == ("forbidden_state", True)
    decision = await publisher.send("delete_instance", there)
    assert decision["accepted"], decision
    parked = (await engine.settled(there)).parked
    assert (parked.code, "region two" in parked.message) == ("region_unknown", True)
    assert await site.held() == ([], WHOLE)
    await begin(engine, site.seen())
    retry = {"operation_id": decision["command_id"]}
    assert (await publisher.send("retry_operation", there, retry))["accepted"]
    assert (await engine.settled(there)).state == "DELETED"
    assert await site.held() == ([], [])


async def test_a_worker_begins_while_a_region_is_away_and_decides_for_it_when_it_is_back(
    engine: Engine, publisher: Publisher, site: Site
) -> None:
    site.one.faults.plan("get_catalogue", AWAY, 1)
    await begin(engine, site.seen())
    there = await made(engine, publisher, "two")
    refusal = await publisher.send("create_instance", uuid4(), CREATE)
    assert refusal["code"] == "region_unavailable"
    assert await site.held() == ([], WHOLE)

    async def decided() -> bool:
        return bool((await publisher.send("create_instance", uuid4(), CREATE))["accepted"])

    await eventually(decided, within=2 * CATALOGUE_LACKS)
    assert (await engine.instance(there)).state == "ACTIVE"
