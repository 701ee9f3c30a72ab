"""The bed of real processes: nats-server, simulated cloud, worker and projector; the two of ours are killed by -9.

Each dies by its own hand at the point that its orders name, and is started anew at once. Broker, cloud and store live
on; what happens to them is for other tests to show.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec

from aggregates.obligations import quota_id
from aggregates.record import record_id
from engine.client import Connection
from engine.clock import utc_now
from engine.clouds.simulated.client import FarSide
from engine.clouds.simulated.faults import Fault, Kind
from engine.clouds.simulated.guests import GuestFault, GuestFaultKind
from engine.crash_environment import AT, RECORD, SOON, Orders
from engine.event_log import EventLog, fold
from engine.messages import GuestVerb
from engine.state import StateDirectory
from engine.store import open_log
from tests.crash import program
from tests.crash.boundaries import Passed
from tests.crash.by_hand import delete_server, list_servers
from tests.crash.handle import PROJECT, Handle, Message
from tests.crash.models import caught_up, differing
from tests.support.broker import Broker

LOOK = 0.01  # seconds between two looks
LATEST_EFFECT = 0.5  # seconds: what a killed worker has sent to the cloud is carried out at once
LATE = 4 * SOON  # the worker is dead by then, and the next one is not up
ROLES = ("worker", "projector")

# A process that has loaded the programs is forked for each start, since to load them takes longer than a run.
_PROGRAMS = multiprocessing.get_context("forkserver")
_PROGRAMS.set_forkserver_preload(["tests.crash.program"])


class ProcessBed:
    """One worker and one projector, around a broker, a store and a cloud that are never killed."""

    patience = 120.0

    def __init__(self, directory: Path, store_url: str | None = None) -> None:
        self.directory = directory
        self.state = StateDirectory(directory / "state")
        self.handle: Handle
        self._store_url = store_url or f"sqlite://{self.state.events}"
        self._broker = Broker(directory / "broker")
        self._socket = directory / "cloud.sock"
        self._far_side = FarSide(self._socket)
        self._connection: Connection
        self._log: EventLog | None = None
        self._running: dict[str, ForkServerProcess] = {}
        self._orders = Orders()
        self._died = 0
        self._died_in = ""
        self._ledger = _Ledger(directory / "ledger")
        self._keeping: asyncio.Task[None] | None = None

    # --- processes ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start everything."""
        self.directory.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(self._broker.start)
        options = ["--ledger", str(self._ledger.path), "--latest-effect", str(LATEST_EFFECT)]
        self._spawn("cloud", ["--socket", str(self._socket), *options])
        await self._until_said("cloud")
        self._connection = Connection(self._broker.url)
        self.handle = Handle(self._connection)
        for role in ROLES:
            self._orders_of(role).write_text("")
        self._start("worker")
        await self._until_said("worker")
        self._start("projector")
        await self._until_said("projector")
        self._keeping = asyncio.create_task(self._keep(), name="keep")

    async def end(self) -> None:
        """End everything."""
        if self._keeping is not None:
            self._keeping.cancel()
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            await asyncio.to_thread(process.join, 20)
            if process.exitcode is None:
                process.kill()
                process.join()
        self._running.clear()
        await self._far_side.close()
        with suppress(AttributeError):
            await self._connection.close()
        if self._log is not None:
            self._log.close()
        await asyncio.to_thread(self._broker.stop)

    def _start(self, role: str) -> None:
        common = ["--nats", self._broker.url, "--store", self._store_url, "--state", str(self.state.root)]
        own = ["--durable-broker", "--cloud", f"simulated:{self._socket}"] if role == "worker" else []
        environment = {AT: f"@{self._orders_of(role)}", RECORD: str(self._record_of(role))}
        self._spawn(role, [role, *common, *own], environment)

    def _spawn(self, role: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        log = self.directory / f"{role}.log"
        log.touch()
        started = (role, arguments, {**os.environ, **(environment or {})}, log)
        self._running[role] = _PROGRAMS.Process(target=program.run, args=started, name=role)
        self._running[role].start()

    async def _keep(self) -> None:
        """Start anew what has died."""
        while True:
            for role, process in list(self._running.items()):
                if (status := process.exitcode) is None:
                    continue
                if status != -signal.SIGKILL or role == "cloud":
                    raise RuntimeError(f"the {role} ended with {status}:\n{self._said(role)}")
                self._died += 1
                self._died_in = self._orders.run
                self._write()
                self._start(role)
            await asyncio.sleep(LOOK)

    def _said(self, role: str) -> str:
        return (self.directory / f"{role}.log").read_text(errors="replace")[-4000:]

    async def _until_said(self, role: str) -> None:
        if not await self.until(lambda: _SIGNS[role] in self._said(role)):
            raise TimeoutError(f"the {role} does not serve:\n{self._said(role)}")

    # --- orders ---------------------------------------------------------------------------------------------------

    def _orders_of(self, role: str) -> Path:
        return self.directory / f"{role}.orders"

    def _record_of(self, role: str) -> Path:
        return self.directory / f"{role}.record"

    def _write(self) -> None:
        """Tell the processes. The one that has died must not do so again: it counts from the beginning."""
        for role in ROLES:
            orders = self._orders
            dies = orders.kill.startswith("projector_") == (role == "projector")
            if not dies or self._died_in == orders.run:
                orders = msgspec.structs.replace(orders, kill="")
            written = self.directory / f"{role}.orders.new"
            written.write_text(str(orders))
            written.rename(self._orders_of(role))

    # --- the bed --------------------------------------------------------------------------------------------------

    @property
    def log(self) -> EventLog:
        """The event log."""
        if self._log is None:
            self._log = open_log(self._store_url)
        return self._log

    async def ready(self) -> None:
        """It serves since it was started."""

    def message(self, command: Any, target: UUID) -> Message:
        """A new command to the aggregate."""
        return Message(uuid4(), target, command, utc_now())

    def new_id(self) -> UUID:
        """An id for an instance."""
        return uuid4()

    def order(self, orders: Orders) -> None:
        """What is to happen from now on."""
        if orders.run != self._orders.run:
            for role in ROLES:
                self._record_of(role).write_bytes(b"")
        self._orders = orders
        self._write()

    def died(self) -> int:
        """How many processes have died by order."""
        return self._died

    async def passed(self) -> Sequence[Passed]:
        """The points passed since the run began."""
        return [Passed.read(line) for role in ROLES for line in self._record_of(role).read_text().splitlines()]

    async def until(self, reached: Callable[[], bool]) -> bool:
        """Wait until it is so; False when it is not within the bed's patience."""
        try:
            async with asyncio.timeout(self.patience):
                while not reached():
                    if self._keeping is not None and self._keeping.done():
                        self._keeping.result()
                    await asyncio.sleep(LOOK)
        except TimeoutError:
            return False
        return True

    def load(self, aggregate_id: UUID) -> Any:
        """The aggregate as the log has it."""
        return fold(self.history(aggregate_id))

    def decided(self, command_id: UUID) -> bool:
        """Whether the log has the command's record."""
        return bool(self.history(record_id(PROJECT, command_id)))

    def history(self, aggregate_id: UUID) -> Sequence[Any]:
        """Its events."""
        return self.log.events_of(aggregate_id)

    async def done(self, instance_id: UUID) -> Counter[str]:
        """What the cloud and the guest carried out for the instance."""
        return self._ledger.of(instance_id)

    async def held(self, instance_id: UUID) -> list[str]:
        """What the cloud and the quota hold for the instance."""
        inventory = await self._far_side.inventory()
        held = [
            kind
            for kind, resources in inventory.items()
            for resource in resources.values()
            if str(instance_id) in resource["name"]
        ]
        quota = self.load(quota_id(PROJECT))
        return held + (["a share of the quota"] if quota is not None and instance_id in quota.held else [])

    async def delay(self, call: str, nth: int) -> None:
        """Have the nth of the next calls of this name carried out when the worker is dead."""
        if call in frozenset(GuestVerb):
            await self._far_side.plan_guest(call, GuestFault(kind=GuestFaultKind.SLOW), nth - 1)
            await self._far_side.plan_guest(call, GuestFault(kind=GuestFaultKind.SLOW, seconds=LATE))
        else:
            await self._far_side.plan(call, Fault(kind=Kind.LATE), nth - 1)
            await self._far_side.plan(call, Fault(kind=Kind.LATE, seconds=LATE))

    async def remove_servers(self, instance_id: UUID) -> None:
        """Delete the servers of the instance past the engine."""
        for server in await self._far_side.call(list_servers(instance_id)):
            await self._far_side.call(delete_server(server.id))

    async def untrue(self) -> list[str]:
        """The read models that say something else than the log."""
        if not await self.until(lambda: caught_up(self.log, self.state.read_models)):
            return ["the read models have not caught up with the log"]
        return differing(self.log, self.state.read_models, self.directory / f"models-{uuid4()}")


_SIGNS = {"cloud": "simulated_cloud_serves", "worker": "inbox_reading", "projector": "projector_started"}


class _Line(msgspec.Struct, frozen=True):
    """A line of the cloud's ledger: of a change, or of a guest's deed."""

    action: str = ""
    kind: str = ""
    name: str = ""
    instance_id: str = ""
    verb: str = ""


class _Ledger:
    """The cloud's ledger, read on from where it was read before."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._at = 0
        self._of: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def of(self, instance_id: UUID) -> Counter[str]:
        """What was carried out for the instance."""
        with self.path.open("rb") as file:
            file.seek(self._at)
            for line in file:
                entry = msgspec.json.decode(line, type=_Line)
                whose = entry.instance_id or entry.name.removeprefix("holdfast-")
                self._of[whose][f"guest {entry.verb}" if entry.verb else f"{entry.action} {entry.kind}"] += 1
            self._at = file.tell()
        return Counter(self._of[str(instance_id)])


@asynccontextmanager
async def processes(directory: Path, store_url: str | None = None) -> AsyncIterator[ProcessBed]:
    """A bed that is started, and ended in any case."""
    bed = ProcessBed(directory, store_url)
    try:
        await bed.start()
        yield bed
    finally:
        await bed.end()
