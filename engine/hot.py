"""Hot aggregates: those in use lie in memory, and everybody takes turns with them.

A turn is held from decide to commit, so that what one worker's inbox and settler decide about an aggregate is decided
one after the other. It is no guard against other workers: the store's key of aggregate and version is, and the fence
of the range; what lay in memory is forgotten with the range.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import structlog

from aggregates.base import Event
from aggregates.lifecycled import Lifecycled
from aggregates.snapshots import CLASSES, due
from engine.mapper import UnknownEventError
from engine.partitions import Held, Listener, Ownership, Sole, fences, range_of
from engine.recorders import OwingChange
from engine.store import EventStore

log = structlog.get_logger(__name__)

KEPT = 20_000  # aggregates kept in memory, about 4 KiB each


class Turn:
    """One caller's exclusive use of an aggregate. `aggregate` is None when there is none of this id yet.

    `held` is what this worker owned when the turn began: what is decided in it can be committed under that alone.
    """

    __slots__ = ("aggregate", "aggregate_id", "begun_at", "held")

    def __init__(self, aggregate_id: UUID, aggregate: Any, held: Held) -> None:
        self.aggregate_id = aggregate_id
        self.held = held
        self.aggregate = aggregate
        self.begun_at: int = 0 if aggregate is None else aggregate.version

    def collect(self) -> tuple[Sequence[Event], list[OwingChange]]:
        """The events decided in this turn and what they change in the index of owing aggregates."""
        if self.aggregate is None:
            return (), []
        events = self.aggregate.collect_events()
        if not events or not isinstance(self.aggregate, Lifecycled):
            return events, []
        change = OwingChange(
            aggregate_id=self.aggregate_id,
            partition=self.aggregate.partition,
            owes=self.aggregate.owes_in(self.aggregate.state),
        )
        return events, [change]


class HotAggregates(Listener):
    """Loads, keeps and lends aggregates."""

    def __init__(self, store: EventStore, ownership: Ownership | None = None, *, kept: int = KEPT) -> None:
        self._store = store
        self._ownership = ownership or Sole()
        self._kept = kept
        self._aggregates: OrderedDict[UUID, Any] = OrderedDict()
        self._locks: dict[UUID, asyncio.Lock] = {}
        self._keeping: set[asyncio.Future[None]] = set()
        self._strangers: set[UUID] = set()  # those a newer version has written to, named once
        self._ownership.listen(self)

    def lost(self, ranges: Collection[str]) -> None:
        """Forget: others change them from now on."""
        for aggregate_id, aggregate in list(self._aggregates.items()):
            if range_of(aggregate.partition) in ranges:
                del self._aggregates[aggregate_id]

    @asynccontextmanager
    async def turn(self, aggregate_id: UUID, *, absent: bool = False) -> AsyncIterator[Turn]:
        """Wait for the aggregate and use it alone. Left by an exception, it is forgotten: what was decided on it is
        not in the log. `absent`: the caller knows that the log has none of this id. Raises `UnknownEventError` for
        one that a newer version has written to: it is left to others, and named once.
        """
        lock = self._locks.setdefault(aggregate_id, asyncio.Lock())
        async with lock:
            held = self._ownership.held  # before it is loaded: what is loaded is at least as new
            turn = Turn(aggregate_id, await self._load(aggregate_id, absent=absent), held)
            try:
                yield turn
            except BaseException:
                self._aggregates.pop(aggregate_id, None)
                raise
            else:
                self._keep(turn)
            finally:
                if not lock._waiters:  # noqa: SLF001 - the only way to know that nobody else holds on to it
                    self._locks.pop(aggregate_id, None)

    def __contains__(self, aggregate_id: UUID) -> bool:
        """Whether it lies in memory."""
        return aggregate_id in self._aggregates

    async def _load(self, aggregate_id: UUID, *, absent: bool) -> Any:
        aggregate = self._aggregates.get(aggregate_id)
        if aggregate is not None or absent:
            return aggregate
        try:
            return await self._store.load(aggregate_id)
        except UnknownEventError as unknown:
            if aggregate_id not in self._strangers:
                self._strangers.add(aggregate_id)
                log.warning("left_to_others", aggregate_id=str(aggregate_id), topic=unknown.topic)
            raise

    def _keep(self, turn: Turn) -> None:
        if turn.aggregate is None or not self._still_held(turn):
            return
        self._aggregates[turn.aggregate_id] = turn.aggregate
        self._keep_snapshot(turn)
        self._aggregates.move_to_end(turn.aggregate_id)
        while len(self._aggregates) > self._kept:
            self._aggregates.popitem(last=False)

    def _still_held(self, turn: Turn) -> bool:
        """Whether its range is ours, and was so without a gap since the turn began."""
        name, held = range_of(turn.aggregate.partition), self._ownership.held
        return name in held and name in turn.held and held[name] == turn.held[name]

    def _keep_snapshot(self, turn: Turn) -> None:
        """Beside the turn: nobody waits for it, and without it loading only takes longer."""
        snapshot_class = CLASSES.get(type(turn.aggregate))
        if snapshot_class is None or not due(turn.begun_at, turn.aggregate.version):
            return
        task = asyncio.ensure_future(self._store.keep_snapshot(snapshot_class.take(turn.aggregate)))
        self._keeping.add(task)
        task.add_done_callback(self._keeping.discard)

    async def commit(self, turn: Turn) -> None:
        """Commit what was decided in the turn. Raises `Conflict`: leave the turn with it."""
        events, owing = turn.collect()
        if events:
            await self._store.commit(events, owing=owing, fences=fences(turn.held, [turn.aggregate.partition]))
