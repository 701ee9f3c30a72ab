"""On a broker that its operator runs, guests are let in by auth callout, with the same tokens and the same rights."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

import msgspec
import nkeys  # type: ignore[import-untyped]
import pytest
from nats.aio.client import Client

from engine import callout as callouts
from engine import nkey
from engine.broker import BrokerError, BrokerSettings, connect, ensure_streams
from engine.callout import Callout
from engine.credentials import guest_user, inbox_prefix
from engine.enrolment import Access, Enrolment
from engine.guest.user_data import Machine, parse
from engine.messages import EnrolReply, enrolment_subject, guest_subject, heartbeat_subject
from engine.tasks import end
from tests.enrolment.conftest import request
from tests.support.broker import Broker
from tests.support.broker_users import Key, asks_about_guests
from tests.support.eventually import eventually

ONE, OTHER = uuid.UUID(int=51), uuid.UUID(int=52)


class ForeignSite:
    """A broker as an operator sets it up for guests, and a worker's enrolment on it."""

    def __init__(self, broker: Broker, directory: Path, stack: AsyncExitStack) -> None:
        self._broker = broker
        self._directory = directory
        self._stack = stack
        self.worker_key, self.enrol_key = Key(), Key()
        self.issuer = Key(nkeys.PREFIX_BYTE_ACCOUNT)
        broker.configure(asks_about_guests(self.worker_key, self.enrol_key, self.issuer))

    async def open(self) -> None:
        """Everything runs."""
        self._broker.start()
        self._stack.callback(self._broker.stop)
        self.worker = await self.client("worker", self.worker_key.seed)
        await ensure_streams(self.worker.jetstream())
        self.callout = Callout(self.worker, self.issuer.seed, "HOLDFAST")
        self.enrolment = Enrolment(
            self.worker, self.callout, lambda: Access(url=self._broker.url, seed=self.enrol_key.seed)
        )
        for part in (self.callout.run(), self.enrolment.run()):
            self._stack.push_async_callback(end, asyncio.create_task(part))
        await asyncio.sleep(0)  # both have subscribed
        await self.worker.flush()

    async def client(self, name: str, seed: str, user: str | None = None, timeout: float = 10) -> Client:
        """A connection with this seed."""
        file = self._directory / f"{nkey.public_key(seed)}.nk"
        file.write_text(seed)
        settings = BrokerSettings(url=self._broker.url, seed_file=file)
        made = await connect(settings, name=name, inbox_prefix=inbox_prefix(user or name), timeout=timeout)
        self._stack.push_async_callback(made.close)
        return made

    async def guest(self, instance_id: uuid.UUID, seed: str, timeout: float = 10) -> Client:
        """A connection as the instance's agent makes it."""
        return await self.client(guest_user(instance_id), seed, timeout=timeout)

    async def machine(self, instance_id: uuid.UUID) -> Machine:
        """What a machine is told."""
        await self.enrolment.ensure(instance_id)
        return parse(await self.enrolment.user_data(instance_id, "redis", "6.2"))

    async def enrolled(self, instance_id: uuid.UUID) -> str:
        """The seed of a machine that has enrolled."""
        seed = nkey.make_seed()
        asked = request(await self.machine(instance_id), seed)
        client = await self.client("enrol", self.enrol_key.seed)
        answer = await client.request(enrolment_subject(), msgspec.json.encode(asked), timeout=10)
        assert msgspec.json.decode(answer.data, type=EnrolReply).accepted
        return seed


@pytest.fixture
async def foreign(tmp_path: Path) -> AsyncIterator[ForeignSite]:
    async with AsyncExitStack() as stack:
        made = ForeignSite(Broker(tmp_path / "broker"), tmp_path, stack)
        await made.open()
        yield made


async def test_who_enrolled_is_let_in_and_speaks_for_its_instance(foreign: ForeignSite) -> None:
    guest = await foreign.guest(ONE, await foreign.enrolled(ONE))
    beats = await foreign.worker.subscribe(heartbeat_subject("*"))
    verbs = await guest.subscribe(guest_subject(ONE, "*"))
    await foreign.worker.flush()
    await guest.publish(heartbeat_subject(ONE), b"{}")
    await guest.flush()
    assert (await beats.next_msg(10)).subject == heartbeat_subject(ONE)
    asking = asyncio.create_task(foreign.worker.request(guest_subject(ONE, "report"), b"", timeout=10))
    await (await verbs.next_msg(10)).respond(b"here")
    assert (await asking).data == b"here"


@pytest.mark.parametrize("subject", [heartbeat_subject(OTHER), enrolment_subject(), "$JS.API.INFO", callouts.SUBJECT])
async def test_it_speaks_for_no_other(foreign: ForeignSite, subject: str) -> None:
    guest = await foreign.guest(ONE, await foreign.enrolled(ONE))
    await guest.publish(subject, b"{}")
    await guest.flush()
    assert "permissions violation" in str(guest.last_error).lower()


async def test_a_key_that_did_not_enrol_stays_out(foreign: ForeignSite) -> None:
    await foreign.machine(ONE)
    with pytest.raises(BrokerError, match="broker_unauthorised"):
        await foreign.guest(ONE, nkey.make_seed(), timeout=3)


async def test_a_key_of_another_instance_stays_out(foreign: ForeignSite) -> None:
    seed = await foreign.enrolled(ONE)
    await foreign.enrolled(OTHER)
    with pytest.raises(BrokerError, match="broker_unauthorised"):
        await foreign.guest(OTHER, seed, timeout=3)


@pytest.mark.parametrize("name", ["guest-", "guest-*", "worker", "guest-../x", f"guest-{ONE}.>"])
async def test_who_is_no_guest_stays_out(foreign: ForeignSite, name: str) -> None:
    seed = await foreign.enrolled(ONE)
    with pytest.raises(BrokerError, match="broker_unauthorised"):
        await foreign.client(name, seed, user="guest", timeout=3)


async def test_whoever_is_revoked_does_not_come_in_again(foreign: ForeignSite) -> None:
    seed = await foreign.enrolled(ONE)
    await foreign.guest(ONE, seed)
    await foreign.enrolment.revoke(ONE)
    with pytest.raises(BrokerError, match="broker_unauthorised"):
        await foreign.guest(ONE, seed, timeout=3)


async def test_one_that_is_revoked_is_out_when_its_leave_ends(foreign: ForeignSite) -> None:
    foreign.callout.leave = timedelta(seconds=2)
    guest = await foreign.guest(ONE, await foreign.enrolled(ONE))
    await foreign.enrolment.revoke(ONE)

    async def is_out() -> bool:
        return not guest.is_connected

    await eventually(is_out)


async def test_what_is_no_question_is_passed_over(foreign: ForeignSite) -> None:
    for body in (b"", b"a.b", b"a.e30.c", b"\xff.\xff.\xff", b"." * 1000):
        await foreign.worker.publish(callouts.SUBJECT, body)
    await foreign.worker.flush()
    assert (await foreign.guest(ONE, await foreign.enrolled(ONE))).is_connected
