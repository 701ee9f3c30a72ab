"""Broker and store are killed, paused, locked and full during load: what was acknowledged is neither lost nor stuck."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import pytest
import structlog.testing

from engine import databases
from engine import settler as settling
from engine.clouds.port import TransientError
from tests.engine.conftest import Engine
from tests.faults.load import SECONDS, SEEDS, ended, load
from tests.faults.small_disk import small_disk
from tests.support.broker import Broker
from tests.support.postgres import Postgres, own_postgres

Report = Callable[[str, object], None]


@pytest.fixture
def postgres_of_its_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[Postgres]:
    """A server to be stopped; calls to it are cut off after a second or two."""
    monkeypatch.setattr(databases, "CUT_AFTER", 1.0)
    with own_postgres() as server:
        yield server


@pytest.fixture
async def engine_on_postgres(broker: Broker, postgres_of_its_own: Postgres) -> AsyncIterator[Engine]:
    started = Engine(broker, postgres_of_its_own.url)
    await started.start()
    yield started
    await started.stop()


@pytest.mark.parametrize("seed", SEEDS)
async def test_the_broker_is_killed_paused_and_restarted_at_random(
    engine: Engine, tmp_path: Path, seed: int, record_property: Report
) -> None:
    random, done = Random(seed), Counter[str]()
    async with load(engine, seed) as publisher:
        async with publisher.running():
            for turn in range(max(3, round(SECONDS))):
                await asyncio.sleep(random.uniform(0.2, 0.8))
                fault = ("killed", "paused", "restarted", random.choice(("killed", "paused")))[turn % 4]
                done[fault] += 1
                await asyncio.to_thread(_break_broker, engine.broker, fault, random.uniform(0.1, 1.0))
            await asyncio.sleep(0.5)
        ends = await ended(engine, publisher.acknowledged, tmp_path)
    injected = ", ".join(f"{fault} {n} times" for fault, n in sorted(done.items()))
    record_property("figures", ends.figures(f"broker {injected}"))
    assert ends.accepted > 0


def _break_broker(broker: Broker, fault: str, seconds: float) -> None:
    if fault == "paused":
        broker.pause()
        time.sleep(seconds)
        broker.resume()
        return
    broker.kill() if fault == "killed" else broker.stop()
    time.sleep(seconds)
    broker.start()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("how", ["paused", "killed"] if SECONDS < 10 else ["paused", "killed", "stopped"])
async def test_postgresql_is_away_for_a_while(
    engine_on_postgres: Engine,
    postgres_of_its_own: Postgres,
    tmp_path: Path,
    how: str,
    seed: int,
    record_property: Report,
) -> None:
    engine, server = engine_on_postgres, postgres_of_its_own
    times = max(1, round(SECONDS / 5)) if how == "killed" else 1
    async with load(engine, seed) as publisher:
        async with publisher.running():
            for _ in range(times):
                await asyncio.sleep(1.0)
                await asyncio.to_thread({"paused": server.pause, "stopped": server.stop, "killed": server.kill}[how])
                await asyncio.sleep(0.3 if how == "killed" else SECONDS)
                await asyncio.to_thread(server.resume if how == "paused" else server.start)
            await asyncio.sleep(0.5)
        ends = await ended(engine, publisher.acknowledged, tmp_path)
    record_property("figures", ends.figures(f"PostgreSQL {how} {times} times"))
    assert ends.accepted > 0


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
async def test_sqlite_is_locked_by_another_process(engine: Engine, tmp_path: Path, record_property: Report) -> None:
    pool = engine.store.log.recorder.datastore.pool
    pool.lock_timeout = 1  # type: ignore[union-attr]
    async with load(engine, 1) as publisher:
        async with publisher.running():
            await asyncio.sleep(0.5)
            other = sqlite3.connect(tmp_path / "events.db", isolation_level=None, timeout=30)
            other.execute("BEGIN IMMEDIATE")
            await asyncio.sleep(SECONDS)
            other.execute("COMMIT")
            other.close()
            await asyncio.sleep(0.5)
        ends = await ended(engine, publisher.acknowledged, tmp_path)
    record_property("figures", ends.figures(f"SQLite locked for {SECONDS:g} s"))
    assert ends.accepted > 0


async def test_the_stores_disk_fills_up_and_has_room_again(
    broker: Broker, tmp_path: Path, record_property: Report
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        engine = Engine(broker, f"sqlite://{disk.directory}/events.db")
        await engine.start()
        async with load(engine, 1) as publisher:
            async with publisher.running():
                await asyncio.sleep(0.5)
                await asyncio.to_thread(disk.fill)
                with structlog.testing.capture_logs() as said:
                    await asyncio.sleep(SECONDS)
                assert "store_unavailable" in {each["event"] for each in said}
                assert len(said) < 100, "an outage is told once, not at each try"
                disk.make_room()
                await asyncio.sleep(0.5)
            ends = await ended(engine, publisher.acknowledged, tmp_path)
        await engine.stop()
    record_property("figures", ends.figures(f"disk of the store full for {SECONDS:g} s"))
    assert ends.accepted > 0


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
async def test_the_stream_of_commands_is_full_and_drained_again(
    broker: Broker, store_url: str, tmp_path: Path, record_property: Report
) -> None:
    engine = Engine(broker, store_url)
    engine.streams = {"command_bytes": 100_000}
    await engine.start()
    async with load(engine, 1, pace=0.01) as publisher:
        async with publisher.running():
            await asyncio.sleep(0.3)
            # The next one knows nothing of what was decided before it, and nothing new can come that tells of it.
            await engine.stop()
            await publisher.refuses("ServiceUnavailableError")
            await engine.start()
            full = len(publisher.acknowledged)
            await publisher.acknowledges(full + 50)
        ends = await ended(engine, publisher.acknowledged, tmp_path)
    await engine.stop()
    refused = publisher.refused["ServiceUnavailableError"]
    record_property("figures", ends.figures(f"stream of 100 kB full, {refused} commands refused and sent again"))


class SteppedClock:
    """A wall clock that is set forward and back."""

    def __init__(self) -> None:
        self.offset = timedelta(0)

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.offset


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("seed", SEEDS)
async def test_the_wall_clock_is_stepped_by_minutes(
    broker: Broker,
    store_url: str,
    tmp_path: Path,
    seed: int,
    record_property: Report,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(settling, "LONGEST_PAUSE", 2.0)
    random, clock, steps = Random(seed), SteppedClock(), 0
    engine = Engine(broker, store_url)
    engine.options["now"] = clock
    await engine.start()
    async with load(engine, seed) as publisher:
        async with publisher.running():
            for _ in range(max(6, round(SECONDS * 3))):
                engine.cloud.fail("EnsureServer", TransientError("cloud_error", "try again"), 2)
                await asyncio.sleep(random.uniform(0.1, 0.4))
                clock.offset = timedelta(minutes=random.choice((-5, 0, 5)))
                steps += 1
        clock.offset = timedelta(minutes=-5)
        # Who takes it up after a step back must not wait for what the old clock said.
        await engine.stop()
        await engine.start()
        async with asyncio.timeout(60):
            ends = await ended(engine, publisher.acknowledged, tmp_path)
    await engine.stop()
    record_property("figures", ends.figures(f"wall clock stepped {steps} times by up to ten minutes"))
    assert ends.accepted > 0
