"""Each user of the embedded broker can do what it must and nothing else; guests come and go without disturbance."""

from __future__ import annotations

import asyncio
import shutil
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.micro import add_service
from nats.micro.request import Request

from engine.broker import (
    COMMAND_STREAM,
    DEAD_LETTER_STREAM,
    BrokerError,
    BrokerSettings,
    connect,
    ensure_streams,
)
from engine.credentials import GuestCredentials, Users, guest_user, inbox_prefix
from engine.embedded import EmbeddedBroker
from engine.messages import (
    PAUSE_SUBJECT,
    CommandSubject,
    dead_letter_subject,
    event_subject,
    guest_subject,
    heartbeat_subject,
    query_subject,
)
from engine.state import StateDirectory
from tests.broker.servers import eventually

COMMAND = str(CommandSubject("p", "instance", "id", "restart"))
QUOTA = str(CommandSubject("p", "quota", "id", "release_quota"))
EVENT = event_subject("p", "instance", uuid.UUID(int=1), "Active")
QUERY = query_subject("p", "instances", "list")
LETTER = dead_letter_subject("p", "malformed")
ONE, OTHER = uuid.UUID(int=11), uuid.UUID(int=12)


class Clients:
    """Connections as users of one broker, closed at the end."""

    def __init__(self, broker: EmbeddedBroker, stack: AsyncExitStack) -> None:
        self.broker = broker
        self._stack = stack

    async def __call__(self, user: str) -> Client:
        client = await connect(self.broker.settings(user), name=user, inbox_prefix=inbox_prefix(user), timeout=10)
        self._stack.push_async_callback(client.close)
        return client


@pytest.fixture
async def clients(broker: EmbeddedBroker) -> AsyncIterator[Clients]:
    async with AsyncExitStack() as stack:
        yield Clients(broker, stack)


async def _denied(client: Client) -> bool:
    """Whether the broker refused what was sent last. Its complaint comes before its answer to the flush."""
    await client.flush(timeout=10)
    return "permissions violation" in str(client.last_error).lower()


async def _may_publish(clients: Clients, user: str, subject: str) -> bool:
    client = await clients(user)
    await client.publish(subject, b"{}")
    return not await _denied(client)


async def _may_subscribe(clients: Clients, user: str, subject: str) -> bool:
    client = await clients(user)
    await client.subscribe(subject)
    return not await _denied(client)


GUEST = guest_user(ONE)


@pytest.mark.parametrize(
    ("user", "subject"),
    [
        ("publisher", COMMAND),
        ("publisher", QUERY),
        ("operator", COMMAND),
        ("operator", QUERY),
        ("operator", "$SRV.PING"),
        ("worker", COMMAND),
        ("worker", QUOTA),
        ("worker", EVENT),
        ("worker", LETTER),
        ("worker", PAUSE_SUBJECT),
        ("worker", guest_subject(ONE, "stop")),
        ("worker", "_INBOX.publisher.x.y"),
        ("projector", "_INBOX.publisher.x.y"),
        (GUEST, heartbeat_subject(ONE)),
    ],
)
async def test_a_user_may_publish(clients: Clients, user: str, subject: str) -> None:
    await GuestCredentials(clients.broker).ensure(ONE)

    assert await _may_publish(clients, user, subject)


