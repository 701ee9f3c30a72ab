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
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from contextvars import Context
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, TypeVar
from unittest.mock import patch
from uuid import UUID

import structlog

from aggregates.record import record_id
from engine import crash_points
from engine.broker import ensure_streams
from engine.clouds.port import Facts
from engine.clouds.simulated import CloudApi, Entry, SimulatedAgents, SimulatedCloud
from engine.clouds.simulated.cloud import LATEST_EFFECT
from engine.clouds.simulated.failures import Failures
from engine.clouds.simulated.faults import Call
from engine.event_log import EventLog, fold, open_log
from engine.guests import Answer, Guests
from engine.partitions import Leases
from engine.store import EventStore, open_store
from engine.tasks import run_together
from engine.worker import Worker
from projections.run import Projections
from tests.simulation.broker import Broker, SimulatedClient
from tests.simulation.publisher import Publisher
from tests.simulation.virtual_time import Died, Process, VirtualLoop, current, run

T = TypeVar("T")

BEGINNING = datetime(2026, 1, 31, 12, tzinfo=UTC)
OBSERVE_EVERY = 600.0  # virtual seconds between two looks of a worker at all that the cloud holds
AWAKE = 0.05  # seconds between two looks whether a process has been woken up
THREAD = 0.0008  # seconds that a call in a thread takes on average: a commit, a read


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
    """Keeps no secret: what stands for one is its reference."""

    def put(self, secret: str, *, project: str) -> str:
        """The reference."""
        return f"vault:{project}:{secret}"

    def get(self, reference: str, *, project: str) -> str:  # noqa: ARG002 - the port's signature
        """The secret."""
        return reference


class Node(Process):
    """One process of the engine: a worker, a projector, or both in one as `holdfast up` runs them.

    Can be killed at any moment; somebody has to start another one then. `ended`: why it ended by itself.
    """

    def __init__(self, world: World, name: str, *, works: bool = True, projects: bool = True) -> None:
        super().__init__(name)
        self.works = works
        self.projects = projects
        self.ended: BaseException | None = None
        self._world = world
        self._clients: list[SimulatedClient] = []
        self._fatal: list[tuple[str, str, int]] = []

    # --- its life -------------------------------------------------------------------------------------------------

    async def main(self) -> None:
        """Serve until killed. Ends by itself only by a defect."""
        crash_points.listener.set(self._reached)
        wake = asyncio.Event()
        async with AsyncExitStack() as stack:
            store = await self._open_store(stack, wake) if self.works else None
            if self.projects:
                events = open_log(self._world.store_url)
                stack.callback(events.close)
                projections = await Projections.start(
                    events,
                    self._world.models,
                    await self._connect("projector"),
                    wake=None if store is None else wake,
                    now=self._world.wall,
                )
                stack.push_async_callback(projections.close)
            if store is None:
                await asyncio.Event().wait()
            else:
                await self._work(store)

    async def _open_store(self, stack: AsyncExitStack, wake: asyncio.Event) -> EventStore:
        store = open_store(self._world.store_url)
        store._recorder.session = self._world.new_id().hex  # by which workers know each other on PostgreSQL
        store.start()
        stack.push_async_callback(store.close)
        store.listen(lambda committed: wake.set() if committed else None)
        return store

    async def _work(self, store: EventStore) -> None:
        world = self._world
        client = await self._connect("worker")
        await ensure_streams(client.jetstream())
        cloud = SimulatedCloud(api=FarApi(world.api, world), caller=self.name, latest_effect=world.latest_effect)
        worker = Worker(
            client,
            store,
            Payments(cloud, world),
            Payments(Guests(FarAgents(world.agents, world), world.vault), world),
            world.vault,
            observe_every=world.observe_every,
            ownership=Leases(client, store, now=world.wall) if world.shared else None,
            now=world.wall,
            jitter=world.random.random,
        )
        await run_together(worker=worker.run())

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
        if seconds := self._world.stops(point, subject):
            self.stand_still(seconds)

    def stand_still(self, seconds: float) -> None:
        """Stop it for so long, as SIGSTOP does."""
        self.pause()
        self._world.broker.schedule(seconds, self.resume)

    def _die(self, point: str, subject: str) -> None:
        self._world.trace("dies", process=self.name, point=point, subject=subject)
        self._world.injected["crash at a named point"] += 1
        self._world.died_at[point] += 1
        self.kill()
        raise Died(point, subject)


