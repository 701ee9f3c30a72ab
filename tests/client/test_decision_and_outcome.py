"""A publisher learns what became of its command: from the inbox, from the query, over a lost connection, elsewhere."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from engine.client import (
    BrokerSettings,
    Connection,
    Context,
    NotPublished,
    OperationCancelled,
    OperationFailed,
    QueryFailed,
    Rejected,
    SecretRef,
    TaskManager,
    TimedOut,
    Unreachable,
    load,
    register,
)
from engine.client.sync import SyncTaskManager
from engine.credentials import inbox_prefix
from engine.embedded import EmbeddedBroker
from engine.state import StateDirectory
from tests.client.responder import Responder, decided
from tests.support.broker import Broker

ALICE = Context(project="acme", actor="alice")
INSTANCE = str(uuid4())


UNKNOWN = {"code": "not_found", "message": "not in the read model yet"}


def record(outcome: str, **more: Any) -> dict[str, Any]:
    return {"operation_id": "o", "instance_id": INSTANCE, "outcome": outcome, **more}


async def test_the_decision_comes_by_the_inbox(manager: TaskManager, responder: Responder) -> None:
    responder.answers["commands", "get"] = lambda _: UNKNOWN
    responder.on_command = lambda body: decided(body["command_id"], version=3)
    handle = await manager.restart(INSTANCE)
    decision = await handle.accepted(30)
    assert (decision.accepted, decision.version) == (True, 3)


async def test_the_decision_can_be_asked_for(manager: TaskManager, responder: Responder) -> None:
    answers = iter([UNKNOWN, UNKNOWN])
    responder.answers["commands", "get"] = lambda q: next(answers, decided(q["command_id"]))
    handle = await manager.restart(INSTANCE)
    assert (await handle.accepted(30)).accepted
    asked = [question for name, question in responder.questions if name == "commands.get"]
    assert [(q["command_id"], q["for"]) for q in asked] == [(handle.id, "decision")] * 3


async def test_the_handle_cancels_and_retries_what_it_stands_for(manager: TaskManager, responder: Responder) -> None:
    responder.on_command = lambda body: decided(body["command_id"])
    handle = await manager.restart(INSTANCE)
    assert (await handle.cancel("by mistake")).accepted
    assert (await handle.retry()).accepted
    _, cancel, retry = responder.commands
    assert cancel[0].endswith(f".{INSTANCE}.cancel_operation")
    assert cancel[1]["args"] == {"operation_id": handle.id, "reason": "by mistake"}
    assert retry[0].endswith(f".{INSTANCE}.retry_operation")
    assert retry[1]["args"] == {"operation_id": handle.id}


async def test_a_cancel_that_is_refused_says_why(manager: TaskManager, responder: Responder) -> None:
    why: dict[str, Any] = {"accepted": False, "code": "forbidden_state", "reason": "it has nothing that undoes it"}
    responder.on_command = lambda body: decided(body["command_id"], **(why if body["args"].get("operation_id") else {}))
    handle = await manager.restart(INSTANCE)
    with pytest.raises(Rejected, match="nothing that undoes it"):
        await handle.cancel()


async def test_a_cancelled_operation_says_by_whom(manager: TaskManager, responder: Responder) -> None:
    error = {"code": "cancelled", "message": "cancelled by bob: wrong host"}
    responder.answers["commands", "get"] = lambda q: decided(q["command_id"]) | record("cancelled", error=error)
    handle = await manager.migrate(INSTANCE)
    with pytest.raises(OperationCancelled, match="was cancelled: cancelled by bob: wrong host"):
        await handle.done(30)


async def test_a_refusal_carries_code_and_reason(manager: TaskManager, responder: Responder) -> None:
    responder.on_command = lambda body: decided(
        body["command_id"], accepted=False, code="conflict", reason="resize_volume is running"
    )
    responder.answers["commands", "get"] = lambda _: UNKNOWN
    handle = await manager.restart(INSTANCE)
    for wait in (handle.accepted, handle.done, handle.accepted):
        with pytest.raises(Rejected) as caught:
            await wait(30)
        assert (caught.value.code, caught.value.reason) == ("conflict", "resize_volume is running")


async def test_no_decision_in_time_is_said(manager: TaskManager, responder: Responder) -> None:
    responder.answers["commands", "get"] = lambda _: UNKNOWN
    handle = await manager.restart(INSTANCE)
    with pytest.raises(TimedOut) as caught:
        await handle.accepted(0.3)
    assert handle.id in caught.value.message


@pytest.mark.parametrize(
    ("end", "error", "code"),
    [
        (
            record("failed", error={"code": "no_valid_host", "message": "No valid host"}),
            OperationFailed,
            "no_valid_host",
        ),
        (record("cancelled"), OperationCancelled, "cancelled"),
    ],
)
async def test_an_operation_that_did_not_get_there_raises(
    manager: TaskManager, responder: Responder, end: dict[str, Any], error: type[Exception], code: str
) -> None:
    responder.answers["commands", "get"] = lambda q: decided(q["command_id"]) if q["for"] == "decision" else end
    handle = await manager.restart(INSTANCE)
    with pytest.raises(error) as caught:
        await handle.done(30)
    assert getattr(caught.value, "code", "") == code


async def test_a_handle_works_from_another_process(broker: Broker, responder: Responder) -> None:
    async with TaskManager(ALICE, broker=broker.url) as first:
        command_id = (await first.restart(INSTANCE)).id
    responder.answers["commands", "get"] = lambda q: (
        decided(q["command_id"]) | (record("done") if q["for"] == "outcome" else {})
    )
    async with TaskManager(ALICE, broker=broker.url) as second:
        result = await second.operation(command_id).done(30)
    assert (result.operation_id, result.outcome) == (command_id, "done")


async def test_progress_is_told_step_by_step(manager: TaskManager, responder: Responder) -> None:
    steps = iter(
        [
            {"code": "not_found", "message": "not yet"},
            record("running", n=1, m=2, state="restart_database", effect="RestartDatabase", attempts=0),
            record("running", n=1, m=2, state="restart_database", effect="RestartDatabase", attempts=1,
                   error={"code": "timeout", "message": "no answer"}),
            record("running", n=2, m=2, state="restart_health", effect="AwaitHealthy", attempts=0),
            record("done", n=2, m=2, state="ACTIVE"),
        ]
    )  # fmt: skip
    responder.answers["commands", "get"] = lambda q: decided(q["command_id"])

    def answer(_: dict[str, Any]) -> dict[str, Any]:
        responder.publish(f"holdfast.v1.evt.acme.instance.{decided('')['aggregate_id']}.DatabaseRestarted")
        return next(steps)

    responder.answers["operations", "get"] = answer
    handle = await manager.restart(INSTANCE)
    seen = [step async for step in handle.progress(60)]
    assert [(s.n, s.m, s.state, s.attempts, s.error) for s in seen] == [
        (1, 2, "restart_database", 0, None),
        (1, 2, "restart_database", 1, "no answer"),
        (2, 2, "restart_health", 0, None),
        (2, 2, "ACTIVE", 0, None),
    ]


async def test_waiting_survives_a_restart_of_the_broker(
    broker: Broker, manager: TaskManager, responder: Responder
) -> None:
    open_for_end = threading.Event()
    responder.answers["commands", "get"] = lambda q: (
        decided(q["command_id"]) if q["for"] == "decision" else record("done" if open_for_end.is_set() else "running")
    )
    handle = await manager.restart(INSTANCE)
    await handle.accepted(30)
    waiting = asyncio.create_task(handle.done(60))
    await responder.wait_for(lambda: any(q.get("for") == "outcome" for _, q in responder.questions))
    await asyncio.to_thread(broker.stop)
    await asyncio.to_thread(broker.start)
    open_for_end.set()
    assert (await waiting).outcome == "done"


async def test_a_command_is_published_once_the_broker_is_back(
    broker: Broker, manager: TaskManager, responder: Responder
) -> None:
    await manager.restart(INSTANCE)
    manager.connection.timeout = 60
    await asyncio.to_thread(broker.stop)
    publishing = asyncio.create_task(manager.restart(INSTANCE))
    await asyncio.to_thread(broker.start)
    await publishing
    assert await responder.stored() == 2


async def test_a_full_stream_is_an_error_with_a_code(broker: Broker) -> None:
    small = Responder()
    await small.start(BrokerSettings(url=broker.url), max_msgs=1)
    try:
        async with TaskManager(ALICE, broker=broker.url) as client:
            await client.restart(INSTANCE)
            with pytest.raises(NotPublished) as caught:
                await client.restart(INSTANCE)
        assert caught.value.code == "stream_full"
    finally:
        await small.stop()


async def test_a_broker_without_the_stream_is_an_error_with_a_code(broker: Broker) -> None:
    async with TaskManager(ALICE, broker=broker.url) as client:
        with pytest.raises(NotPublished) as caught:
            await client.restart(INSTANCE)
    assert caught.value.code == "no_stream"


async def test_no_broker_is_an_error_with_a_code(broker: Broker) -> None:
    broker.stop()
    began = time.monotonic()
    async with TaskManager(ALICE, broker=broker.url, timeout=1.0) as client:
        with pytest.raises(Unreachable) as caught:
            await client.restart(INSTANCE)
    assert caught.value.code == "unreachable"
    assert time.monotonic() - began < 20


async def test_wrong_credentials_are_an_error_with_a_code(tmp_path: Any) -> None:
    closed = Broker(tmp_path / "closed", 'authorization { user: "a", password: "b" }')
    try:
        closed.start()
        async with TaskManager(ALICE, closed.url.replace("//", "//x:secret@"), timeout=3.0) as client:
            with pytest.raises(Unreachable) as caught:
                await client.restart(INSTANCE)
        assert caught.value.code == "unauthorised"
        assert "secret" not in caught.value.message
    finally:
        closed.stop()


async def test_a_query_without_an_engine_is_an_error_with_a_code(broker: Broker) -> None:
    async with TaskManager(ALICE, broker=broker.url) as client:
        with pytest.raises(QueryFailed) as caught:
            await client.queries.get("instances", instance_id=INSTANCE)
    assert caught.value.code == "no_responders"


async def test_pages_are_read_to_the_end(manager: TaskManager, responder: Responder) -> None:
    pages = {None: (["a", "b"], "2"), "2": (["c"], None)}

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        names, marker = pages[question.get("marker")]
        return {"items": [{"name": n} for n in names], "next_marker": marker}

    responder.answers["instances", "list"] = answer
    found = [item["name"] async for item in manager.queries.items("instances", limit=2, filter={"state": "ACTIVE"})]
    assert found == ["a", "b", "c"]
    assert responder.questions[0] == ("instances.list", {"limit": 2, "filter": {"state": "ACTIVE"}})


async def test_a_record_is_watched_until_nobody_looks(manager: TaskManager, responder: Responder) -> None:
    states = iter(["BUILD", "BUILD", "ACTIVE"])

    def answer(_: dict[str, Any]) -> dict[str, Any]:
        responder.publish(f"holdfast.v1.evt.acme.instance.{INSTANCE}.DatabaseHealthy")
        position = len(responder.questions)
        item = {"state": next(states, "ACTIVE")}
        return {"position": position, "subject": f"holdfast.v1.evt.acme.instance.{INSTANCE}.>", "item": item}

    responder.answers["instances", "watch"] = answer
    seen = []
    async with asyncio.timeout(60):
        async for found in manager.queries.watch("instances", instance_id=INSTANCE):
            seen.append(found["item"]["state"])
            if seen[-1] == "ACTIVE":
                break
    assert seen == ["BUILD", "ACTIVE"]


async def test_scripts_have_a_synchronous_face(broker: Broker, responder: Responder) -> None:
    responder.answers["commands", "get"] = lambda q: decided(q["command_id"]) | record("done")
    responder.answers["operations", "get"] = lambda _: record("done", n=2, m=2, state="ACTIVE")
    responder.answers["instances", "list"] = lambda _: {"items": [{"name": "a"}], "next_marker": None}

    def script() -> None:
        with SyncTaskManager(ALICE, broker=broker.url) as client:
            assert client.put_secret("s") == SecretRef("vault:1")
            handle = client.resize_volume(INSTANCE, 3)
            assert handle.accepted(30).accepted
            assert [step.n for step in handle.progress(30)] == [2]
            assert handle.done(30).outcome == "done"
            assert client.operation(handle.id).done(30).operation_id == handle.id
            assert [item["name"] for item in client.items("instances")] == ["a"]

    await asyncio.to_thread(script)
    assert responder.commands[0][1]["args"] == {"new_size": 3}
    assert not [t for t in threading.enumerate() if t.name == "holdfast-client"]


def test_a_datastore_can_bring_its_own_client() -> None:
    class Galera(TaskManager):
        """As a cluster strategy makes it."""

    register("galera-of-this-test", Galera)
    assert type(load(ALICE)) is TaskManager
    assert type(load(ALICE, "postgresql")) is TaskManager
    assert type(load(ALICE, "galera-of-this-test")) is Galera
    with pytest.raises(ValueError, match="already"):
        register("galera-of-this-test", TaskManager)


async def test_waiting_ends_when_cancelled_even_as_an_answer_comes(manager: TaskManager, responder: Responder) -> None:
    responder.answers["commands", "get"] = lambda _: UNKNOWN
    handle = await manager.restart(INSTANCE)
    async with asyncio.timeout(45):  # a cancel that is swallowed goes on for the 30 s of `accepted`
        for attempt in range(150):
            waiting = asyncio.create_task(handle.accepted(30))
            await asyncio.sleep(attempt * 0.00003)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting


async def test_the_embedded_broker_is_found_by_its_state_directory(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path / "state")
    with pytest.raises(Unreachable) as caught:
        Connection.local(state)
    assert caught.value.code == "no_engine"
    state.prepare()
    broker, responder = EmbeddedBroker(state, port=None), Responder()
    try:
        await broker.start()
        await responder.start(broker.settings("worker"), inbox_prefix("worker"))
        responder.answers["commands", "get"] = lambda q: decided(q["command_id"])
        async with Connection.local(state, timeout=30) as connection:
            manager = TaskManager(ALICE, connection)
            assert (await (await manager.restart(INSTANCE)).accepted(30)).accepted
            with pytest.raises(Unreachable) as caught:
                await connection.publish("holdfast.v1.evt.acme.instance.x.Forged", b"{}", {}, timeout=1)
            assert caught.value.code == "unauthorised"
    finally:
        await responder.stop()
        await broker.stop()
