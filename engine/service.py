"""The processes of an installation, put together: all in one, a worker, a projector.

`up` needs nothing else on the machine; `worker` and `projector` are the same parts as processes of their own, around
a broker and a store that are run by somebody else. SIGTERM ends each in order; databases and their agents stay.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import structlog
from nats.aio.client import Client

from aggregates.base import Event
from engine import crash_environment
from engine.broker import BrokerError, BrokerSettings, connect, ensure_streams, require_durable, shown
from engine.callout import Callout
from engine.clouds.local import LocalCloud
from engine.clouds.port import Cloud
from engine.clouds.simulated import SimulatedGuests
from engine.clouds.simulated.client import FarSide, RemoteCloud
from engine.credentials import GuestCredentials, inbox_prefix
from engine.embedded import DEFAULT_PORT, EmbeddedBroker
from engine.enrolment import Access, Enrolment
from engine.event_log import EventLog, open_log, when_available
from engine.guest.datastores.catalogue import KNOWN, available
from engine.guests import Guests
from engine.listening import Listening
from engine.observer import OBSERVE_EVERY
from engine.pauses import Pauses
from engine.payer import GuestPort
from engine.state import StateDirectory
from engine.store import EventStore, open_store
from engine.tasks import end, run_together
from engine.vault import Vault
from engine.worker import Worker
from projections.base import ReadModels
from projections.models import MODELS
from projections.projector import Projector
from projections.run import run_projector

log = structlog.get_logger(__name__)

LOCAL = "local"
OPENSTACK = "openstack"
SIMULATED = "simulated:"
CALLOUT_ACCOUNT = "HOLDFAST"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a process is told. `broker` None: the embedded one, `listening` on `port`. `store_url` None: SQLite.

    `durable_broker`: the operator vouches that a broker which is not ours keeps what it acknowledges.
    `guest_seed`: the NKey seed that guests use with such a broker, or enrol with. `callout_seed`: that of the account
    key by which it lets guests of `callout_account` in. `cloud`: `local`; `openstack`, or with a colon and
    the name of an entry of clouds.yaml, as `cloud_config` says; or `simulated:` and the path of a socket.
    """

    state: Path
    broker: BrokerSettings | None = None
    port: int | None = DEFAULT_PORT
    listening: Listening = Listening()
    store_url: str | None = None
    run_as: tuple[int, int] | None = None
    mount: bool = True
    in_flight: int = 64
    observe_every: float = OBSERVE_EVERY
    durable_broker: bool = False
    guest_seed: Path | None = None
    callout_seed: Path | None = None
    callout_account: str = CALLOUT_ACCOUNT
    cloud: str = LOCAL
    cloud_config: Path | None = None

    def store(self) -> str:
        """The event store's URL."""
        return self.store_url or f"sqlite://{StateDirectory(self.state).events}"


class SharedCredentials:
    """Guests of a broker that we do not run use the one seed that its operator gave for guests, or none."""

    def __init__(self, seed_file: Path | None) -> None:
        self._seed_file = seed_file

    async def ensure(self, instance_id: UUID) -> Path | None:
        """The operator's seed file for guests."""
        del instance_id
        return self._seed_file

    async def admit(self, instance_id: UUID, public_key: str) -> None:
        """The broker's operator admits it."""
        log.info("credentials_are_the_operators", instance_id=str(instance_id), key=public_key)

    async def revoke(self, instance_id: UUID) -> None:
        """The broker's operator revokes it."""
        log.info("credentials_are_the_operators", instance_id=str(instance_id))


async def run_up(settings: Settings) -> None:
    """Everything in one process, until SIGTERM or SIGINT."""
    async with _process(settings) as process:
        store = await process.open_store()
        broker = None if settings.broker is not None else await process.start_broker()
        client = await process.connect("worker", broker)
        process.add("worker", await process.worker(store, client, broker))
        nudge = _Nudge()
        store.listen(nudge)
        events = await process.open_log()
        reading = await process.connect("projector", broker)
        process.add("projector", run_projector(events, process.state.read_models, reading, wake=nudge))
        log.info("holdfast_up", broker=shown(process.url(broker)), state=str(process.state.root))
        await process.run()
    log.info("holdfast_down")


