"""The settler: while the state of an aggregate owes something, pay it, take the transition, append the event.

One task and at most one effect in flight for each aggregate; whatever dies, the next start lists who owes and goes on
under the same idempotency keys. An effect may be paid twice across a crash, never with two results: effects ensure.
A call whose answer nobody knows is recorded, and what would miss its late effect is paid only after that. What came of
a payment is recorded in `outcomes.py`.

At its operation's deadline a state that can fail does, at once if it only waits; a call that runs is answered first,
and what it did counts. Where there is no way back a passed deadline parks at the next failure; what undoes is bounded
by the number of its tries.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog

from aggregates.base import Event
from aggregates.effects import Effect
from aggregates.lifecycled import Lifecycled, Obligation
from engine import crash_points
from engine.clock import Now, monotonic, utc_now
from engine.clouds.port import (
    PayError,
    UnknownOutcomeError,
    Waiting,
    only_looks,
    others_act_until,
    permit,
    waiting,
)
from engine.hot import HotAggregates, Turn
from engine.mapper import UnknownEventError
from engine.outcomes import LONGEST_PAUSE, Outcomes
from engine.partitions import Listener, Ownership, Sole, range_of, range_of_aggregate
from engine.store import Conflict, EventStore
from engine.tasks import end

log = structlog.get_logger(__name__)

Pay = Callable[[Effect, str], Awaitable[Mapping[str, Any]]]


class Settler(Listener):
    """Pays for every aggregate of this worker's that owes.

    `pay` is given the effect and its key, and bounds its own calls. `latest_effect`: the cloud's; nothing where no call
    outlives the process that made it.
    """

    def __init__(
        self,
        store: EventStore,
        hot: HotAggregates,
        pay: Pay,
        *,
        ownership: Ownership | None = None,
        latest_effect: timedelta = timedelta(0),
        now: Now = utc_now,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._hot = hot
        self._pay = pay
        self._ownership = ownership or Sole()
        self._latest_effect = latest_effect
        self._now = now
        self._tasks: dict[UUID, asyncio.Task[None]] = {}
        self._changed: dict[UUID, asyncio.Event] = {}
        self._again: set[UUID] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._gained: set[str] = set()
        self._more = asyncio.Event()
        self._begun: set[UUID] = set()  # here, so that nobody can have paid for it before
        self._outcomes = Outcomes(latest_effect, now, jitter)
        store.listen(self._on_commit)

    @property
    def running(self) -> int:
        """How many aggregates it works on."""
        return len(self._tasks)

    async def run(self) -> None:
        """Take up everything that is owed, then serve until cancelled; effects that only wait are given up then."""
        self._ownership.listen(self)
        try:
            while True:
                await self._more.wait()
                self._more.clear()
                gained, self._gained = self._gained, set()
                for aggregate_id, partition in await self._store.owing():
                    if range_of(partition) in gained:
                        self.wake(aggregate_id)
        finally:
            await end(*self._tasks.values(), *self._ending)

    def gained(self, ranges: Collection[str]) -> None:
        """Take up what is owed there."""
        self._gained.update(ranges)
        self._more.set()

    async def leave(self, ranges: Collection[str]) -> None:
        """Give up what only waits there, see to its end what does not, and begin nothing."""
        tasks = [task for aggregate_id, task in self._tasks.items() if range_of_aggregate(aggregate_id) in ranges]
        for aggregate_id in self._tasks:
            if range_of_aggregate(aggregate_id) in ranges:
                self._changed[aggregate_id].set()
        if tasks:
            await asyncio.wait(tasks)

    def lost(self, ranges: Collection[str]) -> None:
        """Stop at once there; nobody waits for a call under way, whose answer is no longer ours to record."""
        self._gained.difference_update(ranges)
        # Others may pay for them meanwhile.
        self._begun = {begun for begun in self._begun if range_of_aggregate(begun) not in ranges}
        for aggregate_id, task in list(self._tasks.items()):
            if range_of_aggregate(aggregate_id) in ranges:
                self._again.discard(aggregate_id)
                self._forget(aggregate_id)
                self._ending.add(task)
                task.cancel()

    def wake(self, aggregate_id: UUID) -> None:
        """Look at what the aggregate owes, now or as soon as its running look has ended."""
        if not self._ownership.serves(range_of_aggregate(aggregate_id)):
            return
        changed = self._changed.get(aggregate_id)
        if changed is not None:
            changed.set()
            self._again.add(aggregate_id)
            return
        self._changed[aggregate_id] = asyncio.Event()
        task = asyncio.create_task(self._settle(aggregate_id), name=f"settle-{aggregate_id}")
        self._tasks[aggregate_id] = task
        task.add_done_callback(lambda done: self._ended(aggregate_id, done))

    def _ended(self, aggregate_id: UUID, task: asyncio.Task[None]) -> None:
        if self._tasks.get(aggregate_id) is not task:
            self._ending.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                log.warning("settle_broke_after_the_range_was_lost", aggregate_id=str(aggregate_id), exc_info=error)
            return
        self._forget(aggregate_id)
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            log.error("settle_broke", aggregate_id=str(aggregate_id), exc_info=error)
            asyncio.get_running_loop().call_later(LONGEST_PAUSE, self.wake, aggregate_id)
        elif aggregate_id in self._again:
            self._again.discard(aggregate_id)
            self.wake(aggregate_id)

    def _forget(self, aggregate_id: UUID) -> None:
        del self._tasks[aggregate_id], self._changed[aggregate_id]
        self._outcomes.forget(aggregate_id)
        if aggregate_id not in self._again:
            self._begun.discard(aggregate_id)

    def _on_commit(self, events: Sequence[Event]) -> None:
        for event in events:
            # It began an operation, or somebody intervened in one; all others are the settler's own.
            if hasattr(event, "operation") or hasattr(event, "intervention"):
                if hasattr(event, "operation"):
                    self._begun.add(event.originator_id)
                self.wake(event.originator_id)

    # --- one aggregate --------------------------------------------------------------------------------------------

    async def _settle(self, aggregate_id: UUID) -> None:
        taken_up = False
        ours = range_of_aggregate(aggregate_id)
        permit.set(self._ownership.permit(ours))
        while self._ownership.serves(ours):
            self._again.discard(aggregate_id)
            self._changed[aggregate_id].clear()
            try:
                async with self._hot.turn(aggregate_id) as turn:
                    if not taken_up:
                        await self._take_up(turn)
                    taken_up = True
                    owed = _owed(turn)
                    if owed is None:
                        return
                    deadline = _deadline(turn.aggregate)
                    if deadline is not None and self._is_over(deadline):
                        self._outcomes.fail_late(turn.aggregate, owed, deadline)
                        await self._hot.commit(turn)
                        continue
                    pause_until = _latest(turn.aggregate.retry_at, owed.not_before)
                    least = self._outcomes.least_pause(turn.aggregate, owed)
                if await self._pause(aggregate_id, pause_until, deadline, least):
                    await self._step(owed, deadline)
            except UnknownEventError:
                return  # written to by a newer version, which goes on with it
            except Conflict as lost:
                # Somebody else writes as well, and may call the cloud.
                taken_up = False
                log.info("settler_lost_a_version", aggregate_id=str(aggregate_id), error=str(lost))

    async def _take_up(self, turn: Turn) -> None:
        """Reckon with a call of whoever paid before: an operation that began here had no such state first.

        No state that begins an operation makes anything, so one that does was entered by an earlier task; so was the
        one before a state that was entered by a command in the middle of an operation.
        """
        owed = _owed(turn)
        begun_here = turn.aggregate_id in self._begun
        self._begun.discard(turn.aggregate_id)
        if owed is not None and not begun_here:
            self._outcomes.doubt_others(owed)
        if owed is not None and (owed.effect.makes or turn.aggregate.overtaken):
            self._outcomes.note_unanswered(turn.aggregate, owed.effect)
            await self._hot.commit(turn)

    async def _pause(self, aggregate_id: UUID, until: datetime | None, deadline: datetime | None, least: float) -> bool:
        """Sleep; False when the aggregate changed meanwhile, or its deadline came first.

        Wall time may be set anew meanwhile, or was since the moment was recorded: nothing that we noted ourselves is
        cut short by that, and nothing takes longer than the longest pause that is ever recorded.
        """
        if until is None:
            return True
        changed = self._changed[aggregate_id]
        most = monotonic() + max(LONGEST_PAUSE * 1.2, self._latest_effect.total_seconds())
        while True:
            pause = max(min(self._seconds_to(until), most - monotonic()), least - monotonic())
            if deadline is not None:
                pause = min(pause, self._seconds_to(deadline))
            if pause <= 0:
                break
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(pause, LONGEST_PAUSE)):
                    await changed.wait()
                    return False
        return deadline is None or until <= deadline

    def _seconds_to(self, moment: datetime) -> float:
        return (moment - self._now()).total_seconds()

    async def _step(self, owed: Obligation, deadline: datetime | None) -> None:
        crash_points.reach("before_effect", owed.state)
        if not self._ownership.serves(range_of_aggregate(owed.aggregate_id)):
            return
        if self._changed[owed.aggregate_id].is_set():
            return  # since it was looked at
        mark = Waiting()
        outcome = await self._paid(owed, deadline, mark)
        crash_points.reach("after_effect", owed.state)
        async with self._hot.turn(owed.aggregate_id) as turn:
            aggregate = turn.aggregate
            if outcome is not None:
                self._outcomes.record(aggregate, owed, outcome)
            elif mark.known and (aggregate.entered != owed.entered or self._is_over(deadline)):
                self._outcomes.record_given_up(aggregate, owed, mark.known)
            await self._hot.commit(turn)
        crash_points.reach("after_append", owed.state)

    def _is_over(self, deadline: datetime | None) -> bool:
        return deadline is not None and self._now() >= deadline

    async def _paid(
        self, owed: Obligation, deadline: datetime | None, mark: Waiting
    ) -> dict[str, Any] | PayError | None:
        """The facts, or the error; None when the aggregate changed, or its deadline came, while it only waited."""
        changed = self._changed[owed.aggregate_id]
        paying = asyncio.create_task(self._paying(owed, mark))
        changing = asyncio.create_task(changed.wait())
        try:
            # What a call has changed for good must be known, so the deadline lets it be answered.
            ends = deadline is not None and (owed.effect.waits or owed.effect.makes)
            within = max(0.0, self._seconds_to(deadline)) if deadline is not None and ends else None
            await asyncio.wait((paying, changing), timeout=within, return_when=asyncio.FIRST_COMPLETED)
            if await self._gave_up(owed, paying, mark):
                return None
            return dict(await paying)
        except PayError as error:
            return error
        except asyncio.CancelledError:
            paying.cancel()
            raise
        except Conflict:
            raise  # the range is not ours any more: nothing is recorded
        except Exception as error:
            # A defect of ours must not stop the operation without a word: it is retried, then fails visibly. Nobody
            # knows how far it came.
            log.exception("effect_broke", effect=owed.effect.type_name, aggregate_id=str(owed.aggregate_id))
            return UnknownOutcomeError("internal_error", f"{type(error).__name__}: {error}")
        finally:
            changing.cancel()

    async def _paying(self, owed: Obligation, mark: Waiting) -> Mapping[str, Any]:
        waiting.set(mark)
        others_act_until.set(self._outcomes.others_act_until(owed))
        only_looks.set(owed.last_look is not None)
        return await self._pay(owed.effect, owed.key)

    async def _gave_up(self, owed: Obligation, paying: asyncio.Task[Mapping[str, Any]], mark: Waiting) -> bool:
        """End it as soon as it only waits; False when it ended by itself before."""
        while not paying.done() and not (owed.effect.waits or mark.now):
            begun = asyncio.create_task(mark.begun())
            try:
                await asyncio.wait((paying, begun), return_when=asyncio.FIRST_COMPLETED)
            finally:
                begun.cancel()
        if not paying.done():
            await end(paying)
            return paying.cancelled()
        return False


def _owed(turn: Turn) -> Obligation | None:
    aggregate = turn.aggregate
    if not isinstance(aggregate, Lifecycled) or aggregate.parked is not None:
        return None
    return aggregate.owes()


def _deadline(aggregate: Lifecycled) -> datetime | None:
    """When what is owed counts as failed; None where nothing leads back, and once there is only a last look to take."""
    if aggregate.operation is None or aggregate.last_look is not None or not aggregate.can("failed"):
        return None
    return aggregate.operation.deadline


def _latest(*moments: datetime | None) -> datetime | None:
    return max((moment for moment in moments if moment is not None), default=None)
