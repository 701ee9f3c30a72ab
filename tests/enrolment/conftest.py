from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import msgspec
import pytest
from nats.aio.client import Client

from engine import nkey
from engine.broker import BrokerSettings, connect, ensure_streams
from engine.credentials import GuestCredentials, guest_user, inbox_prefix
from engine.embedded import EmbeddedBroker
from engine.enrolment import Access, Enrolment
from engine.guest.user_data import Machine, parse
from engine.messages import EnrolReply, EnrolRequest, enrolment_claim, enrolment_subject
from engine.state import StateDirectory
from engine.tasks import end


class Clock:
    """A wall clock that goes when told to."""

    def __init__(self) -> None:
        self.at = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.at

    def advance(self, by: timedelta) -> None:
        self.at += by


class Site:
    """An embedded broker, a worker's enrolment on it, and machines that know their user data and nothing else."""

    def __init__(self, broker: EmbeddedBroker, worker: Client, stack: AsyncExitStack, seeds: Path) -> None:
        self.broker = broker
        self.worker = worker
        self.clock = Clock()
        self.enrolment = self.new_enrolment()
        self._stack = stack
        self._seeds = seeds

    def new_enrolment(self) -> Enrolment:
        """Another worker's, or the same after its restart."""
        access = Access(url=self.broker.url, seed=self.broker.users.seed("enrol").read_text().strip())
        return Enrolment(self.worker, GuestCredentials(self.broker), lambda: access, now=self.clock)

    async def machine(self, instance_id: UUID) -> Machine:
        """What a machine of the instance is told."""
        await self.enrolment.ensure(instance_id)
        return parse(await self.enrolment.user_data(instance_id, "postgresql", "16"))

    async def ask(self, request: EnrolRequest | bytes) -> EnrolReply:
        """As a machine asks: over the broker, as its user `enrol`."""
        client = await self._client("enrol", self.broker.users.seed("enrol"), inbox_prefix("enrol"))
        body = request if isinstance(request, bytes) else msgspec.json.encode(request)
        reply = await client.request(enrolment_subject(), body, timeout=10)
        return msgspec.json.decode(reply.data, type=EnrolReply)

    async def guest(self, instance_id: UUID, seed: str, timeout: float = 10.0) -> Client:
        """A connection under the guest's own key. Raises `BrokerError` when it is refused."""
        file = self._seeds / f"{nkey.public_key(seed)}.nk"
        file.write_text(seed)
        return await self._client("guest", file, inbox_prefix(guest_user(instance_id)), timeout)

    async def _client(self, name: str, seed: Path, prefix: str, timeout: float = 10.0) -> Client:
        settings = BrokerSettings(url=self.broker.url, seed_file=seed)
        client = await connect(settings, name=name, inbox_prefix=prefix, timeout=timeout)
        self._stack.push_async_callback(client.close)
        return client


def request(machine: Machine, seed: str) -> EnrolRequest:
    """What a machine sends that made this seed."""
    public = nkey.public_key(seed)
    return EnrolRequest(
        instance_id=machine.instance_id,
        public_key=public,
        token=nkey.public_key(machine.token),
        proof=nkey.sign(machine.token, enrolment_claim(machine.instance_id, public)),
    )


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    state = StateDirectory(tmp_path / "state")
    state.prepare()
    broker = EmbeddedBroker(state, None)
    await broker.start()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(broker.stop)
        worker = await connect(broker.settings("worker"), name="worker", inbox_prefix=inbox_prefix("worker"))
        stack.push_async_callback(worker.close)
        await ensure_streams(worker.jetstream())
        made = Site(broker, worker, stack, tmp_path)
        serving = asyncio.create_task(made.enrolment.run())
        stack.push_async_callback(end, serving)
        await worker.flush()
        yield made