class FarApi:
    """The cloud's API some way off: a call that has left is carried out, whatever becomes of its caller.

    That of a process which is stopped while it makes the call leaves when it wakes up.
    """

    def __init__(self, api: CloudApi, world: World) -> None:
        self._api = api
        self._world = world

    async def call(self, call: Call) -> Any:
        """Carry the call out and answer."""
        calling = asyncio.get_running_loop().create_task(self._sent(call, current.get()), context=Context())
        # Its caller may be gone when it fails, and is when it is never answered.
        calling.add_done_callback(lambda done: done.cancelled() or done.exception())
        calling._log_destroy_pending = False  # type: ignore[attr-defined]
        return await asyncio.shield(calling)

    async def _sent(self, call: Call, caller: Process | None) -> Any:
        while caller is not None and caller.paused:
            if caller.dead:
                raise ConnectionResetError("whoever was to make this call has died before")
            await asyncio.sleep(AWAKE)
        await self._world.hop()
        answer = await self._api.call(call)
        await self._world.hop()
        return answer

    async def inventory(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Everything there is."""
        return await self._api.inventory()

    async def close(self) -> None:
        """Others go on using it."""


class FarAgents:
    """The guests' agents some way off."""

    def __init__(self, agents: SimulatedAgents, world: World) -> None:
        self._agents = agents
        self._world = world

    async def request(self, subject: str, payload: bytes, timeout: float) -> Answer:
        """The answer of the agent."""
        await self._world.hop()
        answer = await _beyond(self._agents.request(subject, payload, timeout))
        await self._world.hop()
        return answer


async def _beyond(work: Coroutine[Any, Any, T]) -> T:
    """Have it done by nobody of ours, so that it goes on when this process is dead."""
    return await asyncio.get_running_loop().create_task(work, context=Context())


class Payments:
    """Pays as the port does, but for the failures that a scenario has planned."""

    def __init__(self, port: Any, world: World) -> None:
        self._port = port
        self._failures = world.failures

    def __getattr__(self, name: str) -> Any:
        return getattr(self._port, name)

    async def pay(self, effect: Any, key: str) -> Facts:
        """Make the effect true, or fail as planned."""
        self._failures.raise_next(effect.type_name)
        facts: Facts = await self._port.pay(effect, key)
        return facts


class World:
    """Everything there is. Make it with `simulated`, which runs a scenario in it.

    `shared`: several workers may be started, which share the partitions out; else there must be one at most.
    """

    def __init__(
        self, seed: int, directory: Path, *, shared: bool = False, tracing: Callable[[str], None] | None = None
    ) -> None:
        self.seed = seed
        self.shared = shared
        self.random = Random(seed)
        self.loop = VirtualLoop(thread_time=lambda: self.random.expovariate(1 / THREAD))
        self.wall = Wall(self.loop)
        self.broker = Broker(self.random, self.wall)
        self.vault = Vault()
        self.api = CloudApi(new_id=self.new_id, on_call=self._changed)
        self.agents = SimulatedAgents(serves=self.api.serves)
        self.failures = Failures()
        self.latest_effect = LATEST_EFFECT
        self.observe_every = OBSERVE_EVERY
        self.store_url = f"sqlite://{directory}/events.db"
        self.models = directory / "models"
        self.nodes: list[Node] = []
        self.publishers: dict[str, Publisher] = {}
        self.injected: Counter[str] = Counter()
        self.passed: Counter[str] = Counter()
        self.died_at: Counter[str] = Counter()
        self.latency = 0.02  # seconds to the cloud and back, on average
        self.fatal: Callable[[str, str], bool] = lambda _point, _subject: False
        self.stops: Callable[[str, str], float] = lambda _point, _subject: 0.0  # seconds to stand still there
        self._tracing = tracing
        self._log: EventLog | None = None

    # --- chance and time ------------------------------------------------------------------------------------------

    def new_id(self) -> UUID:
        """An id that follows from the seed."""
        return UUID(int=self.random.getrandbits(128), version=4)

    async def hop(self) -> None:
        """Wait as long as a message to the cloud or a guest takes."""
        await asyncio.sleep(self.random.expovariate(2 / self.latency))

    def _changed(self, entry: Entry) -> None:
        """What the cloud does to a server its agent feels."""
        if (entry.kind, entry.action) == ("server", "rebuild"):
            self.agents.renew(entry.name)

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

    def start_node(self, name: str = "", *, works: bool = True, projects: bool | None = None) -> Node:
        """A new process. It projects as well, unless workers are several and leave that to a projector."""
        projects = not self.shared if projects is None else projects
        node = Node(self, name or f"node-{len(self.nodes) + 1}", works=works, projects=projects)
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
            patch.object(EventStore, "shared", world.shared),
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
    shared: bool = False,
    tracing: Callable[[str], None] | None = None,
) -> T:
    """Run a scenario in a world of its own, in virtual time; what it returns."""
    memory = Path("/dev/shm")
    directory = Path(tempfile.mkdtemp(prefix="holdfast-", dir=memory if memory.is_dir() else None))
    world = World(seed, directory, shared=shared, tracing=tracing)
    try:
        with _as_simulated(world):
            return run(_heard_to_its_end(world, scenario), world.loop)
    finally:
        world.close()
        shutil.rmtree(directory, ignore_errors=True)
