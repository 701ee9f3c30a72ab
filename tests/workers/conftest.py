"""Several real workers on one broker, one PostgreSQL and one simulated cloud in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid4

import psycopg
import pytest

from aggregates.record import CommandAccepted
from engine.broker import BrokerSettings, connect
from engine.clouds.simulated import Entry
from engine.clouds.simulated.client import FarSide
from engine.event_log import fold
from engine.partitions import RANGES, range_of_aggregate
from engine.recorders import RangeRow
from engine.store import EventStore, open_store
from tests.support.broker import Broker, running_broker
from tests.support.given import NOON
from tests.support.publisher import Publisher
from tests.support.simulated_cloud import simulated_cloud

Found = TypeVar("Found")


class Process:
    """One worker."""

    def __init__(self, command: list[str], log: Path, environment: dict[str, str]) -> None:
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=output, env={**os.environ, **environment}, cwd=Path.cwd()
            )
        self.pid = self._process.pid

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self) -> float:
        """kill -9; when, by the wall clock."""
        self._process.kill()
        moment = time.time()
        self._process.wait(30)
        return moment

    def stop(self) -> None:
        """SIGSTOP: it stands still, and nobody is told."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        self._process.send_signal(signal.SIGCONT)

    @property
    def stopped(self) -> bool:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def end(self) -> int:
        """SIGTERM; the exit status."""
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        try:
            return self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise


class Workers:
    """The workers, and what they leave behind."""

    def __init__(
        self, directory: Path, broker: Broker, url: str, store: EventStore, cloud: Path, publisher: Publisher
    ) -> None:
        self.broker = broker
        self.store = store
        self.publisher = publisher
        self.far_side = FarSide(cloud)
        self.running: list[Process] = []
        self._directory = directory
        self._command = [
            *(sys.executable, "-m", "tests.workers.program", "worker", "--durable-broker"),
            *(
                "--nats",
                broker.url,
                "--store",
                url,
                "--cloud",
                f"simulated:{cloud}",
                "--state",
                str(directory / "state"),
            ),
        ]

    # --- processes ------------------------------------------------------------------------------------------------

    def start(self, *options: str, **environment: str) -> Process:
        """One more worker."""
        process = Process([*self._command, *options], self._directory / f"worker-{uuid4().hex[:8]}.log", environment)
        self.running.append(process)
        return process

    def kill(self, process: Process) -> float:
        """kill -9."""
        self.running.remove(process)
        return process.kill()

    async def end(self) -> list[int]:
        """End all; their exit statuses."""
        return await asyncio.gather(*(asyncio.to_thread(process.end) for process in self.running))

    # --- who owns what --------------------------------------------------------------------------------------------

    async def owners(self) -> dict[str, int | None]:
        """The process that owns each range."""
        return {name: pid_of(row) for name, row in (await self.store.ranges()).items()}

    async def shared(self, among: Collection[Process] | None = None, within: float = 60) -> dict[str, int | None]:
        """Who owns what, once all is shared out evenly among these, or all that run."""
        pids = {process.pid for process in (self.running if among is None else among)}

        async def look() -> dict[str, int | None] | None:
            owners = await self.owners()
            owned = Counter(owners.values())
            even = owned.keys() == pids and max(owned.values()) - min(owned.values()) <= 1
            return owners if even and owners.keys() == set(RANGES) else None

        return await self.eventually(look, within)

    async def owner_of(self, instance_id: UUID) -> int | None:
        """The process that owns the instance."""
        return (await self.owners()).get(range_of_aggregate(instance_id))

    async def eventually(self, look: Callable[[], Awaitable[Found | None]], within: float = 60) -> Found:
        """What `look` yields, once it yields something."""
        deadline = time.monotonic() + within
        while not (found := await look()):
            if time.monotonic() > deadline:
                raise TimeoutError("\n".join(f"--- {p.pid}\n{p.said()[-3000:]}" for p in self.running))
            await asyncio.sleep(0.05)
        return found

    async def stands_still(self, process: Process) -> None:
        """Until the process is stopped."""

        async def look() -> bool:
            return process.stopped

        await self.eventually(look)

    # --- what they work on ----------------------------------------------------------------------------------------

    async def create(self, count: int) -> list[UUID]:
        """So many instances, accepted."""
        ids = [uuid4() for _ in range(count)]
        await asyncio.gather(*(self.send("create_instance", i, self._arguments(i)) for i in ids))
        return ids

    def begin_create(self, count: int) -> asyncio.Task[list[UUID]]:
        """So many instances, to be accepted when somebody can."""
        return asyncio.create_task(self.create(count))

    async def send(self, command: str, instance_id: UUID, args: dict[str, Any] | None = None) -> None:
        """A command, accepted. A reply comes at most once; the record in the log is sure."""
        command_id = uuid4()
        body = {"command_id": str(command_id), "args": args or {}, "actor": "alice", "issued_at": NOON.isoformat()}
        await self.publisher.publish(command, instance_id, json.dumps(body).encode())
        record = await self.eventually(lambda: self.store.decision(self.publisher.project, command_id))
        assert isinstance(record, CommandAccepted), record

    @staticmethod
    def _arguments(instance_id: UUID) -> dict[str, Any]:
        return {"name": f"db-{instance_id.hex[:8]}", "flavor": "small", "datastore": "postgresql", "volume_size": 1}

    async def instance(self, instance_id: UUID) -> Any:
        """The instance as the log has it."""
        return fold(await self.store.events_of(instance_id))

    async def in_state(self, instance_id: UUID, state: str, within: float = 60) -> Any:
        """The instance, once it is in the state."""

        async def look() -> Any:
            instance = await self.instance(instance_id)
            return instance if instance is not None and instance.state == state else None

        return await self.eventually(look, within)

    async def settled(self, ids: Collection[UUID], within: float = 90) -> list[Any]:
        """The instances, once each has come to its end."""

        async def look() -> list[Any] | None:
            instances = [await self.instance(instance_id) for instance_id in ids]
            return instances if all(i.owes() is None or i.parked is not None for i in instances) else None

        return await self.eventually(look, within)

    async def moved_on(self, instance_id: UUID, after: float) -> float | None:
        """Seconds after a moment of the wall clock until the next event of the instance, if there was one."""
        for event in await self.store.events_of(instance_id):
            at: datetime = event.timestamp
            if at.timestamp() > after:
                return at.timestamp() - after
        return None

    # --- what is left ---------------------------------------------------------------------------------------------

    async def made(self) -> Counter[tuple[str, str]]:
        """How many of each kind and name were made."""
        return Counter((e.kind, e.name) for e in await self.far_side.ledger() if e.action == "create")

    async def changes(self, instance_id: UUID) -> list[Entry]:
        """What was changed at the cloud for an instance."""
        return [entry for entry in await self.far_side.ledger() if str(instance_id) in entry.name]

    async def held(self) -> Counter[tuple[str, str]]:
        """How many of each kind and name there are."""
        inventory = await self.far_side.inventory()
        return Counter((kind, found["name"]) for kind, by_id in inventory.items() for found in by_id.values())