async def run_worker(settings: Settings) -> None:
    """A worker alone, around a broker and a store that exist."""
    async with _process(settings) as process:
        store = await process.open_store()
        client = await process.connect("worker", None)
        process.add("worker", await process.worker(store, client, None))
        await process.run()


async def run_projections(settings: Settings) -> None:
    """A projector alone: follows the store's log and answers queries."""
    async with _process(settings) as process:
        client = await process.connect("projector", None)
        process.add("projector", run_projector(await process.open_log(), process.state.read_models, client))
        await process.run()


class _Process:
    """The parts of one process, and what must be let go of when it ends."""

    def __init__(self, settings: Settings, stack: AsyncExitStack) -> None:
        self.state = StateDirectory(settings.state)
        self._settings = settings
        self._stack = stack
        self._parts: dict[str, Coroutine[Any, Any, None]] = {}

    def add(self, name: str, part: Coroutine[Any, Any, None]) -> None:
        """Have the part run with the others."""
        self._parts[name] = part

    async def open_store(self) -> EventStore:
        """The event store, to write; its database is waited for. Raises `StoreInUseError`, `StoreRefusedError`."""
        url = self._settings.store()
        store = await when_available(url, lambda: open_store(url, lock=self.state.lock))
        store.start()
        self._stack.push_async_callback(store.close)
        return store

    async def open_log(self) -> EventLog:
        """The event store, to read; its database is waited for. Raises `StoreRefusedError`."""
        url = self._settings.store()
        events = await when_available(url, lambda: open_log(url))
        self._stack.callback(events.close)
        return events

    async def start_broker(self) -> EmbeddedBroker:
        """The embedded broker, running and supervised."""
        broker = EmbeddedBroker(self.state, self._settings.port, listening=self._settings.listening)
        await broker.start()
        self._stack.push_async_callback(broker.stop)
        self.add("broker", broker.supervise())
        return broker

    async def connect(self, user: str, broker: EmbeddedBroker | None) -> Client:
        """A connection as the user; one that the broker ends for good ends the process, to be started anew."""
        ended = asyncio.Event()

        async def on_closed() -> None:
            ended.set()

        async def watch() -> None:
            await ended.wait()
            raise BrokerError("connection_ended", f"the broker has ended the connection of the {user} for good")

        settings = self._foreign() if broker is None else broker.settings(user)
        client = await connect(settings, name=user, inbox_prefix=inbox_prefix(user), on_closed=on_closed)
        self._stack.push_async_callback(client.close)
        self.add(f"{user}_connection", watch())
        return client

    async def worker(
        self, store: EventStore, client: Client, broker: EmbeddedBroker | None
    ) -> Coroutine[Any, Any, None]:
        """A worker on the cloud that it is told to use."""
        settings = self._settings
        await ensure_streams(client.jetstream())
        await require_durable(client.jetstream(), embedded=broker is not None, declared=settings.durable_broker)
        vault = Vault(self.state.vault)
        cloud, guests = self._cloud(client, broker, vault)
        return Worker(client, store, cloud, guests, vault, observe_every=settings.observe_every).run()

    def _cloud(self, client: Client, broker: EmbeddedBroker | None, vault: Vault) -> tuple[Cloud, GuestPort]:
        settings = self._settings
        if settings.cloud.startswith(SIMULATED):
            far_side = FarSide(Path(settings.cloud.removeprefix(SIMULATED)))
            cloud = RemoteCloud(far_side, in_flight=settings.in_flight)
            return cloud, SimulatedGuests(agents=far_side, secrets=vault)
        kind, _, named = settings.cloud.partition(":")
        if kind == OPENSTACK:
            return self._openstack(named or None, client, broker), Guests(client, vault)
        if settings.cloud != LOCAL:
            raise ValueError(
                f"there is no cloud {settings.cloud}: say {LOCAL}, {OPENSTACK}[:<entry of clouds.yaml>], "
                f"or {SIMULATED}<path of a socket>"
            )
        ca = self._foreign().tls_ca if broker is None else self._settings.listening.ca
        local = LocalCloud(
            self.state.cloud,
            nats_url=self.url(broker),
            tls_ca=ca and ca.absolute(),  # agents run in a directory of their own
            credentials=SharedCredentials(settings.guest_seed) if broker is None else GuestCredentials(broker),
            datastores=available(),
            run_as=settings.run_as,
            mount="auto" if settings.mount else "never",
            in_flight=settings.in_flight,
        )
        return local, Guests(client, vault)

    def _openstack(self, named: str | None, client: Client, broker: EmbeddedBroker | None) -> Cloud:
        # Both take longer to import than all the rest, and few processes need them.
        from engine.clouds.openstack import load_config, open_regions  # noqa: PLC0415

        if self._settings.cloud_config is None:
            raise ValueError("OpenStack needs to be told of its networks at least: say --cloud-config FILE")
        config = load_config(self._settings.cloud_config, cloud=named)
        enrolment = self._enrolment(client, broker)
        self.add("enrolment", enrolment.run())
        pauses = Pauses(client)
        self.add("pauses", pauses.run())
        return open_regions(config, enrolment=enrolment, datastores=KNOWN, pauses=pauses)

    def _enrolment(self, client: Client, broker: EmbeddedBroker | None) -> Enrolment:
        if broker is not None:
            told = broker.settings("enrol")
            access = Access(url=told.url, ca=_text(told.tls_ca), seed=_text(told.seed_file))
            return Enrolment(client, GuestCredentials(broker), lambda: access)
        foreign, seed = self._foreign(), self._settings.guest_seed
        access = Access(url=foreign.url, ca=_text(foreign.tls_ca), seed=_text(seed))
        issuer = _text(self._settings.callout_seed)
        if issuer is None:
            return Enrolment(client, SharedCredentials(seed), lambda: access)
        callout = Callout(client, issuer, self._settings.callout_account)
        self.add("callout", callout.run())
        return Enrolment(client, callout, lambda: access)

    def url(self, broker: EmbeddedBroker | None) -> str:
        """Where agents find the broker."""
        return self._foreign().url if broker is None else broker.url

    def _foreign(self) -> BrokerSettings:
        if self._settings.broker is None:
            raise ValueError("a process of its own needs the URL of a broker: say --nats")
        return self._settings.broker

    async def run(self) -> None:
        """Run the parts until one ends or a signal says so."""
        parts, self._parts = self._parts, {}
        running = asyncio.create_task(run_together(**parts), name="parts")
        async with _signals(running):
            await asyncio.wait({running})
        if not running.cancelled() and (error := running.exception()) is not None:
            raise error

    def drop(self) -> None:
        """Close the parts that were never run."""
        for part in self._parts.values():
            part.close()


