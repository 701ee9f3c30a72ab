"""A whole installation on one virtual loop: broker, store, cloud, guests, worker processes and publishers, by a seed.

The engine's code is the one that runs in production; what is simulated lies beyond it. The store is real SQLite in a
file, whose durability is not what is shown here: a process that dies loses what it had not committed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from contextvars import Context
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, TypeVar
from unittest.mock import patch
from uuid import UUID

import structlog

from aggregates.effects import CloudEffect, GuestEffect
from aggregates.record import record_id
from engine import crash_points
from engine.broker import ensure_streams
from engine.clouds.port import Cloud, Facts
from engine.clouds.simulated import SimulatedCloud, SimulatedGuests
from engine.payer import GuestPort
from engine.store import EventLog, EventStore, fold, open_log, open_store
from engine.tasks import run_together
from engine.worker import Worker
from projections.run import Projections
from tests.simulation.broker import Broker, SimulatedClient
from tests.simulation.publisher import Publisher
from tests.simulation.virtual_time import Died, Process, VirtualLoop, current, run

T = TypeVar("T")

BEGINNING = datetime(2026, 1, 31, 12, tzinfo=UTC)
THREAD = 0.0008  # seconds that a call in a thread takes on average: a commit, a read
STARTS_WITHIN = 1.0  # seconds after which a supervisor starts a worker that ended by itself anew


class Wall:
    """The wall clock of everybody: goes with the loop, and can be set."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.stepped = timedelta()

    def __call__(self) -> datetime:
        """The time."""
        return BEGINNING + timedelta(seconds=self._loop.time()) + self.stepped

    def step(self, by: timedelta) -> None:
        """Set it forward or back."""
        self.stepped += by


class Vault:
    """Keeps secrets in memory."""

    def __init__(self) -> None:
        self.secrets: dict[str, str] = {}

    def put(self, secret: str, *, project: str) -> str:
        """Keep it; the reference."""
        reference = f"vault:{project}-{len(self.secrets)}"
        self.secrets[reference] = secret
        return reference


