"""A process that takes in heartbeats or answers queries, and says how far it has come.

`alone` only receives; `view` is the heartbeat view, `health` the monitor of the worker, `both` the two in one process
on a connection each, as in `holdfast up`; `queries` is the read side as it is.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg

from aggregates.health import HealthStatus
from engine import logs
from engine.broker import BrokerSettings, connect
from engine.credentials import inbox_prefix
from engine.event_log import open_log
from engine.health import HealthMonitor
from engine.hot import HotAggregates
from engine.messages import heartbeat_subject
from engine.store import open_store
from projections.heartbeats import HeartbeatView
from projections.run import run_projector
from tests.benchmarks.bed import CONTROL

MODES = ("alone", "view", "health", "both", "queries")
_LOOK = 0.005


async def serve(mode: str, url: str, seed: Path, store: Path, models: Path) -> None:
    """Read until SIGTERM."""
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    clients: list[Client] = []
    async with AsyncExitStack() as stack:

        async def connected() -> Client:
            settings = BrokerSettings(url=url, seed_file=seed)
            client = await connect(settings, name=f"bench-{mode}", inbox_prefix=inbox_prefix("worker"))
            stack.push_async_callback(client.close)
            clients.append(client)
            return client

        running: list[asyncio.Task[Any]] = []
        monitor: HealthMonitor | None = None
        if mode == "alone":
            await (await connected()).subscribe(heartbeat_subject("*"), cb=_ignore)
        if mode in ("view", "both"):
            view = HeartbeatView(await connected(), models)
            await view.start()
            stack.push_async_callback(view.close)
        if mode in ("health", "both"):
            events = open_store(f"sqlite://{store}")
            events.start()
            stack.push_async_callback(events.close)
            monitor = HealthMonitor(await connected(), events, HotAggregates(events))
            running.append(asyncio.create_task(monitor.run()))
        if mode == "queries":
            log = open_log(f"sqlite://{store}")
            stack.callback(log.close)
            running.append(asyncio.create_task(run_projector(log, models, await connected())))
        await _answer(await connected(), clients[:-1], monitor)
        await asyncio.wait((*running, asyncio.create_task(told.wait())), return_when=asyncio.FIRST_COMPLETED)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _ignore(message: Msg) -> None:
    """Receive, and no more."""


async def _answer(control: Client, listening: list[Client], monitor: HealthMonitor | None) -> None:
    answering: set[asyncio.Task[None]] = set()

    async def taken(message: Msg) -> None:
        task = asyncio.create_task(_taken(message, listening, monitor))
        answering.add(task)
        task.add_done_callback(answering.discard)

    async def echo(message: Msg) -> None:
        await message.respond(message.data)

    await control.subscribe(f"{CONTROL}.taken", cb=taken)
    await control.subscribe(f"{CONTROL}.echo", cb=echo)
    await control.flush()


async def _taken(message: Msg, listening: list[Client], monitor: HealthMonitor | None) -> None:
    """Answer when every listener has taken in so many beats, and all who beat are recorded as healthy: the moment."""
    goal = msgspec.json.decode(message.data, type=int)
    while any(_processed(client) < goal for client in listening):  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(_LOOK)
    moment = time.monotonic()
    while goal and monitor is not None and not _steady(monitor):  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(_LOOK)
    await message.respond(msgspec.json.encode(moment))


def _processed(client: Client) -> int:
    """Beats delivered and no longer waiting; less than none before it listens."""
    for subscription in client._subs.values():
        if subscription.subject == heartbeat_subject("*"):
            return subscription.delivered - subscription.pending_msgs
    return -1


def _steady(monitor: HealthMonitor) -> bool:
    return all(heard.recorded is HealthStatus.HEALTHY for heard in monitor._heard.values())


def main() -> None:
    """Read until told to end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=MODES)
    for name in ("--seed", "--store", "--models"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--url", required=True)
    arguments = parser.parse_args()
    logs.configure()
    asyncio.run(serve(arguments.mode, arguments.url, arguments.seed, arguments.store, arguments.models))


if __name__ == "__main__":
    main()
