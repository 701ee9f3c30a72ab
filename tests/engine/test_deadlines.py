"""A deadline fires when it has come, whatever the operation is at, and survives whoever was to watch it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from engine.clouds.port import TransientError
from engine.clouds.simulated.api import CloudApi
from engine.clouds.simulated.guests import SimulatedAgents
from tests.engine.conftest import Engine
from tests.support.publisher import CREATE, Publisher

NEVER = TransientError("guest_unreachable", "never")


def soon(seconds: float) -> dict[str, Any]:
    """The envelope of a command that must be done in so many seconds."""
    return {"deadline": (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()}


def slow_agents(engine: Engine) -> None:
    """Agents give no answer for a minute."""
    assert isinstance(engine.guests.agents, SimulatedAgents)
    engine.guests.agents.latency = 60.0


async def expect_undone(engine: Engine, instance_id: UUID) -> None:
    instance = await engine.settled(instance_id)
    assert (instance.status, instance.failure.code) == ("FAILED", "deadline_exceeded")
    failed_at = next(e.timestamp for e in await engine.store.events_of(instance_id) if type(e).__name__ == "Failed")
    begun = (await engine.store.events_of(instance_id))[0].operation
    assert failed_at >= begun.deadline
    assert await engine.held() == []


async def test_a_wait_ends_at_the_deadline_and_everything_is_undone(engine: Engine, publisher: Publisher) -> None:
    slow_agents(engine)
    instance_id = uuid4()
    await publisher.send("create_instance", instance_id, CREATE, **soon(3))
    await expect_undone(engine, instance_id)


async def test_what_is_made_and_only_waited_for_is_given_up_at_the_deadline(
    engine: Engine, publisher: Publisher
) -> None:
    assert isinstance(engine.cloud.api, CloudApi)
    instance_id = uuid4()
    engine.cloud.api.build_time = 120.0
    await publisher.send("create_instance", instance_id, CREATE, **soon(6))
    async with asyncio.timeout(60):
        while "volumes" not in await engine.held():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    engine.cloud.api.build_time = 0.0  # of what undoes
    await expect_undone(engine, instance_id)


async def test_a_pause_between_two_tries_ends_at_the_deadline_and_the_last_error_is_told(
    engine: Engine, publisher: Publisher
) -> None:
    engine.guests.fail("PrepareDatabase", NEVER, 10_000)
    instance_id = uuid4()
    await publisher.send("create_instance", instance_id, CREATE, **soon(3))
    await expect_undone(engine, instance_id)
    instance = await engine.instance(instance_id)
    assert "guest_unreachable: never" in instance.failure.message or instance.failure.state != "build_database"


async def test_a_deadline_that_passes_while_no_worker_runs_counts_when_one_does(
    engine: Engine, publisher: Publisher
) -> None:
    slow_agents(engine)
    instance_id = uuid4()
    await publisher.send("create_instance", instance_id, CREATE, **soon(3))
    await asyncio.sleep(1)
    await engine.stop()
    await asyncio.sleep(2.5)
    await engine.start()
    await expect_undone(engine, instance_id)


async def test_what_a_call_has_done_when_the_deadline_passes_is_recorded_and_undone(
    engine: Engine, publisher: Publisher
) -> None:
    assert isinstance(engine.cloud.api, CloudApi)
    engine.cloud.api.latency = 3.5  # of two calls: one that looks, one that makes
    instance_id = uuid4()
    await publisher.send("create_instance", instance_id, CREATE, **soon(6))
    await engine.until(instance_id, "build_port")
    await asyncio.sleep(6)
    engine.cloud.api.latency = 0.0
    await expect_undone(engine, instance_id)
    names = [type(event).__name__ for event in await engine.store.events_of(instance_id)]
    assert names.index("PortCreated") < names.index("Failed")


async def test_past_the_point_of_no_return_a_passed_deadline_parks_at_the_next_failure(
    engine: Engine, publisher: Publisher
) -> None:
    instance_id = uuid4()
    await publisher.send("create_instance", instance_id, CREATE)
    await engine.settled(instance_id)
    engine.guests.fail("GrowFileSystem", NEVER, 10_000)
    await publisher.send("resize_volume", instance_id, {"new_size": 2}, **soon(6))
    instance = await engine.settled(instance_id)
    assert instance.state == "resize_volume_grow"
    assert instance.parked is not None
    assert instance.attempts < instance.owes().attempts - 1
    assert instance.modified_on >= instance.operation.deadline
