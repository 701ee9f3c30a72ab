"""The heartbeat view: the last beat of every instance and its age, by the receiver's clock.

Of the beats between two flushes the last one counts, so any number may come; a crash loses up to a second of them,
and none ever enters the log. A beat of an instance that is unknown or deleted is dropped.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from aggregates.instance_events import InstanceRequested
from engine.clock import Now, monotonic, utc_now
from engine.messages import Heartbeat, heartbeat_subject
from projections.answers import HeartbeatAnswer, ListAnswer
from projections.base import FILE as MODELS_FILE
from projections.base import StoredEvent, as_json, stamp
from projections.listing import Listing, ListRequest, found
from projections.reading import Reader

log = structlog.get_logger(__name__)

FILE = "heartbeats.db"
FLUSH = 1.0  # seconds between two flushes
PENDING = 200_000  # beats waiting to be looked at; beyond it the broker's client drops, and the next beat counts

_SCHEMA = """
    CREATE TABLE IF NOT EXISTS heartbeats (
        instance_id TEXT PRIMARY KEY, project TEXT NOT NULL, received_at TEXT NOT NULL, sent_at TEXT NOT NULL,
        boot TEXT NOT NULL, sequence INTEGER NOT NULL, interval REAL NOT NULL, status TEXT NOT NULL, role TEXT,
        position TEXT, datastore TEXT, datastore_version TEXT, volume TEXT) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS heartbeats_project ON heartbeats (project, instance_id);
    CREATE INDEX IF NOT EXISTS heartbeats_received ON heartbeats (project, received_at, instance_id);
    CREATE INDEX IF NOT EXISTS heartbeats_status ON heartbeats (project, status, instance_id);
