"""Commands per second and the time of one: live, from a backlog, idle. Operations per second with an instant cloud."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from tests.benchmarks.bed import Bed, Publisher, bed, twin_of
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
from tests.benchmarks.rows import commit_again

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
            for what, unit, pairs in (
                (f"{kind} commands drained", "1/s", [rate for rate, _ in taken]),
                (f"{kind} command drained, the worker's processor", "µs", [cpu for _, cpu in taken]),
            ):
                found = median(pairs)
                figures.append(
                    Figure(
                        benchmark="backlog",
                        what=what,
                        value=found.value,
                        unit=unit,
                        baseline_what="the same rows in the same transactions, raw SQLite",
                        baseline=found.baseline,
                        load=load(),
                    )
                )
    return figures


async def _drain(made: Bed, commands: list[Sent], profile: Path | None = None) -> tuple[Pair, Pair]:
    """Commands per second, and microseconds of the processor for one."""
    await publish_all(made.client, commands)
    store = made.new_store()
    number = len(commands)
    async with made.worker(store, profile):
        reached = await made.reached(records=number)
    raw = await asyncio.to_thread(commit_again, store, reached.batches)
    await made.empty()
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
            for warming in accepted(20):
                await decisions.send(warming)
            for each, other in zip(accepted(number), accepted(number), strict=True):
                began = time.monotonic()
                await decisions.send(each)
                took.append(time.monotonic() - began)
                began = time.monotonic()
                await stream.publish(twin_of(other.subject), other.body, headers={"Nats-Msg-Id": other.message_id})
                await made.ask("echo", b"x")
                floor.append(time.monotonic() - began)
    return [
        Figure(
            benchmark="idle",
            what=f"one command, publish to decision, {name}",
            value=percentile(took, share) * 1000,
            unit="ms",
            baseline_what=f"publish with acknowledgement, then a request and its reply, {name}",
            baseline=percentile(floor, share) * 1000,
            load=load(),
        )
        for name, share in (("p50", 0.5), ("p99", 0.99))
    ]


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
