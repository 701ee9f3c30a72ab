"""Events folded per second, and read models made again from the log, each beside decoding the same JSON alone."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from uuid import UUID

import msgspec
from eventsourcing.utils import resolve_topic

from engine.event_log import EventLog, fold, open_log
from projections.base import FILE, ReadModels
from projections.models import MODELS
from projections.projector import PAGE
from tests.benchmarks.histories import created, lived, write
from tests.benchmarks.measure import Figure, Pair, Scale, load, median

PER = 100_000


async def replay(scale: Scale) -> list[Figure]:
    """Whole histories of instances, read from SQLite and folded."""
    return await asyncio.to_thread(_replay, scale)


def _replay(scale: Scale) -> list[Figure]:
    with _directory() as directory:
        path = directory / "events.db"
        ids = write(path, lived, scale.of(500, 100, 2))
        log = open_log(f"sqlite://{path}")
        pairs = [_fold_all(log, ids) for _ in range(scale.of(5, 3, 1))]
        log.close()
    found = median(pairs)
    return [
        Figure(
            benchmark="replay",
            what="events folded, instances of 50 events and more from SQLite",
            value=found.value,
            unit="1/s",
            baseline_what="decoding the same JSON alone",
            baseline=found.baseline,
            load=load(),
        )
    ]


def _fold_all(log: EventLog, ids: Sequence[UUID]) -> Pair:
    stored = [(event.topic, event.state) for each in ids for event in log.recorder.select_events(each)]
    alone = len(stored) / _decode(stored)
    began = time.monotonic()
    for each in ids:
        if fold(log.events_of(each)) is None:
            raise LookupError(f"no events of {each}")
    return Pair(len(stored) / (time.monotonic() - began), alone)


def _decode(stored: Sequence[tuple[str, bytes]]) -> float:
    """Seconds to decode each event into its type."""
    decode = {topic: msgspec.json.Decoder(resolve_topic(topic)).decode for topic, _ in stored}
    began = time.monotonic()
    for topic, state in stored:
        decode[topic](state)
    return time.monotonic() - began


async def rebuild(scale: Scale) -> list[Figure]:
    """All read models from the whole log."""
    return await asyncio.to_thread(_rebuild, scale)


def _rebuild(scale: Scale) -> list[Figure]:
    with _directory() as directory:
        path = directory / "events.db"
        write(path, created, scale.of(10_000, 1000, 5))
        log = open_log(f"sqlite://{path}")
        with closing(sqlite3.connect(path)) as source:
            events = source.execute("SELECT count(*) FROM stored_events").fetchone()[0]
        pairs = [_rebuild_once(log, path, directory / f"models-{n}", events) for n in range(scale.of(1, 1, 1))]
        log.close()
    found = median(pairs)
    return [
        Figure(
            benchmark="rebuild",
            what=f"all read models from {PER:,} events".replace(",", " "),
            value=found.value,
            unit="s",
            baseline_what="decoding these events, and writing the rows alone",
            baseline=found.baseline,
            load=load(),
        )
    ]


def _rebuild_once(log: EventLog, path: Path, directory: Path, events: int) -> Pair:
    models = ReadModels(directory, MODELS)
    try:
        began = time.monotonic()
        models.rebuild(list(models.models), log, PAGE)
        seconds = time.monotonic() - began
    finally:
        models.close()
    return Pair(seconds * PER / events, _by_hand(path, directory) * PER / events)


def _by_hand(path: Path, directory: Path) -> float:
    """Seconds to read and decode the log, and to write the rows that follow from it into the same tables."""
    with closing(sqlite3.connect(directory / FILE)) as made:
        schema = [row[0] for row in made.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid")]
        names = [row[0] for row in made.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = {name: made.execute(f"SELECT * FROM {name}").fetchall() for name in names}
    with (
        closing(sqlite3.connect(path)) as log,
        closing(sqlite3.connect(directory / "by-hand.db", isolation_level=None)) as target,
    ):
        target.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA cache_size=-65536;")
        began = time.monotonic()
        stored = log.execute("SELECT topic, state FROM stored_events ORDER BY rowid").fetchall()
        _decode(stored)
        target.execute("BEGIN")
        for statement in schema:
            target.execute(statement)
        for name, content in rows.items():
            if content:
                target.executemany(f"INSERT INTO {name} VALUES ({','.join('?' * len(content[0]))})", content)
        target.execute("COMMIT")
        return time.monotonic() - began


@contextmanager
def _directory() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="holdfast-bench-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
