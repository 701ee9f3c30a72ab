"""The streams take what they must, keep it where it belongs, and are never changed under their messages."""

from __future__ import annotations

import uuid

import nats.js.errors
import pytest
from nats.aio.client import Client
from nats.js.api import DiscardPolicy, StorageType, StreamConfig

from engine.broker import (
    COMMAND_STREAM,
    DEAD_LETTER_STREAM,
    EVENT_STREAM,
    MIB,
    STORED_COMMANDS,
    BrokerError,
    ensure_streams,
    partition_of,
    require_durable,
)
from engine.messages import MSG_ID, PARTITIONS, CommandSubject, command_filter, dead_letter_subject, event_subject


def _subject(aggregate_id: str) -> str:
    return str(CommandSubject("p1", "instance", aggregate_id, "restart"))


async def test_the_engine_computes_the_partition_that_the_broker_stores(client: Client) -> None:
    js = client.jetstream()
    await ensure_streams(js)
    ids = [str(uuid.uuid4()) for _ in range(1000)] + ["x", "ID-of_other.form".replace(".", ""), "é" * 20]

    for each in ids:
        await client.publish(_subject(each), b"{}")
    await js.publish(_subject("last"), b"{}")

    partitions = set()
    for sequence, each in enumerate(ids, start=1):
        stored = await js.get_msg(COMMAND_STREAM, sequence)
        assert stored.subject == f"{STORED_COMMANDS}.{partition_of(each)}.p1.instance.{each}.restart"
        partitions.add(partition_of(each))
    assert partitions == set(range(PARTITIONS))


async def test_one_id_has_one_partition_under_all_projects_kinds_and_commands(client: Client) -> None:
    js = client.jetstream()
    await ensure_streams(js)

    for parts in (("p1", "instance", "stop"), ("p2", "cluster", "grow")):
        await js.publish(str(CommandSubject(parts[0], parts[1], "same", parts[2])), b"{}")

    stored = [(await js.get_msg(COMMAND_STREAM, n)).subject for n in (1, 2)]
    assert stored == [
        f"{STORED_COMMANDS}.{partition_of('same')}.p1.instance.same.stop",
        f"{STORED_COMMANDS}.{partition_of('same')}.p2.cluster.same.grow",
    ]


@pytest.mark.parametrize("tail", ["p1.instance.id", "p1.instance.id.stop.more", "p1"])
async def test_a_subject_with_another_number_of_tokens_is_refused(client: Client, tail: str) -> None:
    js = client.jetstream()
    await ensure_streams(js)

    with pytest.raises(nats.js.errors.NoStreamResponseError):
        await js.publish(f"holdfast.v1.cmd.{tail}", b"{}")


async def test_nobody_can_publish_past_the_transform(client: Client) -> None:
    js = client.jetstream()
    await ensure_streams(js)

    with pytest.raises(nats.js.errors.NoStreamResponseError):
        await js.publish(f"{STORED_COMMANDS}.1.p1.instance.id.stop", b"{}")


async def test_events_and_dead_letters_are_kept_and_known_by_their_id(client: Client) -> None:
    js = client.jetstream()
    await ensure_streams(js)
    event, letter = event_subject("p", "instance", uuid.uuid4(), "Active"), dead_letter_subject("p", "malformed")

    for subject, stream in ((event, EVENT_STREAM), (letter, DEAD_LETTER_STREAM)):
        first = await js.publish(subject, b"{}", headers={MSG_ID: "one"})
        again = await js.publish(subject, b"{}", headers={MSG_ID: "one"})
        assert (first.stream, first.duplicate, again.duplicate, again.seq) == (stream, None, True, first.seq)


async def test_ensuring_again_changes_nothing(client: Client) -> None:
    js = client.jetstream()
    await ensure_streams(js)
    await js.publish(_subject("a"), b"{}")
    before = await js.stream_info(COMMAND_STREAM)

    await ensure_streams(js)

    after = await js.stream_info(COMMAND_STREAM)
    assert (after.created, after.config, after.state.messages) == (before.created, before.config, 1)


