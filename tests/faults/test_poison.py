"""A message that breaks the decider, or kills it, is given up after a bounded number of tries; all others go on."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from aggregates.record import CommandAccepted, CommandRejected, record_id
from engine.dead_letters import told
from engine.event_log import EventLog, open_log
from engine.inbox import TRIES
from engine.messages import GuestStatus, Heartbeat, heartbeat_subject
from engine.store import EventStore
from engine.suspects import DEATHS
from tests.engine.conftest import Engine
from tests.engine.test_bad_input import dead_letters, envelope
from tests.faults.brittle import POISON, Brittle
from tests.support.broker import Broker
from tests.support.eventually import eventually
from tests.support.publisher import CREATE, Publisher


async def decided(store: EventStore, body: bytes) -> CommandAccepted | CommandRejected:
    found = await eventually(lambda: store.decision("acme", UUID(json.loads(body)["command_id"])))
    assert found is not None
    return found


@pytest.mark.parametrize("poisoned", [{0}, {7}, {19}, {3, 4, 11}])
@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
async def test_the_batch_around_a_poison_message_is_decided(
    engine: Engine, publisher: Publisher, brittle: type[Brittle], poisoned: set[int]
) -> None:
    await engine.stop()
    bodies = [envelope({**CREATE, "name": POISON if n in poisoned else f"orders-{n}"}) for n in range(20)]
    ids = [uuid4() for _ in bodies]
    for instance_id, body in zip(ids, bodies, strict=True):
        await publisher.publish("create_instance", instance_id, body)
    await engine.start()
    for n, body in enumerate(bodies):
        found = await decided(engine.store, body)
        assert isinstance(found, CommandRejected if n in poisoned else CommandAccepted), n
        assert getattr(found, "code", None) == ("internal_error" if n in poisoned else None)
    assert len(poisoned) * TRIES <= brittle.tried <= len(poisoned) * (TRIES + len(poisoned))
    for n, instance_id in enumerate(ids):
        if n not in poisoned:
            assert (await engine.settled(instance_id)).state == "ACTIVE"


async def test_the_operator_has_the_traceback_and_the_publisher_a_plain_error(
    engine: Engine, publisher: Publisher, brittle: type[Brittle]
) -> None:
    instance_id, body = uuid4(), envelope({**CREATE, "name": POISON})
    decision = await publisher.send_body("create_instance", instance_id, body)
    assert (decision["accepted"], decision["code"]) == (False, "internal_error")
    assert "defect" in decision["reason"]
    assert POISON not in decision["reason"]
    assert brittle.tried == TRIES
    [letter] = await dead_letters(engine)
    assert letter["code"] == "internal_error"
    assert letter["command_id"] == json.loads(body)["command_id"]
    assert letter["tries"] == TRIES
    assert letter["original"] == body.decode()
    assert "in create" in letter["traceback"]
    assert f"TimeoutError: no room for {POISON}" in letter["traceback"]
    assert "hunter2" not in json.dumps(letter)
    # The record stands for ever: a repetition is answered by it and not tried again.
    again = await publisher.send_body("create_instance", instance_id, body)
    assert again == {**decision, "duplicate": True}
    assert brittle.tried == TRIES


async def test_an_aggregate_that_cannot_be_loaded_blocks_nobody(
    engine: Engine, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, whole = uuid4(), uuid4()
    await publisher.send("create_instance", broken, CREATE)
    await engine.settled(broken)
    await engine.stop()
    load = EventLog.load

    def loaded(log: EventLog, aggregate_id: UUID) -> Any:
        if aggregate_id == broken:
            raise ValueError("the history of this one cannot be folded")
        return load(log, aggregate_id)

    monkeypatch.setattr(EventLog, "load", loaded)
    bodies = [envelope({}), envelope(CREATE), envelope({})]
    for instance_id, body in zip((broken, whole, broken), bodies, strict=True):
        command = "create_instance" if instance_id == whole else "restart"
        await publisher.publish(command, instance_id, body)
    await engine.start()
    found = [await decided(engine.store, body) for body in bodies]
    assert [getattr(each, "code", None) for each in found] == ["internal_error", None, "internal_error"]
    assert all("cannot be folded" in letter["traceback"] for letter in await dead_letters(engine))
    assert (await engine.settled(whole)).state == "ACTIVE"
    # Nor does its agent's beat end the worker.
    for instance_id in (broken, whole):
        beat = Heartbeat(
            instance_id=instance_id, boot="1", sequence=1, sent_at=datetime.now(UTC), interval=1.0,
            status=GuestStatus.HEALTHY,
        )  # fmt: skip
        await publisher.client.publish(heartbeat_subject(instance_id), msgspec.json.encode(beat))

    async def watched() -> list[UUID]:
        return [health.instance_id for health in await engine.store.watched()]

    assert await eventually(watched) == [whole]
    assert (await publisher.send("create_instance", uuid4(), CREATE))["accepted"]


@contextlib.contextmanager
def dying_worker(broker: Broker, store_url: str, deaths: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "tests.faults.dying_worker", broker.url, store_url, str(deaths)]
    with deaths.with_suffix(".log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
async def test_a_message_that_kills_the_process_is_given_up_after_so_many_deaths(
    engine: Engine, publisher: Publisher, store_url: str, tmp_path: Path
) -> None:
    await engine.stop()
    bodies = [envelope({**CREATE, "name": "deadly" if n == 2 else f"orders-{n}"}) for n in range(6)]
    for body in bodies:
        await publisher.publish("create_instance", uuid4(), body)
    deaths = tmp_path / "deaths"
    log = open_log(store_url)
    last = record_id("acme", UUID(json.loads(bodies[-1])["command_id"]))
    for _ in range(3 * DEATHS):
        with dying_worker(broker=engine.broker, store_url=store_url, deaths=deaths) as process:

            async def ended(process: subprocess.Popen[bytes] = process) -> bool:
                return process.poll() is not None or bool(log.events_of(last))

            await eventually(ended)
        if log.events_of(last):
            break
    log.close()
    await engine.start()
    # The try of the whole batch counts where the message is the first of its partition.
    assert DEATHS <= len(deaths.read_text().splitlines()) <= DEATHS + 1
    found = [await decided(engine.store, body) for body in bodies]
    assert [getattr(each, "code", None) for each in found] == [None, None, "internal_error", None, None, None]
    [letter] = await dead_letters(engine)
    assert (letter["tries"], letter["traceback"]) == (DEATHS, None)
    assert letter["original"] == bodies[2].decode()


def test_a_traceback_keeps_frames_and_hides_secrets() -> None:
    secrets = {"url": "s3cret", "known": "correct horse", "named": "hunter2", "token": "abc123", "spaced": "x y z"}

    def connect_to(server: str) -> None:
        said = f"{{'password': '{secrets['named']}'}} or token={secrets['token']}, secret: \"{secrets['spaced']}\""
        raise RuntimeError(f"cannot reach postgresql://app:{secrets['url']}@{server}/app with {said}")

    body = json.dumps({"args": {"users": [{"name": "app", "password": secrets["known"]}]}}).encode()
    with pytest.raises(RuntimeError) as first:
        connect_to("db-1")
    second = KeyError(secrets["known"])
    second.__cause__ = first.value
    text = told(second, body)
    assert "KeyError: '***'" in text
    assert "in connect_to" in text
    assert "RuntimeError: cannot reach postgresql://app:***@db-1/app with" in text
    assert not [secret for secret in secrets.values() if secret in text]
