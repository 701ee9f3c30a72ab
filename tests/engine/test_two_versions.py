"""A worker that meets an event it does not know leaves that aggregate to others, says so, and goes on with the rest."""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest
from structlog.testing import capture_logs

from aggregates.record import CommandAccepted
from engine.broker import BrokerSettings, connect
from engine.broker.streams import EVENT_STREAM
from engine.clouds.simulated.guests import SimulatedAgents
from engine.messages import event_subject
from engine.store import EventStore, open_store
from tests.engine.conftest import Engine
from tests.support.publisher import CREATE, Publisher

NEWER = (sys.executable, "-m", "tests.engine.newer")
WITHIN = 90.0


async def newer(*arguments: str) -> None:
    """Have the newer build do something, and end."""
    process = await asyncio.create_subprocess_exec(*NEWER, *arguments)
    assert await asyncio.wait_for(process.wait(), WITHIN) == 0


async def half_made(engine: Engine, publisher: Publisher) -> UUID:
    """An instance whose agent gives no answer, written to by the newer build."""
    agents = engine.guests.agents
    assert isinstance(agents, SimulatedAgents)
    agents.latency = 300.0
    instance_id = uuid4()
    await publisher.send("create_instance", instance_id, CREATE)
    await engine.until(instance_id, "build_database")
    await newer("write", engine.store_url, str(instance_id))
    agents.latency = 0.0
    return instance_id


async def ask_to_delete(publisher: Publisher, instance_id: UUID) -> UUID:
    """The id of a command that nobody waits for."""
    command_id = uuid4()
    body = {"command_id": str(command_id), "args": {}, "actor": "alice", "issued_at": datetime.now(UTC).isoformat()}
    await publisher.publish("delete_instance", instance_id, json.dumps(body).encode())
    return command_id


async def decided(store: EventStore, command_id: UUID) -> object:
    async with asyncio.timeout(WITHIN):
        while True:
            record = await store.decision("acme", command_id)
            if record is not None:
                return record
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("store_url", ["postgresql"], indirect=True)
async def test_what_a_newer_worker_has_written_to_is_left_to_it_and_nothing_is_lost(
    engine: Engine, publisher: Publisher
) -> None:
    other = uuid4()
    await publisher.send("create_instance", other, CREATE)
    await engine.settled(other)
    with capture_logs() as logs:
        instance_id = await half_made(engine, publisher)
        command_id = await ask_to_delete(publisher, instance_id)
        # Others go on, before and behind it.
        for _ in range(3):
            assert (await publisher.send("restart", other))["accepted"]
            await engine.settled(other)
    assert await engine.store.decision("acme", command_id) is None
    said = [each for each in logs if each["event"] == "left_to_others"]
    assert [(each["aggregate_id"], each["topic"]) for each in said] == [(str(instance_id), "instance.InstanceRenamed")]
    # Its events are published all the same, and those behind it.
    subject = event_subject("acme", "instance", instance_id, "InstanceRenamed")
    message = await engine.client.jetstream().get_last_msg(EVENT_STREAM, subject)
    assert json.loads(message.data or b"")["data"]["name"] == "renamed"

    serving = await asyncio.create_subprocess_exec(*NEWER, "serve", engine.store_url, engine.broker.url)
    try:
        await engine.stop()
        store = open_store(engine.store_url)
        store.start()
        assert isinstance(await decided(store, command_id), CommandAccepted)
        async with asyncio.timeout(WITHIN):
            while instance_id in {aggregate_id for aggregate_id, _ in await store.owing()}:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        *_, last = [each for each in await store.read(0, 10_000) if each.aggregate_id == instance_id]
        assert last.event.state == "DELETED"
        await store.close()
    finally:
        serving.kill()
        await serving.wait()


async def test_a_worker_starts_although_it_knows_not_everything(engine: Engine, publisher: Publisher) -> None:
    instance_id = await half_made(engine, publisher)
    await engine.stop()
    await engine.start()
    other = uuid4()
    assert (await publisher.send("create_instance", other, CREATE))["accepted"]
    assert (await engine.settled(other)).status == "ACTIVE"
    command_id = await ask_to_delete(publisher, instance_id)
    assert (await publisher.send("restart", other))["accepted"]
    assert await engine.store.decision("acme", command_id) is None


async def test_where_nobody_who_knows_more_comes_the_command_is_refused_at_last_and_kept(
    engine: Engine, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.deciding.MOST_PUT_OFF", 2)
    monkeypatch.setattr("engine.inbox.PUT_OFF", 0.01)
    instance_id = await half_made(engine, publisher)
    decision = await publisher.send("delete_instance", instance_id)
    assert (decision["accepted"], decision["code"]) == (False, "unknown_event")
    client = await connect(BrokerSettings(url=engine.broker.url), name="operator")
    letter = await client.jetstream().get_last_msg("HOLDFAST_DEAD", "holdfast.v1.dlq.acme.unknown_event")
    assert json.loads(letter.data or b"")["code"] == "unknown_event"
    await client.close()
