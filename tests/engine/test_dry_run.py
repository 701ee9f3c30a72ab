"""A dry run of a command about an operation shows the states that it would lead through, and changes nothing."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

from engine.clouds.port import FinalError, TransientError
from engine.messages import query_subject
from tests.engine.conftest import Engine
from tests.support.publisher import CREATE, Publisher


async def plan(publisher: Publisher, instance_id: UUID, command: str, args: dict[str, Any]) -> dict[str, Any]:
    asked = {"command": command, "args": args, "instance_id": str(instance_id)}
    answer = await publisher.client.request(
        query_subject("acme", "instances", "plan"), json.dumps(asked).encode(), timeout=30
    )
    found: dict[str, Any] = json.loads(answer.data)
    return found


def states(answer: dict[str, Any]) -> list[str]:
    assert answer["accepted"], answer
    return [step["state"] for step in answer["plan"]]


async def test_the_states_ahead_are_shown_for_each_command_about_a_parked_deletion(
    engine: Engine, publisher: Publisher
) -> None:
    instance_id = uuid4()
    await publisher.send("create_instance", instance_id, CREATE)
    await engine.settled(instance_id)
    engine.cloud.fail("VolumeAbsent", FinalError("cloud_error", "volume is in use"), 1)
    await publisher.send("delete_instance", instance_id)
    parked = await engine.settled(instance_id)
    args = {"operation_id": str(parked.operation.id)}
    ahead = ["delete_volume", "delete_credentials", "delete_quota"]
    retried = await plan(publisher, instance_id, "retry_operation", args)
    assert (states(retried), retried["downtime"], retried["frees"]) == (ahead, "full", ["volume", "credentials"])
    assert states(await plan(publisher, instance_id, "skip_step", args)) == ahead[1:]
    assert states(await plan(publisher, instance_id, "abandon_operation", args)) == []
    refused = await plan(publisher, instance_id, "cancel_operation", args)
    assert (refused["accepted"], refused["code"]) == (False, "forbidden_state")
    assert (await engine.instance(instance_id)).version == parked.version


async def test_a_cancel_shows_what_would_undo(engine: Engine, publisher: Publisher) -> None:
    instance_id = uuid4()
    await publisher.send("create_instance", instance_id, CREATE)
    await engine.settled(instance_id)
    engine.guests.fail("StopDatabase", TransientError("guest_unreachable", "not now"), 10_000)
    await publisher.send("migrate", instance_id, {})
    running = await engine.until(instance_id, "migrate_stop")
    answer = await plan(publisher, instance_id, "cancel_operation", {"operation_id": str(running.operation.id)})
    assert states(answer) == ["undo_migrate_server", "undo_migrate_agent", "undo_migrate_start"]
    assert answer["downtime"] == "restart"
    assert (await engine.instance(instance_id)).state == "migrate_stop"
