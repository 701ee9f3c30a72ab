"""A worker stopped in just the gap, for longer than others reckon with its call: what it makes is found and removed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from engine.clouds.simulated.faults import Call
from tests.simulation.world import World, simulated
from tests.support.simulated_cloud import WHOLE

CREATE: dict[str, Any] = {"name": "orders", "flavor": "small", "datastore": "postgresql", "volume_size": 1}
EVERY = 30.0
TURN = 5 * EVERY


def stops_once(call: str, seconds: float) -> Callable[[str, str], float]:
    """The first worker that is about to make this call stands still."""
    stopped: list[float] = []

    def stops(point: str, subject: str) -> float:
        if stopped or (point, subject) != ("call", call):
            return 0.0
        stopped.append(seconds)
        return seconds

    return stops


async def woken_in_the_gap(world: World, call: str, observe_every: float = EVERY, *commands: str) -> UUID:
    """An instance of which a worker's call has gone out when the create, and these commands, had long ended."""
    asleep = world.latest_effect.total_seconds() + 400.0
    world.observe_every = observe_every
    world.stops = stops_once(call, asleep)
    for _ in range(2):
        world.start_node()
    world.start_node(works=False, projects=True)
    instance_id, publisher = world.new_id(), world.publisher()
    for command in ("create_instance", *commands):
        sent = await publisher.send(command, instance_id, CREATE if command == "create_instance" else {})
        assert sent.outcome == "done"
    assert any(node.paused for node in world.running)
    await asyncio.sleep(asleep)
    assert not any(node.paused for node in world.running)
    return instance_id


async def held(world: World) -> list[str]:
    return [kind for kind, found in (await world.api.inventory()).items() for _ in found]


def counted(world: World, instance_id: UUID) -> list[str]:
    told = (type(event).__name__ for event in world.events.events_of(instance_id))
    return [name for name in told if name.startswith("Surplus")]


def test_a_second_volume_is_gone_within_the_observers_turn() -> None:
    async def scenario(world: World) -> None:
        instance_id = await woken_in_the_gap(world, "create_volume")
        before = world.aggregate(instance_id)
        await asyncio.sleep(TURN)
        made = [entry.id for entry in world.api.ledger if (entry.kind, entry.action) == ("volume", "create")]
        assert len(made) == 2
        assert list((await world.api.inventory())["volumes"]) == [before.volume_id]
        after = world.aggregate(instance_id)
        assert (after.state, after.volume_id, after.entered) == ("ACTIVE", before.volume_id, before.entered)
        assert counted(world, instance_id) == ["SurplusRemoved", "SurplusFound", "SurplusDeleted"]

    simulated(1, scenario, shared=True)


@pytest.mark.parametrize("call", ["create_security_group", "create_volume"])
def test_what_appears_after_a_delete_is_gone_within_the_observers_turn(call: str) -> None:
    async def scenario(world: World) -> None:
        instance_id = await woken_in_the_gap(world, call, EVERY, "delete_instance")
        await asyncio.sleep(TURN)
        assert await held(world) == []
        assert counted(world, instance_id)[-2:] == ["SurplusFound", "SurplusDeleted"]
        assert world.aggregate(instance_id).state == "DELETED"

    simulated(2, scenario, shared=True)


@pytest.mark.parametrize("call", ["create_security_group", "create_volume"])
def test_control_without_an_observer_it_stays(call: str) -> None:
    async def scenario(world: World) -> None:
        await woken_in_the_gap(world, call, 0.0, "delete_instance")
        await asyncio.sleep(TURN)
        assert await held(world) == [f"{call.removeprefix('create_')}s"]

    simulated(2, scenario, shared=True)


@pytest.mark.parametrize("point", ["surplus_found", "call", "answer", "surplus_removed"])
def test_a_death_in_the_middle_is_made_good_by_the_next_look(point: str) -> None:
    async def scenario(world: World) -> None:
        world.observe_every = EVERY
        world.start_node()
        instance_id = world.new_id()
        await world.publisher().send("create_instance", instance_id, CREATE)
        name = world.aggregate(instance_id).resource_name
        await world.api.call(Call(name="create_volume", args={"name": name, "size": 1}))
        world.running[0].die_at(point, "delete_volume" if point in ("call", "answer") else "volume")
        while world.running:
            await asyncio.sleep(1.0)
        assert world.died_at == {point: 1}
        assert counted(world, instance_id) == ["SurplusFound"]
        world.start_node()
        await asyncio.sleep(TURN)
        assert Counter(await held(world)) == WHOLE
        assert counted(world, instance_id) == ["SurplusFound", "SurplusDeleted"]
        deleted = [entry for entry in world.api.ledger if (entry.kind, entry.action) == ("volume", "delete")]
        assert len(deleted) == 1

    simulated(3, scenario)