async def test_a_full_command_stream_tells_its_publisher_and_drops_nothing_even_when_shrunk(client: Client) -> None:
    js = client.jetstream()
    await ensure_streams(js, command_bytes=2 * MIB)
    stored = 0

    async def fill() -> None:
        nonlocal stored
        while True:
            await js.publish(_subject("a"), b"x" * 200_000)
            stored += 1

    with pytest.raises(nats.js.errors.ServiceUnavailableError) as full:
        await fill()

    await ensure_streams(js, command_bytes=MIB)

    assert full.value.err_code == 10077
    info = await js.stream_info(COMMAND_STREAM)
    assert (info.config.max_bytes, info.state.messages) == (MIB, stored)


async def test_full_event_and_dead_letter_streams_go_on_taking(client: Client) -> None:
    js = client.jetstream()
    await ensure_streams(js, event_bytes=MIB, dead_letter_bytes=MIB)

    for subject in (event_subject("p", "instance", uuid.uuid4(), "Active"), dead_letter_subject("p", "malformed")):
        for _ in range(8):
            last = await js.publish(subject, b"x" * 300_000)
        assert last.seq == 8


async def test_an_oversized_command_reaches_the_inbox_as_far_as_the_broker_carries_it(client: Client) -> None:
    js = client.jetstream()
    await ensure_streams(js)

    stored = await js.publish(_subject("a"), b"x" * 900_000)

    assert stored.stream == COMMAND_STREAM


async def test_limits_that_differ_are_updated_in_place_and_the_rest_is_left_alone(client: Client) -> None:
    js = client.jetstream()
    await ensure_streams(js, command_bytes=8 * MIB)
    found = (await js.stream_info(COMMAND_STREAM)).config
    await js.update_stream(found.evolve(discard=DiscardPolicy.OLD, max_age=600.0, metadata={"owner": "operations"}))
    await js.publish(_subject("a"), b"{}")

    await ensure_streams(js, command_bytes=16 * MIB)

    info = await js.stream_info(COMMAND_STREAM)
    assert (info.config.discard, info.config.max_age, info.config.max_bytes) == ("new", 0, 16 * MIB)
    assert info.config.metadata is not None
    assert info.config.metadata["owner"] == "operations"
    assert info.state.messages == 1


@pytest.mark.parametrize(
    ("made", "field"),
    [
        (StreamConfig(name=COMMAND_STREAM, subjects=["holdfast.v1.cmd.>"]), "subjects"),
        (StreamConfig(name=COMMAND_STREAM, subjects=[command_filter()]), "subject_transform"),
        (StreamConfig(name=EVENT_STREAM, subjects=["holdfast.v1.evt.>"], storage=StorageType.MEMORY), "storage"),
    ],
)
async def test_what_cannot_be_updated_is_said_with_what_to_do(client: Client, made: StreamConfig, field: str) -> None:
    js = client.jetstream()
    await js.add_stream(made)

    with pytest.raises(BrokerError, match=f"the stream {made.name} has {field} .* delete the stream") as refused:
        await ensure_streams(js)

    assert refused.value.code == "stream_mismatch"


async def test_replicas_that_the_broker_cannot_give_are_said(client: Client) -> None:
    with pytest.raises(BrokerError, match="replicas") as refused:
        await ensure_streams(client.jetstream(), replicas=3)

    assert refused.value.code == "stream_refused"


async def test_a_foreign_broker_with_one_replica_is_durable_only_when_declared(client: Client) -> None:
    js = client.jetstream()
    await ensure_streams(js)

    with pytest.raises(BrokerError, match="three replicas") as refused:
        await require_durable(js)

    assert refused.value.code == "broker_not_durable"
    await require_durable(js, declared=True)
    await require_durable(js, embedded=True)