class Node(Process):
    """One worker process with its projections, as `holdfast up` runs them: can die, and be started anew."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(name)
        self.store: EventStore
        self.ended: BaseException | None = None
        self._world = world
        self._clients: list[SimulatedClient] = []
        self._fatal: list[tuple[str, str, int]] = []

    # --- its life -------------------------------------------------------------------------------------------------

    async def main(self) -> None:
        """Serve until killed. Ends by itself only by a defect."""
        crash_points.listener.set(self._reached)
        world = self._world
        client = await self._connect("worker")
        await ensure_streams(client.jetstream())
        store = self.store = open_store(world.store_url)
        store.start()
        events = open_log(world.store_url)
        cloud = FarCloud(world.cloud, world)
        worker = Worker(
            client,
            store,
            cloud,
            FarGuests(world.guests, world),
            world.vault,
            now=world.wall,
            jitter=world.random.random,
        )
        wake = asyncio.Event()
        store.listen(lambda committed: wake.set() if committed else None)
        reading = await self._connect("projector")
        projections = await Projections.start(events, world.models, reading, wake=wake, now=world.wall)
        try:
            await run_together(worker=worker.run())
        finally:
            await projections.close()
            await store.close()
            events.close()

    async def _connect(self, user: str) -> SimulatedClient:
        client = await self._world.broker.connect(f"{self.name}-{user}")
        self._clients.append(client)
        return client

    def kill(self) -> None:
        """End it at once: nothing of it runs any more, its connections break."""
        super().kill()
        for client in self._clients:
            self._world.broker.drop(client)
        self._world.trace("killed", process=self.name)

    # --- crash points ---------------------------------------------------------------------------------------------

    def die_at(self, point: str, subject: str = "", nth: int = 1) -> None:
        """Have it die when it passes the point, about the subject if one is given, for the nth time from now on."""
        self._fatal.append((point, subject, nth))

    def _reached(self, point: str, subject: str) -> None:
        if self.dead:
            raise Died
        self._world.passed[point] += 1
        for ordinal, (fatal, about, nth) in enumerate(self._fatal):
            if fatal != point or about not in ("", subject):
                continue
            self._fatal[ordinal] = (fatal, about, nth - 1)
            if nth == 1:
                self._die(point, subject)
        if self._world.fatal(point, subject):
            self._die(point, subject)

    def _die(self, point: str, subject: str) -> None:
        self._world.trace("dies", process=self.name, point=point, subject=subject)
        self._world.injected["crash at a named point"] += 1
        self._world.died_at[point] += 1
        self.kill()
        raise Died(point, subject)


class FarCloud:
    """A cloud some way off: each effect takes a moment there and back."""

    def __init__(self, cloud: Cloud, world: World) -> None:
        self._cloud = cloud
        self._world = world
        self.latest_effect = cloud.latest_effect

    async def start(self) -> None:
        """Nothing is to be taken up."""

    async def close(self) -> None:
        """Other processes go on using it."""

    async def catalogue(self) -> Any:
        """What the cloud offers."""
        await self._world.far()
        return await self._cloud.catalogue()

    async def pay(self, effect: CloudEffect, key: str) -> Facts:
        """Make the effect true."""
        await self._world.far()
        facts = await self._cloud.pay(effect, key)
        await self._world.far()
        return facts


class FarGuests:
    """Guest agents some way off."""

    def __init__(self, guests: GuestPort, world: World) -> None:
        self._guests = guests
        self._world = world

    async def pay(self, effect: GuestEffect, key: str) -> Mapping[str, Any]:
        """Make the effect true."""
        await self._world.far()
        facts = await self._guests.pay(effect, key)
        await self._world.far()
        return facts


class World:
    """Everything there is. Make it with `simulated`, which runs a scenario in it."""

    def __init__(self, seed: int, directory: Path, *, tracing: Callable[[str], None] | None = None) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.loop = VirtualLoop(thread_time=lambda: self.random.expovariate(1 / THREAD))
        self.wall = Wall(self.loop)
        self.broker = Broker(self.random, self.wall)
        self.vault = Vault()
        self.cloud = SimulatedCloud(new_id=self.new_id)
        self.guests = SimulatedGuests()
        self.store_url = f"sqlite://{directory}/events.db"
        self.models = directory / "models"
        self.nodes: list[Node] = []
        self.publishers: dict[str, Publisher] = {}
        self.injected: Counter[str] = Counter()
        self.passed: Counter[str] = Counter()
        self.died_at: Counter[str] = Counter()
        self.latency = 0.02  # seconds to the cloud and back, on average
        self.fatal: Callable[[str, str], bool] = lambda _point, _subject: False
        self._tracing = tracing
        self._log: EventLog | None = None

    # --- chance and time ------------------------------------------------------------------------------------------

    def new_id(self) -> UUID:
        """An id that follows from the seed."""
        return UUID(int=self.random.getrandbits(128), version=4)

    async def far(self) -> None:
        """Wait as long as a message to the cloud takes."""
        await asyncio.sleep(self.random.expovariate(2 / self.latency))

    @property
    def tracing(self) -> bool:
        """Whether somebody listens to what happens."""
        return self._tracing is not None

    def silence(self) -> None:
        """Nobody listens any more."""
        self._tracing = None

    def log(self, _logger: Any, level: str, facts: Any) -> Any:
        """Take a line of the engine's own log into the trace."""
        self.trace(facts.pop("event"), level=level, **facts)
        raise structlog.DropEvent

    def trace(self, event: str, **facts: Any) -> None:
        """Say what happens, in virtual time."""
        if self._tracing is not None:
            process = current.get()
            who = facts.pop("process", process.name if process is not None else "world")
            told = " ".join(f"{name}={value}" for name, value in facts.items())
            self._tracing(f"{self.loop.time():14.6f} {who:<14} {event} {told}".rstrip())

    # --- processes ------------------------------------------------------------------------------------------------

    def start_node(self, name: str = "") -> Node:
        """A new worker process. One that ends by itself is started anew a moment later, as a supervisor does."""
        node = Node(self, name or f"node-{len(self.nodes) + 1}")
        self.nodes.append(node)
        self.trace("starts", process=node.name)
        task = node.start(node.main())
        task.add_done_callback(lambda done: self._ended(node, done), context=Context())
        return node

    def _ended(self, node: Node, task: asyncio.Task[Any]) -> None:
        if node.dead or task.cancelled():
            return
        node.ended = task.exception()
        self.trace("ended", process=node.name, error=repr(node.ended))
        self.injected["worker ended by itself"] += 1
        node.kill()
        self.broker.schedule(STARTS_WITHIN, self.start_node)

    @property
    def running(self) -> list[Node]:
        """The worker processes that are not dead."""
        return [node for node in self.nodes if not node.dead]

    def publisher(self, project: str = "acme") -> Publisher:
        """Who publishes the project's commands."""
        if project not in self.publishers:
            self.publishers[project] = Publisher(self.broker, project, self.wall, self.new_id, self.trace)
        return self.publishers[project]

    # --- what the log says ----------------------------------------------------------------------------------------

    @property
    def events(self) -> EventLog:
        """The event log, read past all processes."""
        if self._log is None:
            self._log = open_log(self.store_url)
        return self._log

    def aggregate(self, aggregate_id: UUID) -> Any:
        """The aggregate as the log has it, folded from its first event on."""
        return fold(self.events.events_of(aggregate_id))

    def decided(self, project: str, command_id: UUID) -> bool:
        """Whether the command has its record."""
        return bool(self.events.events_of(record_id(project, command_id)))

    def owing(self) -> list[Any]:
        """The aggregates that owe something and are not parked."""
        owing = (self.aggregate(aggregate_id) for aggregate_id, _ in self.events.recorder.select_owing())
        return [aggregate for aggregate in owing if aggregate.parked is None]

    async def settled(self, within: float = 3600.0) -> None:
        """Wait until all commands are decided and only what is parked owes anything. Raises `TimeoutError`."""
        async with asyncio.timeout(within):
            while not self._settled():
                await asyncio.sleep(1.0)

    def _settled(self) -> bool:
        if not Path(self.store_url.removeprefix("sqlite://")).exists():
            return False
        sent = ((p.project, command_id) for p in self.publishers.values() for command_id in p.undecided(self.decided))
        return next(sent, None) is None and not self.owing()

    def close(self) -> None:
        """Let go of the log."""
        if self._log is not None:
            self._log.close()


