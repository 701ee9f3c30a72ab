"""A consumer is read ahead, in order and without a gap; what cannot be so is said."""

from __future__ import annotations

import asyncio
import json

import pytest
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig

from engine import reading
from engine.broker import EVENT_STREAM, ensure_streams
from engine.reading import AHEAD, ConsumerLostError, Reader, _numbers
from tests.broker.servers import PlainServer, eventually

SUBJECT = "holdfast.v1.evt.p1.instance.x.InstanceRequested"


async def made(client: Client) -> Reader:
    """A reader of a consumer that begins with the stream."""
    js = client.jetstream()
    await ensure_streams(js)
    config = ConsumerConfig(ack_policy=AckPolicy.NONE, mem_storage=True, inactive_threshold=60.0)
    consumer = await js.add_consumer(EVENT_STREAM, config=config)
    return Reader(client, EVENT_STREAM, consumer.name)


async def publish(client: Client, number: int, first: int = 0) -> None:
    for n in range(first, first + number - 1):
        await client.publish(SUBJECT, b"%d" % n)
    await client.jetstream().publish(SUBJECT, b"%d" % (first + number - 1), headers={"Holdfast-Reply-To": "me"})


async def read(reader: Reader, number: int, at_most: int = 100) -> list[int]:
    """So many messages, in whatever portions they come."""
    bodies: list[int] = []
    async with asyncio.timeout(20):
        while len(bodies) < number:
            portion = await reader.next(at_most)
            assert len(portion) <= at_most
            bodies.extend(int(each.data) for each in portion)
    return bodies


async def read_on(reader: Reader, into: list[int]) -> None:
    """Read for ever."""
    while True:
        into.extend(int(each.data) for each in await reader.next(50))


async def test_all_come_once_and_in_order_with_their_numbers_and_headers(client: Client) -> None:
    async with await made(client) as reader:
        await publish(client, 3)
        found = [await reader.next(1), await reader.next(1), await reader.next(1)]
        each = [message for portion in found for message in portion]
        assert [(one.sequence, one.subject, one.data) for one in each] == [
            (n + 1, SUBJECT, b"%d" % n) for n in range(3)
        ]
        assert [one.headers.get("Holdfast-Reply-To") for one in each] == [None, None, "me"]


async def test_more_than_may_lie_here_come_in_order_too(client: Client) -> None:
    async with await made(client) as reader:
        await publish(client, 5 * AHEAD)
        assert await read(reader, 5 * AHEAD) == list(range(5 * AHEAD))
        await publish(client, 10, first=5 * AHEAD)
        assert await read(reader, 10) == list(range(5 * AHEAD, 5 * AHEAD + 10))


async def test_while_the_reader_is_busy_the_next_arrive_but_not_without_end(client: Client) -> None:
    async with await made(client) as reader:
        await publish(client, 4 * AHEAD)
        (first,) = await reader.next(1)
        await eventually(lambda: len(reader._arrived) >= AHEAD - reading.PULL, "half of what may lie here has arrived")
        await client.flush()
        await asyncio.sleep(0.2)
        assert len(reader._arrived) <= AHEAD
        assert [int(first.data), *await read(reader, AHEAD)][:50] == list(range(50))


async def test_one_alone_comes_at_once_also_after_requests_have_expired(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "EXPIRES", 0.3)
    async with await made(client) as reader:
        for _ in range(4):
            assert await reader.next(10) == []
        asked = reader._asked
        await publish(client, 1)
        assert await read(reader, 1) == [0]
        assert asked > 4


async def test_it_does_not_return_empty_because_of_what_was_handed_out_already(client: Client) -> None:
    async with await made(client) as reader:
        await publish(client, 3)
        assert await read(reader, 3) == [0, 1, 2]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await reader.next(10)


async def test_being_woken_between_two_looks_is_not_forgotten(client: Client) -> None:
    async with await made(client) as reader:
        await publish(client, 1)
        assert await read(reader, 1) == [0]
        reader.wake()
        async with asyncio.timeout(1):
            assert await reader.next(10) == []


async def test_it_is_woken(client: Client) -> None:
    async with await made(client) as reader:
        asyncio.get_running_loop().call_later(0.05, reader.wake)
        async with asyncio.timeout(1):
            assert await reader.next(10) == []


async def test_a_consumer_that_is_gone_is_said(client: Client) -> None:
    async with await made(client) as reader:
        await client.jetstream().delete_consumer(EVENT_STREAM, reader._next_subject.rpartition(".")[2])
        with pytest.raises(ConsumerLostError):
            await read_on(reader, [])


async def test_a_message_that_went_elsewhere_is_said_after_those_before_it(client: Client) -> None:
    async with await made(client) as reader:
        await publish(client, 2)
        assert await read(reader, 2) == [0, 1]
        # Whoever asks for the same consumer takes messages away, as a lost connection does.
        rival = await client.subscribe("rival")
        await client.publish(reader._next_subject, json.dumps({"batch": 1}).encode(), reply="rival")
        await client.flush()
        await publish(client, 2 * AHEAD, first=2)
        await rival.next_msg(5)
        before: list[int] = []
        with pytest.raises(ConsumerLostError, match="came after"):
            await read_on(reader, before)
        assert before == list(range(2, len(before) + 2))


async def test_a_broker_that_fell_silent_is_said(
    server: PlainServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "SILENCE", 0.5)
    async with await made(client) as reader:
        server.kill()
        with pytest.raises(ConsumerLostError, match="nothing was heard"):
            await read_on(reader, [])


@pytest.mark.parametrize(
    "reply",
    [
        "$JS.ACK.S.C.1.70.8.1700000000000000000.0",
        "$JS.ACK._.hash.S.C.1.70.8.1700000000000000000.0",
        "$JS.ACK.hub.hash.S.C.1.70.8.1700000000000000000.0.random",
    ],
)
def test_numbers_are_read_from_every_form_of_a_reply(reply: str) -> None:
    assert _numbers(reply) == (70, 8)