@pytest.mark.parametrize(
    ("user", "subject"),
    [
        ("publisher", QUOTA),
        ("operator", QUOTA),
        ("publisher", heartbeat_subject(ONE)),
        ("publisher", EVENT),
        ("publisher", LETTER),
        ("publisher", PAUSE_SUBJECT),
        ("publisher", guest_subject(ONE, "stop")),
        ("publisher", "_INBOX.worker.x"),
        ("publisher", "$JS.API.STREAM.DELETE.HOLDFAST_COMMANDS"),
        ("publisher", "$SYS.REQ.SERVER.PING"),
        ("operator", guest_subject(ONE, "stop")),
        ("operator", EVENT),
        ("operator", PAUSE_SUBJECT),
        ("operator", "$JS.API.STREAM.DELETE.HOLDFAST_DEAD"),
        ("operator", "$JS.API.STREAM.PURGE.HOLDFAST_COMMANDS"),
        ("operator", "$JS.API.CONSUMER.CREATE.HOLDFAST_COMMANDS.x"),
        ("projector", COMMAND),
        ("projector", EVENT),
        ("projector", PAUSE_SUBJECT),
        ("enrol", PAUSE_SUBJECT),
        ("projector", "$JS.API.STREAM.DELETE.HOLDFAST_COMMANDS"),
        (GUEST, heartbeat_subject(OTHER)),
        (GUEST, COMMAND),
        (GUEST, QUERY),
        (GUEST, EVENT),
        (GUEST, PAUSE_SUBJECT),
        (GUEST, guest_subject(OTHER, "stop")),
        (GUEST, guest_subject(ONE, "stop")),
        (GUEST, "_INBOX.worker.x"),
        (GUEST, "$JS.API.INFO"),
    ],
)
async def test_a_user_may_not_publish(clients: Clients, user: str, subject: str) -> None:
    await GuestCredentials(clients.broker).ensure(ONE)

    assert not await _may_publish(clients, user, subject)


@pytest.mark.parametrize(
    ("user", "subject"),
    [
        ("publisher", "holdfast.v1.evt.p.>"),
        ("publisher", "_INBOX.publisher.abc.*"),
        ("operator", "holdfast.v1.dlq.>"),
        ("worker", heartbeat_subject("*")),
        ("worker", "holdfast.v1.qry.>"),
        ("worker", PAUSE_SUBJECT),
        ("projector", heartbeat_subject("*")),
        ("projector", "holdfast.v1.qry.*.instances.>"),
        (GUEST, guest_subject(ONE, "*")),
    ],
)
async def test_a_user_may_subscribe(clients: Clients, user: str, subject: str) -> None:
    await GuestCredentials(clients.broker).ensure(ONE)

    assert await _may_subscribe(clients, user, subject)


@pytest.mark.parametrize(
    ("user", "subject"),
    [
        ("publisher", "holdfast.v1.cmd.>"),
        ("publisher", "holdfast.v1.qry.>"),
        ("publisher", guest_subject(ONE, "*")),
        ("publisher", heartbeat_subject("*")),
        ("publisher", "_INBOX.>"),
        ("publisher", ">"),
        ("operator", "holdfast.v1.qry.>"),
        ("operator", "_INBOX.>"),
        ("worker", "_INBOX.>"),
        ("projector", guest_subject("*", "*")),
        ("projector", "holdfast.v1.cmd.>"),
        (GUEST, guest_subject(OTHER, "*")),
        (GUEST, guest_subject("*", "*")),
        (GUEST, "_INBOX.>"),
        (GUEST, f"{inbox_prefix(guest_user(OTHER))}.>"),
        (GUEST, "holdfast.v1.evt.>"),
        (GUEST, heartbeat_subject("*")),
    ],
)
async def test_a_user_may_not_subscribe(clients: Clients, user: str, subject: str) -> None:
    await GuestCredentials(clients.broker).ensure(ONE)

    assert not await _may_subscribe(clients, user, subject)


async def test_the_way_of_a_command_is_open(clients: Clients) -> None:
    worker, publisher, operator = await clients("worker"), await clients("publisher"), await clients("operator")
    await ensure_streams(worker.jetstream())

    stored = await publisher.jetstream().publish(COMMAND, b"{}", timeout=10)
    reader = await worker.jetstream().pull_subscribe("holdfast.v1.cmdp.>", stream=COMMAND_STREAM)
    (message,) = await reader.fetch(1, timeout=10)
    await message.ack_sync(timeout=10)
    await worker.jetstream().publish(LETTER, b"letter", timeout=10)
    letters = await operator.jetstream().pull_subscribe("holdfast.v1.dlq.>", stream=DEAD_LETTER_STREAM)
    (letter,) = await letters.fetch(1, timeout=10)
    bucket = await worker.jetstream().create_key_value(bucket="leases", ttl=5)
    await bucket.put("a", b"1")
    await worker.jetstream().purge_stream(COMMAND_STREAM)

    assert (stored.stream, letter.data, (await bucket.get("a")).value) == (COMMAND_STREAM, b"letter", b"1")


