"""A call whose answer nobody knows: what it makes later is found, and gone before its operation ends."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from aggregates.effects import CloudEffect
from engine.clouds.port import FinalError, TransientError
from engine.clouds.simulated import BARE, CloudApi, Fault, SimulatedCloud
from engine.clouds.simulated.faults import Kind
from tests.engine.conftest import Engine
from tests.support.eventually import eventually
from tests.support.publisher import CREATE, Publisher

LATEST = timedelta(seconds=2)


class SlowToAct(SimulatedCloud):
    """Gives no answer about the first volume, and makes it a while after everybody has looked for it."""

    def __init__(self, *, latest_effect: timedelta = LATEST) -> None:
        far_side = CloudApi(catalogue=BARE)
        far_side.faults.plan("create_volume", Fault(kind=Kind.LATE, seconds=LATEST.total_seconds() * 0.75))
        super().__init__(api=far_side, latest_effect=latest_effect, deadline=0.1)
        self.cleared_at: list[datetime] = []

    async def pay(self, effect: CloudEffect, key: str) -> Mapping[str, Any]:
        """Note when something is cleared away."""
        if effect.clears:
            self.cleared_at.append(datetime.now(UTC))
        return await super().pay(effect, key)


async def _begun(engine: Engine, publisher: Publisher, cloud: SimulatedCloud) -> UUID:
    await engine.stop()
    engine.cloud = cloud
    await engine.start()
    instance_id = uuid4()
    assert (await publisher.send("create_instance", instance_id, CREATE))["accepted"]
    return instance_id


async def _names(engine: Engine, instance_id: UUID) -> list[str]:
    return [type(event).__name__ for event in await engine.store.events_of(instance_id)]


async def test_a_volume_that_a_late_call_has_made_is_gone_when_the_create_is_done(
    engine: Engine, publisher: Publisher
) -> None:
    cloud = SlowToAct()
    instance_id = await _begun(engine, publisher, cloud)
    instance = await engine.settled(instance_id)
    assert instance.status == "ACTIVE"
    assert cloud.cleared_at[0] >= instance.unanswered_until
    assert len(instance.removed) == 1
    assert list((await engine.cloud.contents())["volumes"]) == [instance.volume_id]
    assert (await _names(engine, instance_id)).count("CallUnanswered") == 1


async def test_a_volume_that_a_late_call_has_made_is_gone_when_the_create_is_undone(
    engine: Engine, publisher: Publisher
) -> None:
    cloud = SlowToAct()
    engine.guests.fail("PrepareDatabase", FinalError("guest_error", "initdb: no space"), 1)
    instance_id = await _begun(engine, publisher, cloud)
    assert (await engine.settled(instance_id)).status == "FAILED"
    assert await engine.held() == []


async def test_control_without_the_wait_the_late_volume_stays(engine: Engine, publisher: Publisher) -> None:
    cloud = SlowToAct(latest_effect=timedelta(0))
    instance_id = await _begun(engine, publisher, cloud)
    assert (await engine.settled(instance_id)).status == "ACTIVE"
    await asyncio.sleep(LATEST.total_seconds())
    assert await engine.held() == ["ports", "servers", "volumes", "volumes"]


async def test_a_worker_that_takes_up_what_makes_something_reckons_with_a_call_of_the_last_one(
    engine: Engine, publisher: Publisher
) -> None:
    cloud = SimulatedCloud(latest_effect=LATEST)
    cloud.fail("EnsureVolume", TransientError("unavailable", "503"), 2)
    instance_id = await _begun(engine, publisher, cloud)
    await engine.until(instance_id, "build_volume")
    await engine.stop()
    await engine.start()
    assert (await engine.settled(instance_id)).status == "ACTIVE"
    names = await _names(engine, instance_id)
    assert names.count("CallUnanswered") == 1
    assert "SurplusRemoved" in names


async def test_a_worker_that_takes_up_a_deletion_reckons_with_the_call_that_it_overtook(
    engine: Engine, publisher: Publisher
) -> None:
    cloud = SimulatedCloud(latest_effect=LATEST, latency=0.3)
    instance_id = await _begun(engine, publisher, cloud)
    await engine.until(instance_id, "build_server")
    assert (await publisher.send("delete_instance", instance_id))["accepted"]
    await engine.stop()
    await engine.start()
    instance = await engine.settled(instance_id)
    assert instance.status == "DELETED"
    assert instance.unanswered_until is not None
    deleted_at = next(e.timestamp for e in await engine.store.events_of(instance_id) if "ServerDel" in type(e).__name__)
    assert deleted_at >= instance.unanswered_until
    assert await engine.held() == []


@pytest.mark.parametrize("latest_effect", [timedelta(0), LATEST])
async def test_where_every_call_is_answered_nothing_is_noted(
    engine: Engine, publisher: Publisher, latest_effect: timedelta
) -> None:
    instance_id = await _begun(engine, publisher, SimulatedCloud(latest_effect=latest_effect))
    assert (await engine.settled(instance_id)).unanswered_until is None
    assert (await publisher.send("delete_instance", instance_id))["accepted"]
    assert (await engine.settled(instance_id)).unanswered_until is None


async def test_a_server_is_rebooted_once_though_the_worker_ended_while_the_call_was_under_way(
    engine: Engine, publisher: Publisher
) -> None:
    far_side = CloudApi()
    instance_id = await _begun(engine, publisher, SimulatedCloud(api=far_side, latest_effect=LATEST))
    await engine.settled(instance_id)
    far_side.faults.plan("reboot_server", Fault(kind=Kind.LATE, seconds=LATEST.total_seconds() / 2))
    await publisher.send("reboot", instance_id)
    await engine.until(instance_id, "reboot_server")
    while not far_side.faults.injected:  # noqa: ASYNC110 - until the call has arrived
        await asyncio.sleep(0.01)
    await engine.stop()
    await engine.start()
    assert (await engine.settled(instance_id)).status == "ACTIVE"
    assert [entry.action for entry in far_side.ledger].count("reboot") == 1


@pytest.mark.parametrize("command", ["delete_instance", "cancel_operation"])
async def test_what_was_made_and_waited_for_is_removed_though_no_list_shows_it(
    engine: Engine, publisher: Publisher, command: str
) -> None:
    far_side = CloudApi(build_time=3.0)
    cloud = SimulatedCloud(api=far_side, latest_effect=LATEST)
    instance_id = await _begun(engine, publisher, cloud)
    creating = await engine.until(instance_id, "build_volume")

    async def made() -> bool:
        return any((entry.kind, entry.action) == ("volume", "create") for entry in far_side.ledger)

    await eventually(made)
    far_side.faults.plan("list_volumes", Fault(kind=Kind.STALE, seconds=60.0), times=100)
    args = {"operation_id": str(creating.operation.id)} if command == "cancel_operation" else {}
    assert (await publisher.send(command, instance_id, args))["accepted"]
    await engine.settled(instance_id)
    assert "LateOutcome" in await _names(engine, instance_id)
    assert await engine.held() == []
