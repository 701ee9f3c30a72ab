"""The processes of an installation, put together: all in one, a worker, a projector.

`up` needs nothing else on the machine; `worker` and `projector` are the same parts as processes of their own, around
a broker and a store that are run by somebody else. SIGTERM ends each in order; databases and their agents stay.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import structlog
from nats.aio.client import Client

from aggregates.base import Event
from engine.broker import BrokerSettings, connect, ensure_streams
from engine.clouds.local import LocalCloud
from engine.credentials import GuestCredentials, inbox_prefix
from engine.embedded import DEFAULT_PORT, EmbeddedBroker
from engine.guest.datastores.catalogue import available
from engine.guests import Guests
from engine.state import StateDirectory
from engine.store import EventStore, open_log, open_store
from engine.tasks import end, run_together
from engine.vault import Vault
from engine.worker import Worker
from projections.base import ReadModels
from projections.models import MODELS
from projections.projector import Projector
from projections.run import run_projector

log = structlog.get_logger(__name__)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a process is told. `broker` None: the embedded one on `port`. `store_url` None: SQLite in the state."""

    state: Path
    broker: BrokerSettings | None = None
    port: int | None = DEFAULT_PORT
    store_url: str | None = None
    run_as: tuple[int, int] | None = None
    mount: bool = True
    in_flight: int = 64

    def store(self) -> str:
        """The event store's URL."""
        return self.store_url or f"sqlite://{StateDirectory(self.state).events}"


class SharedCredentials:
    """Guests of a broker that we do not run use the one seed that its operator gave, or none."""

    def __init__(self, seed_file: Path | None) -> None:
        self._seed_file = seed_file

    async def ensure(self, instance_id: UUID) -> Path | None:
        """The operator's seed file."""
        del instance_id
        return self._seed_file

    async def revoke(self, instance_id: UUID) -> None:
        """The broker's operator revokes it."""
        log.info("credentials_are_the_operators", instance_id=str(instance_id))


async def run_up(settings: Settings, ready: asyncio.Event | None = None) -> None:
    """Everything in one process, until SIGTERM or SIGINT."""
    async with AsyncExitStack() as stack:
        state = _prepared(settings)
        store = await _opened(settings, state, stack)
        parts: dict[str, Any] = {}
        if settings.broker is None:
            broker = EmbeddedBroker(state, settings.port)
            await broker.start()
            stack.push_async_callback(broker.stop)
            parts["broker"] = broker.supervise()
            worker_client = await _connected(broker.settings("worker"), "worker", stack)
            projector_client = await _connected(broker.settings("projector"), "projector", stack)
            credentials: Any = GuestCredentials(broker)
            url = broker.url
        else:
            worker_client = await _connected(settings.broker, "worker", stack, prefix=False)
            projector_client = await _connected(settings.broker, "projector", stack, prefix=False)
            credentials = SharedCredentials(settings.broker.seed_file)
            url = settings.broker.url
        await ensure_streams(worker_client.jetstream())
        worker = _worker(settings, state, store, worker_client, credentials, url)
        nudge = _Nudge()
        store.listen(nudge)
        parts["worker"] = worker.run()
        parts["projector"] = run_projector(open_log(settings.store()), state.read_models, projector_client, wake=nudge)
        log.info("holdfast_up", broker=url, state=str(state.root), store=_shown(settings.store()))
        await _until_told(parts, ready)
    log.info("holdfast_down")


async def run_worker(settings: Settings) -> None:
    """A worker alone, around a broker and a store that exist."""
    if settings.broker is None:
        raise ValueError("a worker of its own needs the URL of a broker: say --nats")
    async with AsyncExitStack() as stack:
        state = _prepared(settings)
        store = await _opened(settings, state, stack)
        client = await _connected(settings.broker, "worker", stack, prefix=False)
        await ensure_streams(client.jetstream())
        credentials = SharedCredentials(settings.broker.seed_file)
        worker = _worker(settings, state, store, client, credentials, settings.broker.url)
        await _until_told({"worker": worker.run()}, None)


async def run_projections(settings: Settings) -> None:
    """A projector alone: follows the store's log and answers queries."""
    if settings.broker is None:
        raise ValueError("a projector of its own needs the URL of a broker: say --nats")
    async with AsyncExitStack() as stack:
        state = _prepared(settings)
        client = await _connected(settings.broker, "projector", stack, prefix=False)
        events = open_log(settings.store())
        stack.callback(events.close)
        await _until_told({"projector": run_projector(events, state.read_models, client)}, None)


async def rebuild_models(settings: Settings, names: Sequence[str]) -> None:
    """Make read models (all when none is named) again from the whole log, while no projector runs."""
    state = _prepared(settings)
    events = open_log(settings.store())
    models = await asyncio.to_thread(ReadModels, state.read_models, MODELS)
    try:
        began = time.monotonic()
        await Projector(events, models).rebuild(list(names) or None)
        log.info("rebuilt", models=list(names) or "all", seconds=round(time.monotonic() - began, 2))
    finally:
        await asyncio.to_thread(models.close)
        events.close()


def _prepared(settings: Settings) -> StateDirectory:
    state = StateDirectory(settings.state)
    state.prepare()
    return state


async def _opened(settings: Settings, state: StateDirectory, stack: AsyncExitStack) -> EventStore:
    store = await asyncio.to_thread(open_store, settings.store(), lock=state.lock)
    store.start()
    stack.push_async_callback(store.close)
    return store


async def _connected(settings: BrokerSettings, user: str, stack: AsyncExitStack, *, prefix: bool = True) -> Client:
    client = await connect(settings, name=user, inbox_prefix=inbox_prefix(user) if prefix else None)
    stack.push_async_callback(client.close)
    return client


def _worker(
    settings: Settings, state: StateDirectory, store: EventStore, client: Client, credentials: Any, url: str
) -> Worker:
    vault = Vault(state.vault)
    cloud = LocalCloud(
        state.cloud,
        nats_url=url,
        credentials=credentials,
        datastores=available(),
        run_as=settings.run_as,
        mount="auto" if settings.mount else "never",
    )
    return Worker(client, store, cloud, Guests(client, vault), vault, in_flight=settings.in_flight)


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


async def _until_told(parts: dict[str, Any], ready: asyncio.Event | None) -> None:
    """Run the parts until one ends or a signal says so."""
    running = asyncio.create_task(run_together(**parts), name="parts")
    async with _signals(running):
        if ready is not None:
            ready.set()
        await asyncio.wait({running})
    if not running.cancelled() and (error := running.exception()) is not None:
        raise error


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


def _shown(url: str) -> str:
    """The URL without its password."""
    before, at, after = url.rpartition("@")
    return f"{before.split('://')[0]}://***@{after}" if at else url
