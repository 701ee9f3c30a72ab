"""Heartbeats taken in per second, and queries answered per second with ten thousand instances."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime
from itertools import cycle, islice
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec
from nats.aio.client import Client

from engine.event_log import open_log
from engine.messages import GuestStatus, Heartbeat, VolumeUse, heartbeat_subject, query_subject
from projections import instances, projector
from projections.answers import InstanceAnswer, columns
from projections.base import FILE
from projections.listing import ListRequest
from tests.benchmarks.bed import Bed, bed, process
from tests.benchmarks.histories import PROJECT, created, write
from tests.benchmarks.measure import Figure, Pair, Scale, load, median, percentile

IN_FLIGHT = 16


# --- heartbeats ---------------------------------------------------------------------------------------------------


async def heartbeats(scale: Scale) -> list[Figure]:
    """Beats of a thousand instances, sent as fast as one process can."""
    number = scale.of(200_000, 50_000, 500)
    figures = []
    async with bed() as made:
        store, models, ids = await asyncio.to_thread(_fleet, made.directory, scale.of(1000, 500, 5))
        for mode, what in (
            ("view", "heartbeats into the heartbeat view"),
            ("health", "heartbeats into the health monitor"),
            ("both", "heartbeats into both in one process, each from its own connection"),
        ):
            pairs = [await _beat_round(made, mode, store, models, ids, number) for _ in range(scale.of(3, 2, 1))]
            found = median(pairs)
            figures.append(
                Figure(
                    benchmark="heartbeats",
                    what=what,
                    value=found.value,
                    unit="1/s",
                    baseline_what="core NATS receive alone",
                    baseline=found.baseline,
                    load=load(),
                )
            )
    return figures


async def _beat_round(made: Bed, mode: str, store: Path, models: Path, ids: Sequence[UUID], number: int) -> Pair:
    alone = await _beat(made, "alone", store, models, ids, number)
    return Pair(await _beat(made, mode, store, models, ids, number), alone)


async def _beat(made: Bed, mode: str, store: Path, models: Path, ids: Sequence[UUID], number: int) -> float:
    async with _reading(made, mode, store, models):
        await made.ask("taken", msgspec.json.encode(0))
        # The first beats of all instances are news, and recorded; what counts is what comes after.
        await _send(made.client, ids, len(ids))
        await made.ask("taken", msgspec.json.encode(len(ids)))
        began = time.monotonic()
        await _send(made.client, ids, number)
        ended = msgspec.json.decode(await made.ask("taken", msgspec.json.encode(len(ids) + number), 600), type=float)
    return number / (ended - began)


async def _send(client: Client, ids: Sequence[UUID], number: int) -> None:
    beats = [(heartbeat_subject(each), _heartbeat(each)) for each in ids]
    for ordinal, (subject, body) in enumerate(islice(cycle(beats), number)):
        await client.publish(subject, body)
        if ordinal % 1000 == 999:
            await client.flush(60)
    await client.flush(60)


def _heartbeat(instance_id: UUID) -> bytes:
    beat = Heartbeat(
        instance_id=instance_id,
        boot=str(uuid4()),
        sequence=1,
        sent_at=datetime.now(UTC),
        interval=5.0,
        status=GuestStatus.HEALTHY,
        role="primary",
        position="0/1A2B3C4D",
        datastore="postgresql",
        datastore_version="18.1",
        volume=VolumeUse(used=123_456_789, size=1 << 30),
    )
    return msgspec.json.encode(beat)


# --- queries ------------------------------------------------------------------------------------------------------


async def queries(scale: Scale) -> list[Figure]:
    """One instance by its id; a page of a hundred, filtered and sorted."""
    figures = []
    async with bed() as made:
        fleet = scale.of(10_000, 2000, 5)
        store, models, ids = await asyncio.to_thread(_fleet, made.directory, fleet)
        listed = ListRequest(filter={"status": "ACTIVE", "datastore": "postgresql"}, sort="-name", limit=100)
        statement, values = instances.LISTING.statement(PROJECT, listed)
        get = f"SELECT {columns(InstanceAnswer)} FROM instances WHERE project = ? AND id = ?"
        asked: tuple[tuple[str, str, list[bytes], list[tuple[str, list[Any]]], int], ...] = (
            (
                "instances.get",
                "get",
                [msgspec.json.encode({"instance_id": each}) for each in ids],
                [(get, [PROJECT, str(each)]) for each in ids],
                scale.of(4000, 1000, 20),
            ),
            (
                "instances.list of 100, filtered and sorted",
                "list",
                [msgspec.json.encode(listed)],
                [(statement, [*values, 101])],
                scale.of(600, 200, 5),
            ),
        )
        async with _reading(made, "queries", store, models):
            for what, verb, bodies, statements, number in asked:
                subject = query_subject(PROJECT, "instances", verb)
                taken = [
                    await _query_round(made, subject, bodies, models / FILE, statements, number)
                    for _ in range(scale.of(3, 2, 1))
                ]
                for name, unit, pairs in (
                    (f"{IN_FLIGHT} in flight", "1/s", [rate for rate, _ in taken]),
                    ("one at a time, p99", "ms", [slow for _, slow in taken]),
                ):
                    found = median(pairs)
                    figures.append(
                        Figure(
                            benchmark="queries",
                            what=f"{what}, {fleet} instances, {name}",
                            value=found.value,
                            unit=unit,
                            baseline_what="the SQLite query alone",
                            baseline=found.baseline,
                            load=load(),
                        )
                    )
    return figures


async def _query_round(
    made: Bed, subject: str, bodies: list[bytes], path: Path, statements: list[tuple[str, list[Any]]], number: int
) -> tuple[Pair, Pair]:
    """Throughput and p99, each with its baseline."""
    raw = await asyncio.to_thread(_raw, path, statements, number)
    left = iter(list(islice(cycle(bodies), number)))

    async def lane() -> None:
        for body in left:
            await _ask(made.client, subject, body)

    began = time.monotonic()
    await asyncio.gather(*(lane() for _ in range(IN_FLIGHT)))
    rate = number / (time.monotonic() - began)
    took = []
    for body in islice(cycle(bodies), min(number, 500)):
        began = time.monotonic()
        await _ask(made.client, subject, body)
        took.append(time.monotonic() - began)
    return (
        Pair(rate, number / sum(raw)),
        Pair(percentile(took, 0.99) * 1000, percentile(raw, 0.99) * 1000),
    )


async def _ask(client: Client, subject: str, body: bytes) -> None:
    reply = await client.request(subject, body, timeout=60)
    if reply.headers and "Nats-Service-Error" in reply.headers:
        raise RuntimeError(f"{subject} was refused: {reply.data.decode()}")


def _raw(path: Path, statements: list[tuple[str, list[Any]]], number: int) -> list[float]:
    took = []
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        for statement, values in islice(cycle(statements), number):
            began = time.monotonic()
            rows = connection.execute(statement, values).fetchall()
            took.append(time.monotonic() - began)
            if not rows:
                raise LookupError(f"no rows for {values}")
    return took


# --- what both read -----------------------------------------------------------------------------------------------


def _fleet(directory: Path, number: int) -> tuple[Path, Path, list[UUID]]:
    """A log in which so many instances are ACTIVE, and its read models."""
    store, models = directory / "fleet.db", directory / "models"
    ids = write(store, created, number)
    log = open_log(f"sqlite://{store}")
    projector.rebuild(log, models)
    log.close()
    return store, models, ids


@asynccontextmanager
async def _reading(made: Bed, mode: str, store: Path, models: Path) -> AsyncIterator[None]:
    seed = made.broker.users.seed("worker")
    async with process(
        made.directory / f"{mode}.log",
        "tests.benchmarks.reading_process",
        *(mode, "--url", made.broker.url, "--seed", str(seed), "--store", str(store), "--models", str(models)),
    ):
        await made.ask("echo")
        if mode == "queries":
            await made.request(query_subject(PROJECT, "fleet", "get"))
        yield