async def test_questions_and_requests_are_answered(clients: Clients) -> None:
    await GuestCredentials(clients.broker).ensure(ONE)
    worker, publisher, projector, guest = [await clients(u) for u in ("worker", "publisher", "projector", GUEST)]

    async def list_them(request: Request) -> None:
        await request.respond(b"none")

    async def stop_it(message: Msg) -> None:
        await message.respond(b"stopped")

    service = await add_service(projector, name="queries", version="1.0.0")
    await service.add_endpoint(name="list", subject=QUERY, handler=list_them)
    await guest.subscribe(guest_subject(ONE, "*"), cb=stop_it)
    await asyncio.gather(projector.flush(), guest.flush())

    assert (await publisher.request(QUERY, timeout=10)).data == b"none"
    assert (await worker.request(guest_subject(ONE, "stop"), timeout=10)).data == b"stopped"
    await service.stop()


async def test_who_answers_cannot_be_made_to_command_the_broker(clients: Clients) -> None:
    worker, publisher, projector = await clients("worker"), await clients("publisher"), await clients("projector")
    await ensure_streams(worker.jetstream())

    async def answer(message: Msg) -> None:
        await message.respond(b"")

    await projector.subscribe(QUERY, cb=answer)
    await projector.flush()
    await publisher.publish(QUERY, b"{}", reply=f"$JS.API.STREAM.DELETE.{COMMAND_STREAM}")

    await eventually(lambda: "permissions violation" in str(projector.last_error).lower(), "the answer is refused")
    assert (await worker.jetstream().stream_info(COMMAND_STREAM)).config.name == COMMAND_STREAM


async def test_nobody_comes_in_without_a_seed_or_with_a_foreign_one(
    broker: EmbeddedBroker, state: StateDirectory
) -> None:
    foreign = Users(state.root / "cloud", state.root / "cloud" / "accounts.conf")
    foreign.load()

    for seed in (None, foreign.seed("worker")):
        with pytest.raises(BrokerError, match="refuses the credentials") as refused:
            await connect(BrokerSettings(url=broker.url, seed_file=seed), name="stranger", timeout=3)
        assert refused.value.code == "broker_unauthorised"


async def test_ten_guests_at_once_are_accepted_quickly(clients: Clients) -> None:
    credentials = GuestCredentials(clients.broker)
    ids = [uuid.uuid4() for _ in range(10)]
    began = time.monotonic()

    seeds = await asyncio.gather(*(credentials.ensure(each) for each in ids))

    assert time.monotonic() - began < 5  # far less on a quiet machine
    for each, seed in zip(ids, seeds, strict=True):
        assert seed.stat().st_mode & 0o777 == 0o600
        assert (await clients(guest_user(each))).is_connected


async def test_ensuring_again_gives_the_same_seed(broker: EmbeddedBroker) -> None:
    first = (await GuestCredentials(broker).ensure(ONE)).read_bytes()

    assert (await GuestCredentials(broker).ensure(ONE)).read_bytes() == first


async def test_revoking_drops_the_live_connection_and_nobody_elses(clients: Clients, tmp_path: Path) -> None:
    credentials = GuestCredentials(clients.broker)
    seed = await credentials.ensure(ONE)
    copy = tmp_path / "agent.nk"
    shutil.copy(seed, copy)
    await credentials.ensure(OTHER)
    guest, other, worker = await clients(guest_user(ONE)), await clients(guest_user(OTHER)), await clients("worker")

    await credentials.revoke(ONE)
    await credentials.revoke(ONE)

    await eventually(lambda: not guest.is_connected, "the guest's connection is dropped")
    assert not seed.exists()
    with pytest.raises(BrokerError, match="broker_unauthorised"):
        await connect(BrokerSettings(url=clients.broker.url, seed_file=copy), name="revoked", timeout=3)
    await asyncio.gather(other.flush(), worker.flush())
    assert [c.stats["reconnects"] for c in (other, worker)] == [0, 0]
    again = await credentials.ensure(ONE)
    assert again == seed
    assert (await clients(guest_user(ONE))).is_connected


