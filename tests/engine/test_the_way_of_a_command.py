"""A command goes from the broker through decision and effects to a settled state, whatever dies in between."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import uuid4

import msgspec
import pytest

from aggregates.catalogue import Quota
from engine.clouds.port import FinalError, TransientError
from engine.clouds.simulated import CATALOGUE, SimulatedCloud
from tests.engine.conftest import Engine
from tests.support.publisher import CREATE, Publisher


async def test_create_makes_an_active_instance_and_delete_leaves_nothing(engine: Engine, publisher: Publisher) -> None:
    instance_id = uuid4()
    decision = await publisher.send("create_instance", instance_id, CREATE)
    assert decision["accepted"], decision
    instance = await engine.settled(instance_id)
    assert instance.status == "ACTIVE"
    assert instance.port == 5432
    assert (await publisher.send("delete_instance", instance_id))["accepted"]
    assert (await engine.settled(instance_id)).status == "DELETED"
    assert await engine.held() == []


@pytest.mark.parametrize(
    ("command", "args"),
    [
        ("restart", {}),
        ("reboot", {"hard": True}),
        ("resize_volume", {"new_size": 3}),
        ("resize_flavor", {"flavor": "large"}),
        ("migrate", {}),
    ],
)
async def test_each_operation_ends_active(
    engine: Engine, publisher: Publisher, command: str, args: dict[str, object]
) -> None:
    instance_id = uuid4()
    await publisher.send("create_instance", instance_id, CREATE)
    before = await engine.settled(instance_id)
    assert (await publisher.send(command, instance_id, args))["accepted"]
    await asyncio.sleep(0)
    after = await engine.settled(instance_id)
    assert after.status == "ACTIVE"
    assert after.failure is None
    match command:
        case "resize_volume":
            assert after.volume_size == 3
        case "resize_flavor":
            assert after.flavor.id == "large"
        case "migrate":
            assert after.host != before.host


async def test_stop_and_start(engine: Engine, publisher: Publisher) -> None:
    instance_id = uuid4()
    await publisher.send("create_instance", instance_id, CREATE)
    await engine.settled(instance_id)
    await publisher.send("stop_instance", instance_id)
    assert (await engine.settled(instance_id)).status == "SHUTOFF"
    refused = await publisher.send("restart", instance_id)
    assert refused["code"] == "forbidden_state"
    await publisher.send("start_instance", instance_id)
    assert (await engine.settled(instance_id)).status == "ACTIVE"


async def test_a_worker_started_anew_goes_on_where_the_last_one_was(engine: Engine, publisher: Publisher) -> None:
    instance_id = uuid4()
    engine.guests.fail("PrepareDatabase", TransientError("guest_unreachable", "not yet"), 2)
    await publisher.send("create_instance", instance_id, CREATE)
    await engine.until(instance_id, "build_database")
    await engine.stop()
    await engine.start()
    instance = await engine.settled(instance_id)
    assert instance.status == "ACTIVE"
    assert await engine.held() == ["ports", "servers", "volumes"]


async def test_a_final_failure_undoes_what_was_made(engine: Engine, publisher: Publisher) -> None:
    instance_id = uuid4()
    engine.guests.fail("PrepareDatabase", FinalError("guest_error", "initdb: no space"), 1)
    await publisher.send("create_instance", instance_id, CREATE)
    instance = await engine.settled(instance_id)
    assert instance.status == "FAILED"
    assert instance.failure.message == "initdb: no space"
    assert await engine.held() == []


async def test_what_cannot_be_undone_parks_and_says_why(engine: Engine, publisher: Publisher) -> None:
    instance_id = uuid4()
    await publisher.send("create_instance", instance_id, CREATE)
    await engine.settled(instance_id)
    engine.cloud.fail("VolumeAbsent", FinalError("cloud_error", "volume is in use"), 1)
    await publisher.send("delete_instance", instance_id)
    instance = await engine.settled(instance_id)
    assert instance.state == "delete_volume"
    assert instance.parked.message == "volume is in use"


async def test_delete_wins_over_a_create_that_waits(engine: Engine, publisher: Publisher) -> None:
    instance_id = uuid4()
    engine.guests.fail("PrepareDatabase", TransientError("guest_unreachable", "never"), 10_000)
    await publisher.send("create_instance", instance_id, CREATE)
    await engine.until(instance_id, "build_database")
    assert (await publisher.send("delete_instance", instance_id))["accepted"]
    assert (await engine.settled(instance_id)).status == "DELETED"
    assert await engine.held() == []


async def test_quota_is_guarded_and_its_refusal_leaves_nothing(engine: Engine, publisher: Publisher) -> None:
    first, second = uuid4(), uuid4()
    await engine.stop()
    engine.cloud = SimulatedCloud(
        catalogue=msgspec.structs.replace(CATALOGUE, quota=Quota(instances=1)), latest_effect=timedelta(0)
    )
    await engine.start()
    await publisher.send("create_instance", first, CREATE)
    await engine.settled(first)
    await publisher.send("create_instance", second, CREATE)
    instance = await engine.settled(second)
    assert (instance.status, instance.failure.code) == ("FAILED", "quota_exceeded")
    await publisher.send("delete_instance", first)
    await engine.settled(first)
    third = uuid4()
    await publisher.send("create_instance", third, CREATE)
    assert (await engine.settled(third)).status == "ACTIVE"
