"""Whatever a publisher sends: a clear error with a stable code, a record or a dead letter, and the inbox goes on."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import nats.errors
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nats.aio.msg import Msg

from aggregates.record import CommandRejected
from engine.broker import BrokerSettings, connect
from engine.dead_letters import redacted
from engine.intake import receive
from engine.messages import content_hash, message_id
from tests.engine.conftest import Engine
from tests.support.publisher import CREATE, Publisher


def envelope(args: Any, **changes: Any) -> bytes:
    body = {"command_id": str(uuid4()), "args": args, "actor": "alice", "issued_at": datetime.now(UTC).isoformat()}
    return json.dumps({**body, **changes}).encode()


async def dead_letters(engine: Engine) -> list[dict[str, Any]]:
    stream = engine.client.jetstream()
    info = await stream.stream_info("HOLDFAST_DEAD")
    letters = [await stream.get_msg("HOLDFAST_DEAD", seq + 1) for seq in range(info.state.messages)]
    return [json.loads(letter.data or b"") for letter in letters]


async def still_works(publisher: Publisher) -> bool:
    return bool((await publisher.send("create_instance", uuid4(), CREATE))["accepted"])


BAD_ARGUMENTS = [
    ({**CREATE, "volume_size": -1}, "invalid_argument", "volume_size"),
    ({**CREATE, "volume_size": "big"}, "invalid_argument", "volume_size"),
    ({**CREATE, "volume_size": 5000}, "invalid_argument", "volume_size"),
    ({**CREATE, "name": "x" * 10_000}, "invalid_argument", "name"),
    ({**CREATE, "name": ""}, "invalid_argument", "name"),
    ({**CREATE, "flavor": "colossal"}, "invalid_argument", "colossal"),
    ({**CREATE, "datastore": "oracle"}, "invalid_argument", "oracle"),
    ({**CREATE, "datastore_version": "7"}, "invalid_argument", "datastore_version"),
    ({**CREATE, "surprise": 1}, "invalid_argument", "surprise"),
    ({**CREATE, "instance_id": "0b8e6c1c-0000-4000-8000-000000000000"}, "invalid_argument", "instance_id"),
    ({"name": "x"}, "invalid_argument", "flavor"),
    ({**CREATE, "databases": [{"name": "a b"}]}, "invalid_argument", "a b"),
    ({**CREATE, "users": [{"name": "root", "password_ref": "vault:1"}]}, "invalid_argument", "reserved"),
    ({**CREATE, "users": [{"name": "app", "password": "open"}]}, "secret_in_clear", "password"),
    ({**CREATE, "root_password": "open"}, "secret_in_clear", "root_password"),
    ({**CREATE, "nics": ["tenant-1"]}, "unsupported", "nics"),
    ({**CREATE, "nics": [{"net-id": "tenant-1"}]}, "invalid_argument", "nics"),
    ({**CREATE, "modules": ["m"]}, "unsupported", "modules"),
    ({**CREATE, "cluster_config": {"id": "1"}}, "unsupported", "cluster_config"),
    ({**CREATE, "overrides": {"data_directory": "/"}}, "invalid_argument", "data_directory"),
]


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("args", "code", "named"), BAD_ARGUMENTS)
async def test_bad_arguments_are_rejected_and_recorded(
    engine: Engine, publisher: Publisher, args: dict[str, Any], code: str, named: str
) -> None:
    decision = await publisher.send("create_instance", uuid4(), args)
    assert (decision["accepted"], decision["code"]) == (False, code), decision
    assert named in decision["reason"]
    record = await engine.store.decision("acme", decision["command_id"])
    assert isinstance(record, CommandRejected)
    assert record.code == code


BAD_MESSAGES = [
    ("create_instance", "instance", None, b"", "malformed"),
    ("create_instance", "instance", None, b"not json", "malformed"),
    ("create_instance", "instance", None, b"[1, 2]", "malformed"),
    ("create_instance", "instance", None, b"\xff\xfe", "malformed"),
    ("create_instance", "instance", None, b"[" * 5000, "malformed"),
    ("create_instance", "instance", None, b'{"command_id": "no uuid", "args": {}}', "malformed"),
    ("create_instance", "instance", None, envelope(CREATE, extra=1), "malformed"),
    ("create_instance", "instance", None, envelope(CREATE, project="other"), "malformed"),
    ("create_instance", "instance", None, envelope(CREATE, command="delete_instance"), "malformed"),
    ("create_instance", "instance", None, envelope(CREATE, issued_at="2026-01-01T00:00:00"), "malformed"),
    ("create_instance", "instance", "no-uuid", envelope(CREATE), "malformed"),
    ("create_instance", "instance", "15EAE079-3F16-4E2E-B0B9-632F75E3B57F", envelope(CREATE), "malformed"),
    ("explode", "instance", None, envelope({}), "unknown_command"),
    ("create_instance", "spaceship", None, envelope(CREATE), "unknown_command"),
    ("create_instance", "instance", None, envelope({**CREATE, "name": "x" * 300_000}), "too_large"),
]


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("command", "kind", "aggregate_id", "body", "code"), BAD_MESSAGES)
async def test_what_is_no_command_becomes_a_dead_letter(
    engine: Engine, publisher: Publisher, command: str, kind: str, aggregate_id: str | None, body: bytes, code: str
) -> None:
    decision = await publisher.send_body(command, aggregate_id or str(uuid4()), body, kind=kind)
    assert (decision["accepted"], decision["code"]) == (False, code), decision
    if code != "malformed" or b"issued_at" not in body:
        letters = await dead_letters(engine)
        assert [letter["code"] for letter in letters] == [code]
        assert letters[0]["size"] == len(body)
    assert await still_works(publisher)


async def test_a_body_over_the_brokers_limit_is_refused_before_it_is_sent(publisher: Publisher) -> None:
    with pytest.raises(nats.errors.MaxPayloadError):
        await publisher.send_body("create_instance", uuid4(), b"x" * (2 * 1024 * 1024))


async def test_an_id_that_exists_and_an_id_of_another_project(engine: Engine, publisher: Publisher) -> None:
    instance_id = uuid4()
    await publisher.send("create_instance", instance_id, CREATE)
    assert (await publisher.send("create_instance", instance_id, CREATE))["code"] == "conflict"
    await engine.settled(instance_id)
    client = await connect(BrokerSettings(url=engine.broker.url), name="stranger")
    stranger = Publisher(client, project="other")
    for command, args in (("delete_instance", {}), ("create_instance", CREATE), ("restart", {})):
        assert (await stranger.send(command, instance_id, args))["code"] == "not_found"
    assert (await publisher.send("restart", uuid4()))["code"] == "not_found"
    await client.close()


async def test_a_deadline_that_has_passed(publisher: Publisher) -> None:
    past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    assert (await publisher.send("create_instance", uuid4(), CREATE, deadline=past))["code"] == "expired"


async def test_an_expected_version_that_is_not_the_present_one(engine: Engine, publisher: Publisher) -> None:
    instance_id = uuid4()
    await publisher.send("create_instance", instance_id, CREATE)
    entered = (await engine.settled(instance_id)).entered
    assert (await publisher.send("restart", instance_id, expected_version=entered - 1))["code"] == "conflict"
    assert (await publisher.send("restart", instance_id, expected_version=entered))["accepted"]


async def test_a_repeated_command_gets_its_first_answer(engine: Engine, publisher: Publisher) -> None:
    instance_id = uuid4()
    body = envelope(CREATE)
    first = await publisher.send_body("create_instance", instance_id, body)
    again = await publisher.send_body("create_instance", instance_id, body)
    assert first["accepted"]
    assert again == {**first, "duplicate": True}
    changed = json.dumps({**json.loads(body), "actor": "mallory"}).encode()
    assert (await publisher.send_body("create_instance", instance_id, changed))["code"] == "duplicate_command"
    instance = await engine.settled(instance_id)
    assert instance.status == "ACTIVE"
    assert len([e for e in await engine.store.events_of(instance_id) if type(e).__name__ == "InstanceRequested"]) == 1


async def test_a_repeat_within_the_brokers_window_is_stored_once(engine: Engine, publisher: Publisher) -> None:
    instance_id, body = uuid4(), envelope(CREATE)
    subject = f"holdfast.v1.cmd.acme.instance.{instance_id}.create_instance"
    headers = {"Nats-Msg-Id": message_id("acme", json.loads(body)["command_id"], body)}
    stream = publisher.client.jetstream()
    first = await stream.publish(subject, body, headers=headers)
    again = await stream.publish(subject, body, headers=headers)
    assert (first.duplicate, again.duplicate) == (None, True)
    assert again.seq == first.seq
    changed = envelope(CREATE, command_id=json.loads(body)["command_id"], actor="mallory")
    other = {"Nats-Msg-Id": message_id("acme", json.loads(body)["command_id"], changed)}
    assert (await stream.publish(subject, changed, headers=other)).duplicate is None
    record = await engine.store.decision("acme", json.loads(body)["command_id"])
    assert record is None or record.content == content_hash(body)
    assert (await engine.settled(instance_id)).status == "ACTIVE"


async def test_the_same_command_twice_in_one_batch_is_decided_once(engine: Engine, publisher: Publisher) -> None:
    instance_id = uuid4()
    body = envelope(CREATE)
    await engine.stop()
    for _ in range(5):
        await publisher.publish("create_instance", instance_id, body)
    await engine.start()
    assert (await engine.settled(instance_id)).status == "ACTIVE"
    assert len([e for e in await engine.store.events_of(instance_id) if type(e).__name__ == "InstanceRequested"]) == 1


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "elsewhere",
    [
        "$JS.API.STREAM.PURGE.HOLDFAST_COMMANDS",
        "holdfast.v1.guest.1.stop",
        "_INBOX.>",
        "_INBOX.a b",
        "_INBOX",
        "_INBOX..x",
    ],
)
async def test_a_decision_is_answered_to_an_inbox_and_nowhere_else(
    engine: Engine, publisher: Publisher, elsewhere: str
) -> None:
    heard: list[str] = []

    async def hear(message: Msg) -> None:
        heard.append(message.subject)

    listener = await connect(BrokerSettings(url=engine.broker.url), name="listener")
    for subject in ("$JS.API.STREAM.PURGE.>", "holdfast.v1.guest.>"):
        await listener.subscribe(subject, cb=hear)
    await listener.flush()
    await publisher.publish("restart", uuid4(), envelope({}), reply_to=elsewhere)
    # Decided after it, so its answer would have been sent by then.
    assert (await publisher.send("restart", uuid4()))["code"] == "not_found"
    await listener.flush()
    assert heard == []
    await listener.close()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
SUBJECT = "holdfast.v1.cmdp.3.acme.instance.{}.create_instance"


@given(body=st.binary(max_size=400) | JSON.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_body_is_read_or_refused(body: bytes) -> None:
    received = receive(1, SUBJECT.format(uuid4()), body, None)
    assert (received.wish is None) == (received.refusal is not None)
    assert received.refusal is None or received.refusal.code


@given(args=st.dictionaries(st.sampled_from([*CREATE, "users", "overrides", "databases", "x"]), JSON, max_size=9))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_arguments_are_read_or_refused(args: dict[str, Any]) -> None:
    received = receive(1, SUBJECT.format(uuid4()), envelope({**CREATE, **args}), None)
    assert (received.wish is None) == (received.refusal is not None)


@given(secret=st.text(min_size=8, max_size=30, alphabet="abcdefghij"), depth=st.integers(0, 5))
def test_a_dead_letter_shows_no_secret(secret: str, depth: int) -> None:
    value: Any = {"Password": f"marker-{secret}"}
    for _ in range(depth):
        value = [{"deeper": value}]
    assert f"marker-{secret}" not in redacted(json.dumps({"args": value}).encode())
    assert f"marker-{secret}" not in redacted(f"password=marker-{secret}".encode())
