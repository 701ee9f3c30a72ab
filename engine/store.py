"""The event store: what was decided is in the log once and for ever, before anybody learns of it.

Commits of many callers go to the database in one transaction (group commit) by one writer thread; a caller whose
events lose against another writer gets `Conflict`, the rest is committed. Reading never waits for the writer's
fsync. A database that is away, full or locked is waited for, in reading and in writing, until the store is closed;
nothing is dropped. What is handed to callers as another error is a defect.
"""

from __future__ import annotations

import asyncio
import fcntl
import functools
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from uuid import UUID

import structlog
from eventsourcing.domain import EventSourcingError
from eventsourcing.persistence import IntegrityError, PersistenceError, StoredEvent, Tracking

from aggregates.base import Event
from aggregates.health import Health
from aggregates.record import CommandAccepted, CommandRejected, record_id
from aggregates.snapshots import Snapshot
from engine.clock import monotonic
from engine.databases import (
    StoreUnavailableError,
    forget_connections,
    is_unavailable,
)
from engine.event_log import EventLog, Stored, open_recorder
from engine.mapper import MsgspecMapper
from engine.recorders import (
    EventRecorder,
    Extras,
    Fence,
    FencedError,
    OwingChange,
    RangeRow,
    SQLiteEventRecorder,
)

P = ParamSpec("P")
R = TypeVar("R")

log = structlog.get_logger(__name__)

PAUSE = (0.1, 2.0)  # seconds between two tries of a database that is away: the first, and the longest
CLOSE_WITHIN = 5.0  # seconds for what was handed in, before it is given up: whoever did has ended by then
GROUP = 2048  # events of one transaction at most, so that the first caller does not wait for the last for long


class Conflict(Exception):  # noqa: N818 - the field's word
    """The events lost against another writer: an aggregate's version, a record or a position is taken. Reload."""


class LostOwnership(Conflict):
    """The range of partitions belongs to another worker now: leave its aggregates alone."""


class StoreInUseError(Exception):
    """Another process writes this SQLite store. Code `store_in_use`."""


class _Unit:
    """What one caller wants committed together."""

    __slots__ = ("done", "events", "fences", "owing", "positions", "unanswered")

    def __init__(
        self,
        events: Sequence[Event],
        positions: Sequence[Tracking],
        owing: Sequence[OwingChange],
        fences: Iterable[Fence],
    ) -> None:
        self.events = events
        self.positions = positions
        self.owing = owing
        self.fences = fences
        self.unanswered = False  # it was written, perhaps: the database went away before it said so
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def fail(self, error: Exception) -> None:
        """Tell the caller, if it still waits."""
        if not self.done.done():
            self.done.set_exception(error)


