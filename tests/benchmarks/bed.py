"""What the benchmarks run on: a broker as `holdfast up` starts it, a worker in a process of its own.

The broker syncs before it acknowledges, and the store commits with an fsync, as in production. Cloud and guests are
simulated and answer at once. Nothing of it is left at the end.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.js.api import StreamConfig, SubjectTransform

from engine.broker import COMMAND_STREAM, EVENT_STREAM, connect, ensure_streams
from engine.credentials import inbox_prefix
from engine.embedded import EmbeddedBroker
from engine.messages import PARTITIONS, PREFIX
from engine.state import StateDirectory

CONTROL = f"{PREFIX}.qry.bench.control"
TWIN = "HOLDFAST_TWIN"
TWIN_PREFIX = f"{PREFIX}.twin"
STARTED_WITHIN = 60.0


class Reached(msgspec.Struct, kw_only=True):
    """What a worker says when it has come so far: moments of the monotonic clock, events in each transaction.

    `cpu`: seconds of the processor that it has used by then, in all its threads. `preparing`: instances whose database
    came to be prepared. `memory`: bytes of it that are resident when it answers.
    """

    started: float
    at: float
    records: int
    active: int
    batches: list[int]
    cpu: float
    preparing: int = 0
    memory: int = 0


class Publisher(msgspec.Struct, frozen=True):
    """Only the engine itself may command a quota, and it answers to no inbox of its own: hence two connections."""

    sends: Client
    hears: Client


class Bed:
    """A broker with the engine's streams, and a twin of the command stream that nobody reads."""

    def __init__(self, directory: Path, state: StateDirectory, broker: EmbeddedBroker, client: Client) -> None:
        self.directory = directory
        self.state = state
        self.broker = broker
        self.client = client
        self._stores = 0

    async def connect(self, user: str) -> Client:
        """A connection of its own as one of the broker's users."""
        return await connect(self.broker.settings(user), name=f"bench-{user}", inbox_prefix=inbox_prefix(user))

    @asynccontextmanager
    async def publisher(self) -> AsyncIterator[Publisher]:
        """Sends as the engine and hears as a publisher."""
        engine, listener = await self.connect("worker"), await self.connect("publisher")
        try:
            yield Publisher(engine, listener)
        finally:
            await listener.close()
            await engine.close()

    async def empty(self) -> None:
        """Drop what lies in the streams, so that a new store finds nothing old."""
        stream = self.client.jetstream()
        for name in (COMMAND_STREAM, EVENT_STREAM, TWIN):
            await stream.purge_stream(name)

    def new_store(self) -> Path:
        """A path where no event store is yet."""
        self._stores += 1
        return self.directory / f"events-{self._stores}.db"

    @asynccontextmanager
    async def worker(self, store: Path | str, profile: Path | None = None, *arguments: str) -> AsyncIterator[None]:
        """A worker in a process of its own, which has started; ended at the end. `store`: a path, or the URL."""
        if profile is not None:
            arguments = (*arguments, "--profile", str(profile))
        url = f"sqlite://{store}" if isinstance(store, Path) else store
        async with process(
            self.directory / "worker.log",
            "tests.benchmarks.worker_process",
            *("--url", self.broker.url, "--seed", str(self.broker.users.seed("worker")), "--store", url),
            *arguments,
        ):
            await self.ask("echo")
            yield

    async def ask(self, verb: str, body: bytes = b"", within: float = STARTED_WITHIN) -> bytes:
        """Ask the process under measurement; asked again until it is there."""
        return await self.request(f"{CONTROL}.{verb}", body, within)

    async def request(self, subject: str, body: bytes = b"", within: float = STARTED_WITHIN) -> bytes:
        """Ask on any subject; asked again until somebody listens there."""
        deadline = time.monotonic() + within
        while True:
            try:
                return (await self.client.request(subject, body, timeout=within)).data
            except nats.errors.NoRespondersError:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.02)

    async def reached(self, within: float = 600.0, **goal: int) -> Reached:
        """Wait until the worker has decided so many `records`, or brought so many to be `preparing` or `active`."""
        return msgspec.json.decode(await self.ask("reached", msgspec.json.encode(goal), within), type=Reached)


@asynccontextmanager
async def process(log: Path, module: str, *arguments: str) -> AsyncIterator[subprocess.Popen[bytes]]:
    """Another Python process of this package, ended at the end."""
    running = await asyncio.to_thread(_begin, log, [sys.executable, "-m", module, *arguments])
    try:
        yield running
        if running.poll() is not None:
            said = await asyncio.to_thread(log.read_text)
            raise RuntimeError(f"{module} ended with {running.returncode}: {said[-3000:]}")
    finally:
        await asyncio.to_thread(_end, running)


def _begin(log: Path, argv: list[str]) -> subprocess.Popen[bytes]:
    with log.open("ab") as said:
        return subprocess.Popen(argv, stdout=said, stderr=said)


def _end(running: subprocess.Popen[bytes]) -> None:
    for order, patience in ((signal.SIGTERM, 30), (signal.SIGKILL, 10)):
        running.send_signal(order)
        try:
            running.wait(patience)
        except subprocess.TimeoutExpired:
            continue
        return


@asynccontextmanager
async def bed() -> AsyncIterator[Bed]:
    """A running broker under a directory of its own; both gone at the end."""
    directory = Path(tempfile.mkdtemp(prefix="holdfast-bench-"))
    try:
        state = StateDirectory(directory / "state")
        state.prepare()
        broker = EmbeddedBroker(state, None)
        await broker.start()
        try:
            client = await connect(broker.settings("worker"), name="bench", inbox_prefix=inbox_prefix("worker"))
            await ensure_streams(client.jetstream())
            await _make_twin(client)
            yield Bed(directory, state, broker, client)
            await client.close()
        finally:
            await broker.stop()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


async def _make_twin(client: Client) -> None:
    """The command stream again under another name: what the broker alone makes of the same commands."""
    stream = client.jetstream()
    config: StreamConfig = (await stream.stream_info(COMMAND_STREAM)).config
    await stream.add_stream(
        config.evolve(
            name=TWIN,
            subjects=[f"{TWIN_PREFIX}.*.*.*.*"],
            subject_transform=SubjectTransform(
                src=f"{TWIN_PREFIX}.*.*.*.*",
                dest=f"{TWIN_PREFIX}p.{{{{partition({PARTITIONS},3)}}}}."
                "{{wildcard(1)}}.{{wildcard(2)}}.{{wildcard(3)}}.{{wildcard(4)}}",
            ),
        )
    )


def twin_of(subject: str) -> str:
    """The subject by which a command goes into the twin."""
    return subject.replace(f"{PREFIX}.cmd.", f"{TWIN_PREFIX}.", 1)
