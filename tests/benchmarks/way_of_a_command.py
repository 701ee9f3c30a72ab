"""Commands per second and the time of one: live, from a backlog, idle. Operations per second with an instant cloud."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from pathlib import Path

import psycopg
from nats.js import JetStreamContext

from engine.broker import MIB
from engine.inbox import WARY
from tests.benchmarks.bed import Bed, Publisher, Reached, bed, twin_of
from tests.benchmarks.commands import (
    IN_FLIGHT,
    Decisions,
    Sent,
    accepted,
    acknowledged,
    creates,
    decided,
    decided_as_they_come,
    publish_all,
    refused,
)
from tests.benchmarks.measure import Figure, Pair, Scale, load, median, percentile
from tests.benchmarks.rows import Spent, commit_again, commit_again_in_postgres
from tests.support.postgres import running_postgres

Send = Callable[[Publisher, Sequence[Sent]], Awaitable[float]]


async def live(scale: Scale) -> list[Figure]:
    """From publish to the decision received, many commands at once."""
    number = scale.of(4000, 1000, 40)
    figures = []
    ways: tuple[tuple[str, Callable[[int], list[Sent]], Send], ...] = (
        (f"accepted commands decided, {IN_FLIGHT} publishes in flight", accepted, decided_as_they_come),
        (f"accepted commands decided, {IN_FLIGHT} commands in flight", accepted, decided),
        (f"refused commands decided, {IN_FLIGHT} publishes in flight", refused, decided_as_they_come),
    )
    async with bed() as made, made.publisher() as publisher:
        for what, commands, send in ways:
            async with made.worker(made.new_store()):
                await decided(publisher, commands(64))
                pairs = []
                for _ in range(scale.of(3, 2, 1)):
                    alone = await acknowledged(made.client, commands(number))
                    pairs.append(Pair(await send(publisher, commands(number)), alone))
            await made.empty()
            found = median(pairs)
            figures.append(
                Figure(
                    benchmark="live",
                    what=what,
                    value=found.value,
                    unit="1/s",
                    baseline_what=f"publish with acknowledgement alone, {IN_FLIGHT} in flight",
                    baseline=found.baseline,
                    load=load(),
                )
            )
    return figures


async def backlog(scale: Scale) -> list[Figure]:
    """Commands published while no worker runs, then decided."""
    number = scale.of(20000, 4000, 100)
    figures = []
    async with bed() as made:
        for kind, commands in (("accepted", accepted), ("refused", refused)):
            taken = [await _drain(made, commands(number)) for _ in range(scale.of(3, 1, 1))]
            figures.extend(_drained(f"{kind} command", "SQLite", taken))
        with running_postgres() as url:
            taken = [await _drain_into_postgres(made, url, accepted(number)) for _ in range(scale.of(3, 1, 1))]
        figures.extend(_drained("accepted command", "PostgreSQL", taken))
    return figures


def _drained(what: str, database: str, taken: Sequence[tuple[Pair, Pair]]) -> list[Figure]:
    figures = []
    for name, unit, found in (
        (f"{what}s drained, {database}", "1/s", median([rate for rate, _ in taken])),
        (f"{what} drained, {database}, the worker's processor", "µs", median([cpu for _, cpu in taken])),
    ):
        figures.append(
            Figure(
                benchmark="backlog",
                what=name,
                value=found.value,
                unit=unit,
                baseline_what=f"the same rows in the same transactions, raw {database}",
                baseline=found.baseline,
                load=load(),
            )
        )
    return figures


async def _drain(made: Bed, commands: list[Sent], profile: Path | None = None) -> tuple[Pair, Pair]:
    """Commands per second, and microseconds of the processor for one."""
    store = made.new_store()
    reached = await _drain_into(made, store, commands, profile)
    return _rates(reached, await asyncio.to_thread(commit_again, store, reached.batches))


async def _drain_into_postgres(made: Bed, server: str, commands: list[Sent]) -> tuple[Pair, Pair]:
    schema = made.new_store().stem.replace("-", "_")
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
    reached = await _drain_into(made, f"{server}?schema={schema}", commands, None)
    return _rates(reached, await asyncio.to_thread(commit_again_in_postgres, server, schema, reached.batches))


async def _drain_into(made: Bed, store: Path | str, commands: list[Sent], profile: Path | None) -> Reached:
    await publish_all(made.client, commands)
    async with made.worker(store, profile):
        reached = await made.reached(records=len(commands))
    await made.empty()
    return reached


def _rates(reached: Reached, raw: Spent) -> tuple[Pair, Pair]:
    number = reached.records
    return (
        Pair(number / (reached.at - reached.started), number / raw.clock),
        Pair(reached.cpu / number * 1e6, raw.cpu / number * 1e6),
    )


async def idle(scale: Scale) -> list[Figure]:
    """One command at a time, nothing else to do."""
    number = scale.of(1000, 200, 10)
    async with bed() as made, made.publisher() as publisher:
        stream = made.client.jetstream()
        took: list[float] = []
        floor: list[float] = []
        async with made.worker(made.new_store()), Decisions(publisher) as decisions:
            # Just after a start the inbox notes what it is about to decide; that is no idle worker yet.
            await asyncio.gather(*(decisions.send(warming) for warming in accepted(scale.of(WARY, WARY, 20))))
            for each, other in zip(accepted(number), accepted(number), strict=True):
                took.append(await _seconds(decisions.send(each)))
                floor.append(await _seconds(_floor(made, stream, other)))
    return _latencies("idle", "one command", took, floor)


async def _seconds(doing: Awaitable[object]) -> float:
    began = time.monotonic()
    await doing
    return time.monotonic() - began


async def _floor(made: Bed, stream: JetStreamContext, each: Sent) -> None:
    """What the broker and the way to a process and back take, without a decision."""
    await stream.publish(twin_of(each.subject), each.body, headers={"Nats-Msg-Id": each.message_id})
    await made.ask("echo", b"x")


def _latencies(benchmark: str, what: str, took: Sequence[float], floor: Sequence[float]) -> list[Figure]:
    return [
        Figure(
            benchmark=benchmark,
            what=f"{what}, publish to decision, {name}",
            value=percentile(took, share) * 1000,
            unit="ms",
            baseline_what=f"publish with acknowledgement, then a request and its reply, {name}",
            baseline=percentile(floor, share) * 1000,
            load=load(),
        )
        for name, share in (("p50", 0.5), ("p99", 0.99))
    ]


LATENCY = 0.05  # seconds for each call to the cloud while commands are accepted


async def accepting(scale: Scale) -> list[Figure]:
    """One command at a time, while many operations run."""
    number = scale.of(1000, 300, 5)
    took: list[float] = []
    floor: list[float] = []
    async with bed() as made, made.publisher() as publisher:
        stream = made.client.jetstream()
        async with (
            made.worker(made.new_store(), None, "--latency", str(LATENCY)),
            Decisions(publisher) as decisions,
        ):
            await publish_all(made.client, creates(number))
            await made.reached(records=number)
            done = asyncio.create_task(made.reached(active=number))
            while not done.done():
                each, other = accepted(2)
                took.append(await _seconds(decisions.send(each)))
                floor.append(await _seconds(_floor(made, stream, other)))
            await done
    return _latencies("accepting", f"one command, while {number} operations run", took, floor)


async def in_flight(scale: Scale) -> list[Figure]:
    """Operations that wait for something outside, all at once in one worker."""
    number = scale.of(10_000, 2000, 10)
    async with bed() as made:
        store = made.new_store()
        async with made.worker(store, None, "--unhurried"):
            alone = await made.reached()
            await publish_all(made.client, creates(number))
            full = await made.reached(preparing=number)
        stored = await asyncio.to_thread(_stored_bytes, store)
    return [
        Figure(
            benchmark="in-flight",
            what=f"memory of a worker with {number} operations in flight, the simulated cloud's included",
            value=full.memory / MIB,
            unit="MiB",
            baseline_what="the same worker with nothing to do",
            baseline=alone.memory / MIB,
            load=load(),
        ),
        Figure(
            benchmark="in-flight",
            what="memory for one operation in flight",
            value=(full.memory - alone.memory) / number / 1024,
            unit="KiB",
            baseline_what="its events as they are stored",
            baseline=stored / number / 1024,
            load=load(),
        ),
    ]


def _stored_bytes(store: Path) -> int:
    with closing(sqlite3.connect(store)) as source:
        found: int = source.execute("SELECT sum(length(state)) FROM stored_events").fetchone()[0]
    return found


async def operations(scale: Scale) -> list[Figure]:
    """Instances made by create_instance, from the first publish to the last one ACTIVE."""
    number = scale.of(400, 150, 5)
    async with bed() as made:
        taken = [await _operate(made, number) for _ in range(scale.of(3, 1, 1))]
    return [
        Figure(
            benchmark="operations",
            what=what,
            value=found.value,
            unit=unit,
            baseline_what="the same events in the same transactions, raw SQLite",
            baseline=found.baseline,
            load=load(),
        )
        for what, unit, found in (
            ("create_instance completed, simulated cloud", "1/s", median([rate for rate, _ in taken])),
            ("create_instance completed, the worker's processor", "µs", median([cpu for _, cpu in taken])),
        )
    ]


async def _operate(made: Bed, number: int, profile: Path | None = None) -> tuple[Pair, Pair]:
    """Instances per second, and microseconds of the processor for one."""
    store = made.new_store()
    async with made.worker(store, profile):
        began = time.monotonic()
        await publish_all(made.client, creates(number))
        reached = await made.reached(active=number)
    raw = await asyncio.to_thread(commit_again, store, reached.batches)
    await made.empty()
    return (
        Pair(number / (reached.at - began), number / raw.clock),
        Pair(reached.cpu / number * 1e6, raw.cpu / number * 1e6),
    )


async def profiled(what: str, scale: Scale, path: Path) -> None:
    """Write the profile of a worker that drains a backlog, or carries out operations."""
    async with bed() as made:
        if what == "backlog":
            await _drain(made, accepted(scale.of(20000, 4000, 100)), path)
        else:
            await _operate(made, scale.of(400, 150, 5), path)