class EventStore:
    """The writing side, on the event loop. Open with `open_store`; `close` waits for what was handed in."""

    def __init__(self, recorder: EventRecorder, lock: int | None = None) -> None:
        self.mapper = MsgspecMapper()
        self.log = EventLog(recorder, self.mapper)
        self._recorder = recorder
        self._lock = lock
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store-writer")
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="store-reader")
        # Of its own, since a takeover may have to wait for a worker that stopped inside its transaction.
        self._taker = ThreadPoolExecutor(1, thread_name_prefix="store-taker")
        self._pending: list[_Unit] = []
        self._wake = asyncio.Event()
        self._closing = False
        self._away_since: float | None = None
        self._task: asyncio.Task[None] | None = None
        self._listeners: list[Callable[[Sequence[Event]], None]] = []

    def start(self) -> None:
        """Begin to commit."""
        self._task = asyncio.create_task(self._commit_groups(), name="store-writer")

    async def close(self) -> None:
        """Commit what was handed in, unless the database stays away, then let go of it."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await asyncio.wait((self._task,), timeout=CLOSE_WITHIN)
        if self._task is not None and not self._task.done():
            log.warning("store_given_up", commits=len(self._pending), next="what was not committed is decided anew")
            self._task.cancel()
            await asyncio.wait((self._task,))
        self.log.give_up()
        for executor in (self._writer, self._readers, self._taker):
            await asyncio.to_thread(executor.shutdown, cancel_futures=True)
        await asyncio.to_thread(self.log.close)
        if self._lock is not None:
            os.close(self._lock)

    def listen(self, listener: Callable[[Sequence[Event]], None]) -> None:
        """Have the listener called on the loop with the events of each commit, after it."""
        self._listeners.append(listener)

    # --- writing --------------------------------------------------------------------------------------------------

    async def commit(
        self,
        events: Sequence[Any],
        *,
        positions: Sequence[Tracking] = (),
        owing: Sequence[OwingChange] = (),
        fences: Iterable[Fence] = (),
    ) -> None:
        """Commit all or nothing; returns when it is durable. Raises `Conflict`, `LostOwnership` for a passed fence."""
        if self._closing:
            raise RuntimeError("the event store is closed")
        unit = _Unit(events, positions, owing, fences)
        self._pending.append(unit)
        self._wake.set()
        await unit.done

    async def _commit_groups(self) -> None:
        group: list[_Unit] = []
        try:
            while not (self._closing and not self._pending):
                await self._wake.wait()
                self._wake.clear()
                while self._pending:
                    group = self._take_group()
                    await self._commit_group(group)
        finally:
            # Whatever ends this, nobody waits for it in vain.
            for unit in (*group, *self._pending):
                unit.fail(StoreUnavailableError("store_unavailable: the event store was closed before the commit"))

    def _take_group(self) -> list[_Unit]:
        size = taken = 0
        for unit in self._pending:
            size += len(unit.events)
            if taken and size > GROUP:
                break
            taken += 1
        group, self._pending = self._pending[:taken], self._pending[taken:]
        return group

    async def _commit_group(self, group: list[_Unit]) -> None:
        try:
            await self._waited_for(self._writer, functools.partial(self._insert, group), group)
        except Exception as error:  # noqa: BLE001 - handed to the caller whose unit it is
            if len(group) > 1:
                for unit in group:
                    await self._commit_group([unit])
                return
            if not await self._is_there(group[0], error):
                group[0].fail(_told(error))
                return
        for unit in group:
            if not unit.done.done():
                unit.done.set_result(None)
        self._tell([event for unit in group for event in unit.events])

    async def _is_there(self, unit: _Unit, error: Exception) -> bool:
        """Whether the unit is refused because it was committed: the answer was lost, and it was tried again."""
        if not isinstance(error, IntegrityError) or not unit.unanswered or not unit.events:
            return False
        wanted = [self.mapper.to_stored_event(event) for event in unit.events]
        found = await self._waited_for(self._writer, functools.partial(self._stored, wanted))
        return found == wanted

    def _stored(self, wanted: Sequence[StoredEvent]) -> list[StoredEvent]:
        """What stands where these should."""
        found: list[StoredEvent] = []
        for each in wanted:
            version = each.originator_version
            found += self._recorder.select_events(each.originator_id, gt=version - 1, lte=version)
        return found

    def _tell(self, committed: Sequence[Event]) -> None:
        for listener in self._listeners:
            try:
                listener(committed)
            except Exception:
                log.exception("listener_broke", listener=repr(listener))

    async def _waited_for(self, executor: ThreadPoolExecutor, call: Callable[[], R], group: Sequence[_Unit] = ()) -> R:
        """Call in a thread, again and again while the database is away; units of the call may be written by then."""
        pause = PAUSE[0]
        while True:
            try:
                answer = await asyncio.get_running_loop().run_in_executor(executor, call)
            except PersistenceError as error:
                if not is_unavailable(error):
                    raise
                for unit in group:
                    unit.unanswered = True
                await self._lost(error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, PAUSE[1])
            else:
                self._found()
                return answer

    async def _lost(self, error: PersistenceError) -> None:
        if self._away_since is None:
            self._away_since = monotonic()
            log.warning("store_unavailable", error=str(error), next="it is waited for; nothing is lost")
            await asyncio.to_thread(forget_connections, self._recorder.datastore)

    def _found(self) -> None:
        if self._away_since is not None:
            log.info("store_available", after=round(monotonic() - self._away_since, 1))
            self._away_since = None

    def _insert(self, group: list[_Unit]) -> None:
        stored = [self.mapper.to_stored_event(event) for unit in group for event in unit.events]
        extras = Extras(
            positions=[position for unit in group for position in unit.positions],
            owing=[change for unit in group for change in unit.owing],
            fences=sorted({fence for unit in group for fence in unit.fences}),
        )
        self._recorder.insert_events(stored, extras=extras)

    # --- ownership ------------------------------------------------------------------------------------------------

    @property
    def shared(self) -> bool:
        """Whether several processes may write it, and so must share out the partitions."""
        return not isinstance(self._recorder, SQLiteEventRecorder)

    @property
    def session(self) -> str:
        """What its connections are known by, where there are others'."""
        return self._recorder.session

    async def cut_off(self, sessions: Collection[str]) -> None:
        """End the connections of processes that no longer act, so that they hold no locks and commit nothing."""
        ended = await asyncio.get_running_loop().run_in_executor(self._taker, self._recorder.cut_off, sessions)
        if ended:
            log.warning("connections_cut_off", sessions=sorted(sessions), connections=ended)

    async def ranges(self) -> dict[str, RangeRow]:
        """Who owns which range of partitions."""
        return await self._reading(self._recorder.select_ranges)

    async def take_ranges(self, owner: str, seen: Mapping[str, int]) -> list[Fence]:
        """Take over those of the ranges whose epoch is still the one seen: earlier fences are no good from then on.

        Returns when all that was written under them can be read.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._taker, self._recorder.take_ranges, owner, seen)

    async def release_ranges(self, owner: str, held: Iterable[Fence]) -> None:
        """Let go of ranges, for others to take at once."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._taker, self._recorder.release_ranges, owner, list(held))

    # --- reading --------------------------------------------------------------------------------------------------

    async def events_of(self, aggregate_id: UUID, after: int = 0) -> list[Any]:
        """The aggregate's events after a version. Raises `UnknownEventError`."""
        return await self._reading(self.log.events_of, aggregate_id, after)

    async def load(self, aggregate_id: UUID) -> Any:
        """The aggregate, or None. Raises `UnknownEventError`."""
        return await self._reading(self.log.load, aggregate_id)

    async def keep_snapshot(self, snapshot: Snapshot) -> None:
        """Keep it; one that is there already, from another worker, is the same."""
        if self._closing:
            return
        await asyncio.get_running_loop().run_in_executor(self._writer, self._insert_snapshot, snapshot)

    def _insert_snapshot(self, snapshot: Snapshot) -> None:
        try:
            self.log.snapshots.insert_events([self.mapper.to_stored_event(snapshot)])
        except EventSourcingError as error:
            log.info("snapshot_not_kept", aggregate_id=str(snapshot.originator_id), error=str(error))

    async def owing(self) -> list[tuple[UUID, int]]:
        """Aggregates that owe something, with their partitions."""
        return await self._reading(self._recorder.select_owing)

    async def existing(self, ids: Iterable[UUID]) -> set[UUID]:
        """Those of the aggregates that exist."""
        return await self._reading(self._recorder.select_existing, list(ids))

    async def position(self, name: str) -> int | None:
        """The position recorded under a name."""
        return await self._reading(self._recorder.max_tracking_id, name)

    async def positions(self, names: Sequence[str]) -> dict[str, int]:
        """The positions recorded under the names."""
        return await self._reading(self._recorder.select_positions, names)

    async def decision(self, project: str, command_id: UUID) -> CommandAccepted | CommandRejected | None:
        """The record of a command, if it was decided."""
        events = await self.events_of(record_id(project, command_id))
        return events[0] if events else None

    async def watched(self) -> list[Health]:
        """The health of every instance whose beats are listened for."""
        return await self._reading(self.log.watched)

    async def with_surplus(self) -> set[UUID]:
        """The instances of which more was found to be surplus than is gone."""
        return await self._reading(self.log.with_surplus)

    async def living(self) -> set[UUID]:
        """The instances that are not deleted."""
        return await self._reading(self.log.living)

    async def read(self, after: int, limit: int) -> list[Stored]:
        """Up to `limit` events of the log after the position; a `Stranger` for one that is not known."""
        return await self._reading(self.log.read_any, after, limit)

    async def project_of(self, aggregate_id: UUID) -> str:
        """The project of an aggregate."""
        return await self._reading(self.log.project_of, aggregate_id)

    async def _reading(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return await self._waited_for(self._readers, functools.partial(function, *args, **kwargs))


def open_store(url: str, *, lock: Path | None = None) -> EventStore:
    """The event store at `sqlite:///<path>` or `postgresql://user:password@host:port/database?schema=<schema>`.

    A SQLite store has one writing process, held by the lock file. Raises `StoreInUseError`.
    """
    held = _acquire(lock) if lock is not None and url.startswith("sqlite:") else None
    return EventStore(open_recorder(url, create=True), held)


def _acquire(path: Path) -> int:
    held = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(held, 64, 0).decode(errors="replace").strip()
        os.close(held)
        raise StoreInUseError(
            f"process {holder or 'unknown'} writes the event store already ({path}): stop it, choose another --state, "
            "or use a PostgreSQL store to run several workers"
        ) from None
    os.ftruncate(held, 0)
    os.pwrite(held, str(os.getpid()).encode(), 0)
    return held


def _told(error: Exception) -> Exception:
    """What a caller is told: that it lost, or what else there is."""
    if isinstance(error, FencedError):
        return LostOwnership(str(error))
    return Conflict(str(error)) if isinstance(error, IntegrityError) else error
