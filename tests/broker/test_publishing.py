"""What is published into a stream is there in order and at least once, as an atomic batch or without one."""

from __future__ import annotations

import nats.errors
import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, StreamConfig
from nats.js.errors import APIError, NoStreamResponseError

from engine.broker import EVENT_STREAM, BrokerSettings, Message, Publisher, connect, ensure_streams, publishing
from engine.broker.publishing import ATOMIC_AT_MOST, ATOMIC_FROM
from engine.messages import MSG_ID
from tests.broker.servers import PlainServer

SUBJECT = "holdfast.v1.evt.p1.instance.x.InstanceRequested"


def messages(number: int, first: int = 0) -> list[Message]:
    return [Message(SUBJECT, b"%d" % n, f"m{n}") for n in range(first, first + number)]


async def stored(js: JetStreamContext, stream: str = EVENT_STREAM) -> list[int]:
    """The bodies that lie in the stream, in order."""
    state = (await js.stream_info(stream)).state
    return [int((await js.get_msg(stream, n)).data or b"") for n in range(state.first_seq, state.last_seq + 1)]


async def batches(js: JetStreamContext) -> set[str | None]:
    """The batches as which they were stored; None for those stored alone."""
    state = (await js.stream_info(EVENT_STREAM)).state
    found = [(await js.get_msg(EVENT_STREAM, n)).headers for n in range(1, state.last_seq + 1)]
    return {(headers or {}).get("Nats-Batch-Id") for headers in found}


async def test_many_are_stored_in_order_as_one_batch(client: Client) -> None:
    js = client.jetstream()
    await ensure_streams(js)
    await Publisher(client).publish(messages(ATOMIC_FROM))
    assert await stored(js) == list(range(ATOMIC_FROM))
    assert len(await batches(js) - {None}) == 1
    assert None not in await batches(js)


async def test_more_than_a_batch_holds_become_several(client: Client) -> None:
    js = client.jetstream()
    await ensure_streams(js)
    await Publisher(client).publish(messages(ATOMIC_AT_MOST + 3))
    assert await stored(js) == list(range(ATOMIC_AT_MOST + 3))


async def test_few_are_stored_in_order_one_by_one(client: Client) -> None:
    js = client.jetstream()
    await ensure_streams(js)
    publisher = Publisher(client)
    await publisher.publish(messages(ATOMIC_FROM - 1))
    await publisher.publish(messages(2, first=ATOMIC_FROM - 1))
    assert await stored(js) == list(range(ATOMIC_FROM + 1))
    assert await batches(js) == {None}


@pytest.mark.parametrize("before", [1, 20, 40])
async def test_what_was_published_before_a_crash_is_not_there_twice(client: Client, before: int) -> None:
    js = client.jetstream()
    await ensure_streams(js)
    await Publisher(client).publish(messages(before))
    after = Publisher(client)
    await after.publish(messages(40))
    assert await stored(js) == list(range(40))
    await after.publish(messages(40, first=40))
    assert await stored(js) == list(range(80))
    assert len(await batches(js) - {None}) >= 1


async def test_a_broker_that_takes_no_batches_gets_all_in_order(client: Client) -> None:
    js = client.jetstream()
    await js.add_stream(StreamConfig(name=EVENT_STREAM, subjects=["holdfast.v1.evt.>"]))
    publisher = Publisher(client)
    await publisher.publish(messages(40))
    await publisher.publish(messages(40, first=40))
    assert await stored(js) == list(range(80))


@pytest.mark.parametrize("number", [3, 40])
async def test_a_stream_that_refuses_is_an_error(client: Client, number: int) -> None:
    js = client.jetstream()
    await js.add_stream(
        StreamConfig(
            name=EVENT_STREAM, subjects=["holdfast.v1.evt.>"], max_msgs=2, discard=DiscardPolicy.NEW, allow_atomic=True
        )
    )
    with pytest.raises(APIError, match="maximum messages"):
        await Publisher(client).publish(messages(number))


@pytest.mark.parametrize("number", [3, 40])
async def test_without_a_stream_it_is_an_error(client: Client, number: int) -> None:
    await client.jetstream().account_info()
    with pytest.raises((NoStreamResponseError, nats.errors.NoRespondersError)):
        await Publisher(client).publish(messages(number))


@pytest.mark.parametrize("number", [10, 400])
async def test_a_broker_that_dies_has_all_once_they_are_published_again(
    server: PlainServer, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "ACKNOWLEDGED_WITHIN", 1.0)
    client = await connect(BrokerSettings(url=server.url), name="dies")
    try:
        js = client.jetstream()
        await ensure_streams(js)
        publisher = Publisher(client)
        await publisher.publish(messages(number))
        await client.publish(SUBJECT, b"%d" % number, headers={MSG_ID: f"m{number}"})
        server.kill()
        server.start()
        while True:
            try:
                await publisher.publish(messages(2 * number))
            except (nats.errors.Error, TimeoutError):
                continue
            break
        assert await stored(js) == list(range(2 * number))
    finally:
        await client.close()


async def test_streams_made_by_an_older_version_learn_to_take_batches(client: Client) -> None:
    js = client.jetstream()
    await ensure_streams(js)
    config = (await js.stream_info(EVENT_STREAM)).config
    await js.update_stream(config.evolve(allow_atomic=False))
    await ensure_streams(js)
    assert (await js.stream_info(EVENT_STREAM)).config.allow_atomic