@contextmanager
def _as_simulated(world: World) -> Iterator[None]:
    """The few things that are this process's own and not the simulated ones': file locks, a clock, the log."""
    before = structlog.get_config()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if world.tracing else logging.CRITICAL),
        processors=[world.log],
    )
    try:
        with (
            patch("projections.base._acquire", lambda _path: os.open(os.devnull, os.O_RDONLY)),
            patch("nats.js.client.time", SimpleNamespace(monotonic=world.loop.time)),
        ):
            yield
    finally:
        structlog.configure(**before)


async def _heard_to_its_end(world: World, scenario: Callable[[World], Coroutine[Any, Any, T]]) -> T:
    """What happens after the end, when everything is let go, tells nothing."""
    try:
        return await scenario(world)
    finally:
        world.silence()


def simulated(
    seed: int,
    scenario: Callable[[World], Coroutine[Any, Any, T]],
    *,
    tracing: Callable[[str], None] | None = None,
) -> T:
    """Run a scenario in a world of its own, in virtual time; what it returns."""
    shared = Path("/dev/shm")
    directory = Path(tempfile.mkdtemp(prefix="holdfast-", dir=shared if shared.is_dir() else None))
    world = World(seed, directory, tracing=tracing)
    try:
        with _as_simulated(world):
            return run(_heard_to_its_end(world, scenario), world.loop)
    finally:
        world.close()
        shutil.rmtree(directory, ignore_errors=True)
