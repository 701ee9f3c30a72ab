"""A worker in a process of its own around the simulated cloud, which says how far it has come.

It is composed as in production; beside it stands only a listener that counts. Its agents can be told to take for ever
over preparing a database, and its cloud to take some time over each call, so that operations stay in flight. With
`--profile` the interpreter's profiler runs in every thread, which makes it several times slower: such a run shows where
the time goes, not how much.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import pstats
import signal
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import psutil
from nats.aio.msg import Msg

from aggregates.record import Decided
from engine import logs
from engine.broker import BrokerSettings, connect
from engine.clouds.simulated import SimulatedCloud, SimulatedGuests
from engine.clouds.simulated.guests import Answer as Answered
from engine.clouds.simulated.guests import SimulatedAgents
from engine.credentials import inbox_prefix
from engine.guests import Answer, Requests
from engine.messages import GuestReply, GuestRequest, GuestState, GuestVerb
from engine.store import open_store
from engine.tasks import run_together
from engine.worker import Worker
from tests.benchmarks.bed import CONTROL, Reached


class NoSecrets:
    """The commands of the benchmarks hold none."""

    def put(self, secret: str, *, project: str) -> str:
        """Refuse."""
        raise NotImplementedError


class Tally:
    """Counts what is committed."""

    def __init__(self) -> None:
        self.reached = Reached(started=time.monotonic(), at=0.0, records=0, active=0, batches=[], cpu=0.0)
        self._resident = psutil.Process()
        self._cpu = time.process_time()
        self._changed = asyncio.Event()

    def __call__(self, events: Sequence[Any]) -> None:
        """Hear of one transaction."""
        if not events:
            return
        self.reached.at = time.monotonic()
        self.reached.cpu = time.process_time() - self._cpu
        self.reached.batches.append(len(events))
        for event in events:
            if isinstance(event, Decided):
                self.reached.records += 1
            elif (state := getattr(event, "state", None)) == "ACTIVE":
                self.reached.active += 1
            elif state == "build_database":
                self.reached.preparing += 1
        self._changed.set()

    async def wait(self, goal: dict[str, int]) -> Reached:
        """Until every number asked for is there."""
        while any(getattr(self.reached, name) < number for name, number in goal.items()):
            self._changed.clear()
            await self._changed.wait()
        self.reached.memory = self._resident.memory_info().rss
        return self.reached


class Unhurried:
    """Agents that never come to the end of preparing a database, and say so as often as they are asked."""

    def __init__(self, agents: Requests) -> None:
        self._agents = agents

    async def request(self, subject: str, payload: bytes, timeout: float) -> Answer:
        """Ask one of them."""
        if not subject.endswith(f".{GuestVerb.PREPARE}"):
            return await self._agents.request(subject, payload, timeout)
        await asyncio.sleep(msgspec.json.decode(payload, type=GuestRequest).wait)
        return Answered(msgspec.json.encode(GuestReply(state=GuestState.RUNNING)))


async def serve(url: str, seed: Path, store_url: str, latency: float, *, unhurried: bool) -> None:
    """Work until SIGTERM."""
    client = await connect(BrokerSettings(url=url, seed_file=seed), name="worker", inbox_prefix=inbox_prefix("worker"))
    store = open_store(store_url)
    store.start()
    tally = Tally()
    store.listen(tally)
    answering: set[asyncio.Task[None]] = set()

    async def reached(message: Msg) -> None:
        task = asyncio.create_task(_answer(message, tally))
        answering.add(task)
        task.add_done_callback(answering.discard)

    async def echo(message: Msg) -> None:
        await message.respond(message.data)

    await client.subscribe(f"{CONTROL}.reached", cb=reached)
    await client.subscribe(f"{CONTROL}.echo", cb=echo)
    agents: Requests = SimulatedAgents()
    cloud = SimulatedCloud(latency=latency, latest_effect=timedelta(0))
    guests = SimulatedGuests(agents=Unhurried(agents) if unhurried else agents)
    worker = Worker(client, store, cloud, guests, NoSecrets())
    tally.reached.started = time.monotonic()
    try:
        await run_together(worker=worker.run(), told=_told())
    finally:
        await store.close()
        await client.close()


async def _answer(message: Msg, tally: Tally) -> None:
    goal = msgspec.json.decode(message.data, type=dict[str, int])
    await message.respond(msgspec.json.encode(await tally.wait(goal)))


async def _told() -> None:
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    await told.wait()


# --- profiling ----------------------------------------------------------------------------------------------------


class Profiler:
    """The interpreter's profiler in this thread and in every thread that begins later."""

    def __init__(self) -> None:
        self._profiles: list[cProfile.Profile] = []

    def start(self) -> None:
        """Begin."""
        threading.setprofile(self._begin)
        self._begin()

    def _begin(self, *_: object) -> None:
        # In a new thread: the profiler takes the place of this function there.
        # Time of the processor, not of the clock: waiting costs nothing, and neither do other processes.
        profile = cProfile.Profile(time.thread_time)
        self._profiles.append(profile)
        profile.enable()

    def write(self, path: Path) -> None:
        """Write what all threads did into one file, once they have ended."""
        together = pstats.Stats(self._profiles[0])
        for more in self._profiles[1:]:
            together.add(pstats.Stats(more))
        together.dump_stats(path)


def main() -> None:
    """Run a worker until told to end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--seed", type=Path, required=True)
    parser.add_argument("--store", required=True)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--unhurried", action="store_true")
    parser.add_argument("--profile", type=Path)
    arguments = parser.parse_args()
    logs.configure()
    profiler = Profiler() if arguments.profile is not None else None
    if profiler is not None:
        profiler.start()
    asyncio.run(serve(arguments.url, arguments.seed, arguments.store, arguments.latency, unhurried=arguments.unhurried))
    if profiler is not None:
        profiler.write(arguments.profile)


if __name__ == "__main__":
    main()
