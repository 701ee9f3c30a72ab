"""The simulated installation does what the real one does, dies where it is told to, and does the same again."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest

from engine.clouds.port import FinalError
from engine.clouds.simulated.faults import FAULTS, Call
from tests.simulation.world import World, simulated

CREATE: dict[str, Any] = {"name": "orders", "flavor": "small", "datastore": "postgresql", "volume_size": 1}
POINTS = (
    "before_effect", "after_effect", "after_append", "inbox_before_commit", "inbox_after_commit", "inbox_before_reply",
    "outbox_before_publish", "outbox_after_publish", "outbox_after_commit", "projector_before_commit",
    "projector_after_commit",
)  # fmt: skip


async def _a_life(world: World) -> UUID:
    """Create, reboot and delete an instance."""
    instance_id = world.new_id()
    publisher = world.publisher()
    for command, args in (("create_instance", CREATE), ("reboot", {"hard": True}), ("delete_instance", {})):
        sent = await publisher.send(command, instance_id, args)
        assert (sent.outcome, sent.code) == ("done", None)
    await world.settled()
    return instance_id


def test_a_life_from_create_to_delete() -> None:
    async def scenario(world: World) -> None:
        world.start_node()
        instance_id = await _a_life(world)
        assert world.aggregate(instance_id).state == "DELETED"
        assert not any((await world.api.inventory()).values())

    simulated(1, scenario)


def test_a_failure_is_undone_and_its_publisher_learns_why() -> None:
    async def scenario(world: World) -> None:
        world.failures.plan("PrepareDatabase", FinalError("guest_error", "initdb: no space"), 1)
        world.start_node()
        sent = await world.publisher().send("create_instance", world.new_id(), CREATE)
        assert (sent.outcome, sent.code) == ("failed", "guest_error")
        refused = await world.publisher().send("restart", world.new_id())
        assert (refused.outcome, refused.code) == ("rejected", "not_found")

    simulated(2, scenario)


@pytest.mark.parametrize("point", POINTS)
def test_a_worker_that_dies_is_followed_by_one_that_goes_on(point: str) -> None:
    async def scenario(world: World) -> None:
        doomed = world.start_node()
        doomed.die_at(point, nth=2)

        async def supervise() -> None:
            while not doomed.dead:
                await asyncio.sleep(0.5)
            world.start_node()

        supervising = asyncio.create_task(supervise())
        await _a_life(world)
        await supervising
        assert world.died_at == {point: 1}
        created = [(entry.kind, entry.name) for entry in world.api.ledger if entry.action == "create"]
        assert len(created) == len(set(created))

    simulated(3, scenario)


def test_the_broker_goes_and_comes_back() -> None:
    async def scenario(world: World) -> None:
        world.start_node()
        life = asyncio.create_task(_a_life(world))
        for _ in range(4):
            await asyncio.sleep(0.15)
            world.broker.restart(downtime=3.0)
            await asyncio.sleep(20.0)
        await life

    simulated(4, scenario)


def test_a_cloud_that_is_away_for_a_while_ends_no_worker() -> None:
    async def scenario(world: World) -> None:
        for name in ("unavailable", "never_arrives", "unavailable"):
            world.api.faults.plan("get_catalogue", FAULTS[name], times=2)
        node = world.start_node()
        await _a_life(world)
        world.api.faults.plan("get_catalogue", FAULTS["unavailable"], times=3)
        await asyncio.sleep(600)
        assert not world.api.faults.due(Call(name="get_catalogue"))
        assert not node.dead
        await _a_life(world)

    simulated(7, scenario)


def test_two_handles_of_one_command_both_learn_its_outcome() -> None:
    async def scenario(world: World) -> None:
        publisher = world.publisher()
        command_id = world.new_id()
        first = publisher.send("create_instance", world.new_id(), CREATE, command_id=command_id)
        await asyncio.sleep(1)
        again = publisher.send_again(publisher.sent[command_id])
        world.start_node().die_at("inbox_before_reply")  # so that both have to ask
        await asyncio.sleep(5)
        world.start_node()
        assert {(await first).outcome, (await again).outcome} == {"done"}

    simulated(8, scenario)


def _trace(seed: int) -> list[str]:
    told: list[str] = []

    async def scenario(world: World) -> None:
        world.start_node().die_at("after_effect")
        life = asyncio.create_task(_a_life(world))
        await asyncio.sleep(1)
        world.start_node()
        await life

    simulated(seed, scenario, tracing=told.append)
    return [line for line in told if "/holdfast-" not in line]


def test_one_seed_gives_one_run() -> None:
    assert _trace(5) == _trace(5)
    assert _trace(5) != _trace(6)