async def test_guests_that_come_and_go_disturb_no_command_under_way(clients: Clients) -> None:
    credentials = GuestCredentials(clients.broker)
    worker, publisher = await clients("worker"), await clients("publisher")
    await ensure_streams(worker.jetstream())
    reader = await worker.jetstream().pull_subscribe("holdfast.v1.cmdp.>", stream=COMMAND_STREAM)
    coming = asyncio.create_task(_come_and_go(credentials))
    published = 0
    while not coming.done() or published < 100:
        await publisher.jetstream().publish(COMMAND, b"{}", timeout=10)
        published += 1
    await coming

    read = 0
    while read < published:
        read += len(await reader.fetch(min(100, published - read), timeout=10))
    assert read == published
    assert [c.stats["reconnects"] for c in (worker, publisher)] == [0, 0]


async def _come_and_go(credentials: GuestCredentials) -> None:
    for _ in range(10):
        guest = uuid.uuid4()
        await credentials.ensure(guest)
        await credentials.revoke(guest)


async def test_a_cancelled_call_leaves_nothing_that_a_later_one_cannot_undo(broker: EmbeddedBroker) -> None:
    credentials = GuestCredentials(broker)
    for _ in range(20):
        ensuring = asyncio.create_task(credentials.ensure(ONE))
        await asyncio.sleep(0)
        ensuring.cancel()
        await credentials.revoke(ONE)
        assert not broker.users.seed(guest_user(ONE)).exists()

    assert (await credentials.ensure(ONE)).exists()


async def test_issuing_waits_for_a_server_that_is_down(clients: Clients) -> None:
    broker = clients.broker
    await broker.stop()
    issuing = asyncio.create_task(GuestCredentials(broker).ensure(ONE))

    await broker.start()

    await issuing
    assert (await clients(guest_user(ONE))).is_connected


async def test_guests_are_known_after_a_restart_and_half_made_files_are_forgotten(
    broker: EmbeddedBroker, state: StateDirectory, clients: Clients
) -> None:
    await GuestCredentials(broker).ensure(ONE)
    await GuestCredentials(broker).ensure(OTHER)
    await broker.stop()
    half_made = state.credentials / f".{guest_user(uuid.uuid4())}.nk.new"
    half_made.write_bytes(b"SUA")
    broker.users.seed(guest_user(OTHER)).write_bytes(b"damaged")

    await broker.start()

    assert not half_made.exists()
    assert (await clients(guest_user(ONE))).is_connected
    await GuestCredentials(broker).ensure(OTHER)
    assert (await clients(guest_user(OTHER))).is_connected


@pytest.mark.parametrize("name", ["guest-*", "guest-", "somebody"])
async def test_a_seed_of_nobody_gives_no_rights(
    broker: EmbeddedBroker, state: StateDirectory, clients: Clients, name: str
) -> None:
    await broker.stop()
    shutil.copy(await asyncio.to_thread(broker.users.add, guest_user(ONE)), state.credentials / f"{name}.nk")
    await asyncio.to_thread(broker.users.remove, guest_user(ONE))

    await broker.start()

    with pytest.raises(BrokerError, match="broker_unauthorised"):
        await connect(broker.settings(name), name=name, timeout=3)
    assert (await clients("worker")).is_connected


async def test_a_damaged_seed_of_ours_is_said(broker: EmbeddedBroker, state: StateDirectory) -> None:
    await broker.stop()
    broker.users.seed("worker").write_bytes(b"damaged")

    with pytest.raises(BrokerError, match=r"worker\.nk holds no seed; delete it") as damaged:
        await broker.start()

    assert damaged.value.code == "seed_damaged"


async def test_the_brokers_list_of_users_has_no_secret(broker: EmbeddedBroker, state: StateDirectory) -> None:
    seed = (await GuestCredentials(broker).ensure(ONE)).read_text().strip()

    for path in state.broker.rglob("*"):
        assert path.is_dir() or seed.encode() not in path.read_bytes(), path
