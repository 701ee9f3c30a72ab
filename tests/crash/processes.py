"""The bed of real processes: nats-server, cloud, worker and projector; the two of ours are killed by -9.

Each dies by its own hand at the point that its orders name, and is started anew at once. Broker, cloud and store live
on; what happens to them is for other tests to show.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec

from aggregates.catalogue import Catalogue
from aggregates.effects import Effect
from aggregates.obligations import quota_id
from aggregates.record import record_id
from engine.client import Connection
from engine.clock import utc_now
from engine.crash_environment import AT, RECORD, Orders
from engine.event_log import EventLog, fold, open_log
from engine.state import StateDirectory
from tests.crash import program
from tests.crash.boundaries import Passed
from tests.crash.handle import PROJECT, Handle, Message
from tests.crash.models import caught_up, differing
from tests.support.broker import Broker

LOOK = 0.01  # seconds between two looks
ROLES = ("worker", "projector")

# A process that has loaded the programs is forked for each start, since to load them takes longer than a run.
_PROGRAMS = multiprocessing.get_context("forkserver")
_PROGRAMS.set_forkserver_preload(["tests.crash.program"])


class ProcessBed(ABC):
    """One worker and one projector, around a broker, a store and a cloud that are never killed."""

    patience = 120.0

    def __init__(self, directory: Path, store_url: str | None = None) -> None:
        self.directory = directory
        self.state = StateDirectory(directory / "state")
        self.handle: Handle
        self._store_url = store_url or f"sqlite://{self.state.events}"
        self._broker = Broker(directory / "broker")
        self._connection: Connection
        self._log: EventLog | None = None
        self._running: dict[str, ForkServerProcess] = {}
        self._orders = Orders()
        self._died = 0
        self._died_in = ""
        self._keeping: asyncio.Task[None] | None = None

    # --- processes ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start everything."""
        self.directory.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(self._broker.start)
        await self._open_cloud()
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
        await self._close_cloud()
        with suppress(AttributeError):
            await self._connection.close()
        if self._log is not None:
            self._log.close()
        await asyncio.to_thread(self._broker.stop)

    def _start(self, role: str) -> None:
        common = ["--nats", self._broker.url, "--store", self._store_url, "--state", str(self.state.root)]
        own = ["--durable-broker", *self._cloud_options()] if role == "worker" else []
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
                    raise RuntimeError(f"the {role} ended with {status}:\n{self._said(role)[-4000:]}")
                self._died += 1
                self._died_in = self._orders.run
                self._write()
                self._start(role)
            await asyncio.sleep(LOOK)

    def _said(self, role: str) -> str:
        return (self.directory / f"{role}.log").read_text(errors="replace")

    async def _until_said(self, role: str) -> None:
        if not await self.until(lambda: _SIGNS[role] in self._said(role)):
            raise TimeoutError(f"the {role} does not serve:\n{self._said(role)[-4000:]}")

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

    async def ready(self) -> None:  # noqa: B027 - that it does nothing is meant
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

    # --- the cloud ------------------------------------------------------------------------------------------------

    @abstractmethod
    async def _open_cloud(self) -> None:
        """Start what servers are made on, or see that it is there. The broker is up."""

    @abstractmethod
    async def _close_cloud(self) -> None:
        """Leave nothing of it behind. The worker has ended."""

    @abstractmethod
    def _cloud_options(self) -> list[str]:
        """How the worker is told of it."""

    @abstractmethod
    async def done(self, instance_id: UUID) -> Counter[str]:
        """What the cloud and the guest carried out for the instance."""

    async def held(self, instance_id: UUID) -> list[str]:
        """What the cloud and the quota hold for the instance."""
        quota = self.load(quota_id(PROJECT))
        shares = quota is not None and instance_id in quota.held
        return await self._resources(instance_id) + (["a share of the quota"] if shares else [])

    @abstractmethod
    async def _resources(self, instance_id: UUID) -> list[str]:
        """The kind of each resource of the instance in the cloud."""

    @abstractmethod
    async def delay(self, call: str, nth: int) -> None:
        """Have the nth of the next calls of this name carried out when the worker is dead."""

    async def offer(self, catalogue: Catalogue) -> None:
        """Have the cloud offer something else, and the worker know it: it asks when it starts."""
        await self._offer(catalogue)
        served = self._said("worker").count(_SIGNS["worker"])
        self._running["worker"].kill()
        await self.until(lambda: self._said("worker").count(_SIGNS["worker"]) > served)

    async def _offer(self, catalogue: Catalogue) -> None:
        """Have the cloud offer something else from now on. Raises `TypeError` where it cannot be told to."""
        raise TypeError(f"{type(self).__name__} offers what it offers, not {catalogue}")

    @abstractmethod
    async def remove_by_hand(self, effect: Effect) -> None:
        """Do past the engine what is owed, if the rest waits for it."""

    async def untrue(self) -> list[str]:
        """The read models that say something else than the log."""
        while True:
            end = self.log.end()
            if not await self.until(lambda: caught_up(self.log, self.state.read_models)):
                return ["the read models have not caught up with the log"]
            found = differing(self.log, self.state.read_models, self.directory / f"models-{uuid4()}")
            # A guest's health may become another while it is looked: then the two tell of different moments.
            if not found or self.log.end() == end:
                return found


_SIGNS = {"cloud": "simulated_cloud_serves", "worker": "inbox_reading", "projector": "projector_started"}