"""
_COLUMNS = (
    "instance_id", "project", "received_at", "sent_at", "boot", "sequence", "interval", "status", "role", "position",
    "datastore", "datastore_version", "volume",
)  # fmt: skip
_MARKS = ",".join("?" * len(_COLUMNS))
_UPSERT = f"INSERT OR REPLACE INTO heartbeats ({','.join(_COLUMNS)}) VALUES ({_MARKS})"  # noqa: S608 - constants


LISTING = Listing(
    table="(SELECT *, 0.0 AS age FROM heartbeats)",
    answer=HeartbeatAnswer,
    key="instance_id",
    filters={name: name for name in ("instance_id", "status", "role", "datastore", "boot")},
    sorts={"instance_id": "instance_id", "received_at": "received_at"},
    sort="instance_id",
)


class HeartbeatView:
    """Listens to all agents; `follow` is to be told of every page that the projector commits."""

    def __init__(self, client: Client, directory: Path, now: Now = utc_now) -> None:
        self._client = client
        self._now = now
        self._path = directory / FILE
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="heartbeats")
        self._connection = _open(self._path)
        self._projects = _present(directory / MODELS_FILE)
        self._latest: dict[str, tuple[bytes, float]] = {}
        self._heard: dict[str, float] = {}
        self._gone: set[str] = _rows(self._connection) - self._projects.keys()
        self._decode = msgspec.json.Decoder(Heartbeat).decode
        self._cut = len(heartbeat_subject(""))
        self._subscription: Subscription | None = None
        self._task: asyncio.Task[None] | None = None
        self._reader = Reader(self._path, threads=2)
        self.dropped = 0
        """Beats that were of no known instance, malformed, or spoke for another one."""

    async def start(self) -> None:
        """Begin to listen."""
        self._subscription = await self._client.subscribe(
            heartbeat_subject("*"), cb=self._on_beat, pending_msgs_limit=PENDING, pending_bytes_limit=0
        )
        self._task = asyncio.create_task(self._flush_for_ever(), name="heartbeats")

    async def close(self) -> None:
        """Flush what was heard, and stop."""
        if self._subscription is not None and self._client.is_connected:
            await self._subscription.unsubscribe()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            await self.flush()
        self._thread.shutdown()
        self._reader.close()
        self._connection.close()

    def follow(self, page: Sequence[StoredEvent]) -> None:
        """Learn which instances there are. A deleted one's beat is removed with the next flush."""
        for stored in page:
            event = stored.event
            if isinstance(event, InstanceRequested):
                self._projects[str(stored.aggregate_id)] = event.project
            elif getattr(event, "state", None) == "DELETED":
                instance_id = str(stored.aggregate_id)
                self._projects.pop(instance_id, None)
                self._heard.pop(instance_id, None)
                self._gone.add(instance_id)

    # --- beats ----------------------------------------------------------------------------------------------------

    async def _on_beat(self, message: Msg) -> None:
        self._latest[message.subject[self._cut :]] = (message.data, monotonic())

    async def _flush_for_ever(self) -> None:
        while True:
            await asyncio.sleep(FLUSH)
            try:
                await self.flush()
            except (sqlite3.Error, OSError) as error:
                log.warning("heartbeats_not_flushed", error=str(error), retry_in=FLUSH)

    async def flush(self) -> None:
        """Write the last beat of each instance that was heard, and forget those that are gone."""
        latest, self._latest = self._latest, {}
        gone, self._gone = self._gone, set()
        wall, now = self._now(), monotonic()
        dropped = 0
        rows: list[tuple[Any, ...]] = []
        # In slices, so that many thousand beats do not hold the loop.
        for ordinal, (instance_id, (body, heard)) in enumerate(latest.items()):
            if ordinal % 500 == 499:  # noqa: PLR2004
                await asyncio.sleep(0)
            project = self._projects.get(instance_id)
            beat = self._beat(instance_id, body) if project is not None else None
            if project is None or beat is None:
                dropped += 1
                continue
            self._heard[instance_id] = heard
            rows.append(_row(beat, project, datetime.fromtimestamp(wall.timestamp() - (now - heard), UTC)))
        self.dropped += dropped
        if dropped:
            log.info("heartbeats_dropped", number=dropped, total=self.dropped)
        # Those deleted while the beats above were looked at go with this flush, too.
        gone |= self._gone
        self._gone = set()
        if not rows and not gone:
            return
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._write, rows, gone)
        except BaseException:
            self._gone |= gone
            raise

    def _beat(self, instance_id: str, body: bytes) -> Heartbeat | None:
        try:
            beat = self._decode(body)
        except msgspec.MsgspecError:
            return None
        return beat if str(beat.instance_id) == instance_id else None

    def _write(self, rows: list[tuple[Any, ...]], gone: set[str]) -> None:
        with self._connection as connection:
            connection.executemany(_UPSERT, rows)
            connection.executemany("DELETE FROM heartbeats WHERE instance_id = ?", [(each,) for each in gone])

    # --- queries --------------------------------------------------------------------------------------------------

    async def get(self, project: str, instance_id: str) -> HeartbeatAnswer | None:
        """The last beat flushed of an instance, or None."""
        key = {"project": project, "instance_id": instance_id}
        answer: HeartbeatAnswer | None = await self._reader.read(
            lambda c: found(HeartbeatAnswer, c, LISTING.table, key)
        )
        return None if answer is None else self._aged(answer)

    async def page(self, project: str, request: ListRequest) -> ListAnswer:
        """A page of beats. Raises `QueryError`."""
        page = await self._reader.read(lambda c: LISTING.page(c, project, request))
        return ListAnswer(items=[self._aged(answer) for answer in page.items], next_marker=page.next_marker)

    def _aged(self, answer: HeartbeatAnswer) -> HeartbeatAnswer:
        """With its age now; the wall clock is asked only for beats that an earlier process heard."""
        heard = self._heard.get(str(answer.instance_id))
        age = monotonic() - heard if heard is not None else (self._now() - answer.received_at).total_seconds()
        return msgspec.structs.replace(answer, age=round(max(0.0, age), 3))


def _row(beat: Heartbeat, project: str, received_at: datetime) -> tuple[Any, ...]:
    return (
        str(beat.instance_id),
        project,
        stamp(received_at),
        stamp(beat.sent_at),
        beat.boot,
        beat.sequence,
        beat.interval,
        beat.status,
        beat.role,
        beat.position,
        beat.datastore,
        beat.datastore_version,
        None if beat.volume is None else as_json(beat.volume),
    )


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False, timeout=10)
    connection.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;" + _SCHEMA)
    return connection


def _rows(connection: sqlite3.Connection) -> set[str]:
    return {row[0] for row in connection.execute("SELECT instance_id FROM heartbeats")}


def _present(models: Path) -> dict[str, str]:
    """The project of each instance that the read models know and that is not deleted."""
    with closing(sqlite3.connect(f"{models.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        return dict(connection.execute("SELECT id, project FROM instances WHERE deleted = 0"))
