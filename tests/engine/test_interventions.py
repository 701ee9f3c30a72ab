"""Cancel, retry, skip and abandon reach an operation wherever it is: waiting, calling, pausing or parked."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import pytest

from engine.clouds.port import FinalError, TransientError
from engine.clouds.simulated.api import CloudApi
from engine.clouds.simulated.guests import SimulatedAgents
from tests.engine.conftest import Engine
from tests.support.publisher import CREATE, Publisher


async def send(publisher: Publisher, engine: Engine, name: str, instance_id: UUID, **args: Any) -> dict[str, Any]:
    """The command about the operation that runs."""
    running = (await engine.instance(instance_id)).operation
    args["operation_id"] = str(running.id if running is not None else uuid4())
    return await publisher.send(name, instance_id, args)


def slow_agents(engine: Engine, latency: float) -> None:
    """Each answer of an agent takes so many seconds from now on."""
    assert isinstance(engine.guests.agents, SimulatedAgents)
    engine.guests.agents.latency = latency


async def created(engine: Engine, publisher: Publisher) -> UUID:
    instance_id = uuid4()
    await publisher.send("create_instance", instance_id, CREATE)
    await engine.settled(instance_id)
    return instance_id


async def parked(engine: Engine, publisher: Publisher) -> UUID:
    """A deletion, parked over the volume."""
    instance_id = await created(engine, publisher)
    engine.cloud.fail("VolumeAbsent", FinalError("cloud_error", "volume is in use"), 1)
    await publisher.send("delete_instance", instance_id)
    assert (await engine.settled(instance_id)).parked is not None
    return instance_id


async def names(engine: Engine, instance_id: UUID) -> list[str]:
    return [type(event).__name__ for event in await engine.store.events_of(instance_id)]


async def test_a_cancel_ends_a_wait_at_once_and_everything_is_undone(engine: Engine, publisher: Publisher) -> None:
    slow_agents(engine, 60.0)
    instance_id = uuid4()
    await publisher.send("create_instance", instance_id, CREATE)
    await engine.until(instance_id, "build_database")
    decision = await send(publisher, engine, "cancel_operation", instance_id, reason="by mistake")
    assert decision["accepted"], decision
    instance = await engine.settled(instance_id, within=50)
    assert (instance.status, instance.failure.code) == ("FAILED", "cancelled")
    assert await engine.held() == []


async def test_a_cancel_ends_a_pause_between_two_tries_at_once(engine: Engine, publisher: Publisher) -> None:
    engine.guests.fail("PrepareDatabase", TransientError("guest_unreachable", "not yet"), 10_000)
    instance_id = uuid4()
    await publisher.send("create_instance", instance_id, CREATE)
    await engine.until(instance_id, "build_database")
    assert (await send(publisher, engine, "cancel_operation", instance_id))["accepted"]
    assert (await engine.settled(instance_id)).status == "FAILED"
    assert await engine.held() == []


async def test_a_call_that_runs_while_it_is_cancelled_is_answered_recorded_and_undone(
    engine: Engine, publisher: Publisher
) -> None:
    assert isinstance(engine.cloud.api, CloudApi)
    engine.cloud.api.latency = 0.3
    instance_id = uuid4()
    await publisher.send("create_instance", instance_id, CREATE)
    await engine.until(instance_id, "build_volume")
    assert (await send(publisher, engine, "cancel_operation", instance_id))["accepted"]
    assert (await engine.settled(instance_id)).status == "FAILED"
    told = await names(engine, instance_id)
    assert told.index("CancelRequested") < told.index("LateOutcome") < told.index("VolumeDeleted")
    assert await engine.held() == []


@pytest.mark.parametrize("command", ["cancel_operation", "delete_instance"])
async def test_what_is_made_and_only_waited_for_is_given_up_at_once_and_undone(
    engine: Engine, publisher: Publisher, command: str
) -> None:
    assert isinstance(engine.cloud.api, CloudApi)
    instance_id = uuid4()
    engine.cloud.api.build_time = 120.0
    await publisher.send("create_instance", instance_id, CREATE)
    async with asyncio.timeout(60):
        while "volumes" not in await engine.held():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    engine.cloud.api.build_time = 0.0
    if command == "delete_instance":
        decision = await publisher.send(command, instance_id)
    else:
        decision = await send(publisher, engine, command, instance_id)
    assert decision["accepted"], decision
    await engine.settled(instance_id, within=60)
    assert await engine.held() == []
    told = await names(engine, instance_id)
    assert "LateOutcome" in told  # its id: a list by its name may be older than the volume


async def test_a_cancelled_migration_leaves_the_instance_where_it_was(engine: Engine, publisher: Publisher) -> None:
    instance_id = await created(engine, publisher)
    before = await engine.instance(instance_id)
    slow_agents(engine, 0.5)
    await publisher.send("migrate", instance_id, {})
    await engine.until(instance_id, "migrate_agent")
    assert (await send(publisher, engine, "cancel_operation", instance_id))["accepted"]
    instance = await engine.settled(instance_id)
    assert (instance.status, instance.host, instance.failure.code) == ("ACTIVE", before.host, "cancelled")


async def test_past_the_point_of_no_return_a_cancel_is_refused_and_the_operation_goes_on(
    engine: Engine, publisher: Publisher
) -> None:
    instance_id = await created(engine, publisher)
    slow_agents(engine, 0.5)
    await publisher.send("resize_volume", instance_id, {"new_size": 2})
    await engine.until(instance_id, "resize_volume_grow")
    decision = await send(publisher, engine, "cancel_operation", instance_id)
    assert (decision["accepted"], decision["code"]) == (False, "forbidden_state")
    assert (await engine.settled(instance_id)).volume_size == 2


@pytest.mark.parametrize(
    ("command", "args", "end"),
    [
        ("retry_operation", {}, "DELETED"),
        ("skip_step", {"reason": "removed by hand"}, "DELETED"),
        ("abandon_operation", {"reason": "beyond repair"}, "ERROR"),
    ],
)
async def test_what_is_parked_is_got_on(
    engine: Engine, publisher: Publisher, command: str, args: dict[str, Any], end: str
) -> None:
    instance_id = await parked(engine, publisher)
    decision = await send(publisher, engine, command, instance_id, **args)
    assert decision["accepted"], decision
    assert (await engine.settled(instance_id)).status == end
    assert await engine.held() == ([] if command == "retry_operation" else ["volumes"])


async def test_a_retry_spares_the_pause_before_the_next_try(engine: Engine, publisher: Publisher) -> None:
    # Seven pauses together last longer than is waited for here.
    engine.guests.fail("PrepareDatabase", TransientError("guest_unreachable", "not yet"), 7)
    instance_id = uuid4()
    await publisher.send("create_instance", instance_id, CREATE)
    async with asyncio.timeout(40):
        while (instance := await engine.instance(instance_id)).status != "ACTIVE":
            if instance.retry_at is not None:
                await send(publisher, engine, "retry_operation", instance_id)
            await asyncio.sleep(0.05)