@asynccontextmanager
async def _process(settings: Settings) -> AsyncIterator[_Process]:
    crash_environment.listen()
    async with AsyncExitStack() as stack:
        process = _Process(settings, stack)
        process.state.prepare()
        stack.callback(process.drop)
        yield process


async def rebuild_models(settings: Settings, names: Sequence[str]) -> None:
    """Make read models (all when none is named) again from the whole log, while no projector runs."""
    state = StateDirectory(settings.state)
    state.prepare()
    events = open_log(settings.store())
    models = await asyncio.to_thread(ReadModels, state.read_models, MODELS)
    try:
        began = time.monotonic()
        await Projector(events, models).rebuild(list(names) or None)
        log.info("rebuilt", models=list(names) or "all", seconds=round(time.monotonic() - began, 2))
    finally:
        await asyncio.to_thread(models.close)
        events.close()


def _text(path: Path | None) -> str | None:
    return None if path is None else path.read_text(encoding="ascii").strip()


class _Nudge:
    """Wakes the projector of the same process at each commit."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def __call__(self, events: Sequence[Event]) -> None:
        if events:
            self._event.set()

    async def wait(self) -> None:
        """Until the next commit."""
        await self._event.wait()

    def clear(self) -> None:
        """Wait for the next one."""
        self._event.clear()


@asynccontextmanager
async def _signals(running: asyncio.Task[None]) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    told = (signal.SIGTERM, signal.SIGINT)
    ending: set[asyncio.Task[None]] = set()

    def tell() -> None:
        log.info("stopping")
        ending.add(asyncio.create_task(end(running)))

    for number in told:
        loop.add_signal_handler(number, tell)
    try:
        yield
    finally:
        for number in told:
            loop.remove_signal_handler(number)
        await end(running)