def pid_of(row: RangeRow) -> int | None:
    """The process that owns the range."""
    return None if row.owner is None else int(row.owner.split("@")[2])


@pytest.fixture
def cloud_arguments() -> tuple[str, ...]:
    """How the simulated cloud is started."""
    return ("--latest-effect", "0.5", "--verb-time", "0.1", "--build-time", "0.2", "--latency", "0.02")


@pytest.fixture
def site(tmp_path: Path, postgres: str, cloud_arguments: tuple[str, ...]) -> Iterator[tuple[Broker, str, Path]]:
    schema = f"workers_{uuid4().hex}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
    with running_broker(tmp_path / "broker") as broker, simulated_cloud(tmp_path / "cloud", *cloud_arguments) as cloud:
        yield broker, f"{postgres}?schema={schema}", cloud


@pytest.fixture
async def workers(tmp_path: Path, site: tuple[Broker, str, Path]) -> AsyncIterator[Workers]:
    broker, url, cloud = site
    client = await connect(BrokerSettings(url=broker.url), name="publisher")
    store = open_store(url)
    store.start()
    made = Workers(tmp_path, broker, url, store, cloud, Publisher(client))
    try:
        yield made
        assert set(await made.end()) <= {0}, [process.said()[-3000:] for process in made.running]
    finally:
        for process in made.running:
            if not process.ended:
                process.kill()
        await made.far_side.close()
        await store.close()
        await client.close()
