"""The settler: while the state of an aggregate owes something, pay it, take the transition, append the event.

One task and at most one effect in flight for each aggregate; whatever dies, the next start lists who owes and goes on
under the same idempotency keys. An effect may be paid twice across a crash, never with two results: effects ensure.
A call whose answer nobody knows is recorded, and what would miss its late effect is paid only after that. A failure is
final only when nobody is left in doubt: where a call may have done all the same what is owed, or may yet, and nothing
would undo it, it is looked at once more when no call can act any longer.

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

import msgspec
import structlog

from aggregates.base import Event, Failure, Lifecycled, Obligation, WrongFactsError
from aggregates.effects import Effect
from engine import crash_points
from engine.clock import Now, monotonic, utc_now
from engine.clouds.port import (
    FinalError,
    PayError,
    TooEarlyError,
    UnknownOutcomeError,
    Waiting,
    only_looks,
    others_act_until,
    permit,
    waiting,
)
from engine.hot import HotAggregates, Turn
from engine.mapper import UnknownEventError
from engine.partitions import Listener, Ownership, Sole, range_of, range_of_aggregate
from engine.store import Conflict, EventStore
from engine.tasks import end

log = structlog.get_logger(__name__)

Pay = Callable[[Effect, str], Awaitable[Mapping[str, Any]]]

FIRST_PAUSE = 0.5  # seconds before the second try; doubled with each, up to:
LONGEST_PAUSE = 60.0


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
        self._jitter = jitter
        self._tasks: dict[UUID, asyncio.Task[None]] = {}
        self._changed: dict[UUID, asyncio.Event] = {}
        self._again: set[UUID] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._gained: set[str] = set()
        self._more = asyncio.Event()
        # On our own clock: until when a call that we noted may be carried out, and what failed is not tried again.
        self._unanswered: dict[UUID, float] = {}
        self._retry: dict[UUID, float] = {}
        self._begun: set[UUID] = set()  # here, so that nobody can have paid for it before
        # The same of the state entered at that version: until when a call may be carried out whose outcome is not
        # known, ours or that of whoever paid before; and until when it must not be made again.
        self._in_doubt: dict[UUID, tuple[int, float]] = {}
        self._not_alone: dict[UUID, tuple[int, float]] = {}
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
        self._unanswered.pop(aggregate_id, None)
        self._retry.pop(aggregate_id, None)
        self._in_doubt.pop(aggregate_id, None)
        self._not_alone.pop(aggregate_id, None)
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
                        self._fail_late(turn.aggregate, owed, deadline)
                        await self._hot.commit(turn)
                        continue
                    pause_until = _latest(turn.aggregate.retry_at, owed.not_before)
                    least = self._least_pause(turn.aggregate, owed)
                if await self._pause(aggregate_id, pause_until, deadline, least):
                    await self._step(owed, deadline)
            except UnknownEventError:
                return  # written to by a newer version, which goes on with it
            except Conflict as lost:
                # Somebody else writes as well, and may call the cloud.
                taken_up = False
                log.info("settler_lost_a_version", aggregate_id=str(aggregate_id), error=str(lost))

    async def _take_up(self, turn: Turn) -> None:
        """Reckon with a call of whoever paid before: for an operation that began here, that is nobody.

        But who entered a state by a command in the middle of an operation comes after who paid for the one before.
        """
        owed = _owed(turn)
        begun_here = turn.aggregate_id in self._begun
        self._begun.discard(turn.aggregate_id)
        if owed is not None and not begun_here:
            self._doubt(owed, self._latest_effect.total_seconds(), self._latest_effect.total_seconds())
        if owed is not None and ((owed.effect.makes and not begun_here) or turn.aggregate.overtaken):
            self._note_unanswered(turn.aggregate, owed.effect)
            await self._hot.commit(turn)

    def _doubt(self, owed: Obligation, seconds: float, alone_after: float) -> None:
        """For so long a call of it may be carried out whose outcome is not known, and must not be made again."""
        for known, after in ((self._in_doubt, seconds), (self._not_alone, alone_after)):
            entered, until = known.get(owed.aggregate_id, (owed.entered, 0.0))
            until = until if entered == owed.entered else 0.0
            known[owed.aggregate_id] = (owed.entered, max(until, monotonic() + after))

    def _note_unanswered(self, aggregate: Lifecycled, effect: Effect) -> None:
        if self._latest_effect:
            now = self._now()
            aggregate.note("CallUnanswered", at=now, effect=effect.type_name, until=now + self._latest_effect)
            self._unanswered[aggregate.id] = monotonic() + self._latest_effect.total_seconds()

    def _least_pause(self, aggregate: Lifecycled, owed: Obligation) -> float:
        """Until when on our own clock, if it was we who noted that there is something to wait for."""
        unanswered = self._unanswered.get(aggregate.id, 0.0) if owed.not_before is not None else 0.0
        return max(unanswered, self._retry.get(aggregate.id, 0.0) if aggregate.retry_at is not None else 0.0)

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
            try:
                if outcome is not None:
                    self._record(aggregate, owed, outcome)
                elif mark.known and (aggregate.entered != owed.entered or self._is_over(deadline)):
                    self._note_late(aggregate, owed, mark.known)
            except WrongFactsError as wrong:
                if aggregate.entered == owed.entered:
                    self._record_failure(aggregate, owed, FinalError("wrong_facts", str(wrong)))
                else:
                    log.exception("late_outcome_not_recorded", aggregate_id=str(aggregate.id))
            await self._hot.commit(turn)
        crash_points.reach("after_append", owed.state)

    def _is_over(self, deadline: datetime | None) -> bool:
        return deadline is not None and self._now() >= deadline

    def _note_late(self, aggregate: Lifecycled, owed: Obligation, facts: dict[str, Any]) -> None:
        aggregate.note("LateOutcome", at=self._now(), effect=owed.effect.type_name, facts=facts)

    def _record(self, aggregate: Lifecycled, owed: Obligation, outcome: dict[str, Any] | PayError) -> None:
        if isinstance(outcome, UnknownOutcomeError):
            if owed.effect.makes:
                self._note_unanswered(aggregate, owed.effect)
            self._doubt(owed, self._latest_effect.total_seconds(), outcome.retry_after)
        if aggregate.entered != owed.entered:
            if isinstance(outcome, dict) and outcome:
                self._note_late(aggregate, owed, outcome)
        elif isinstance(outcome, PayError):
            self._record_failure(aggregate, owed, outcome)
        else:
            aggregate.take(owed.then, at=self._now(), **owed.facts, **outcome)

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
        entered, until = self._not_alone.get(owed.aggregate_id, (0, 0.0))
        others_act_until.set(until if entered == owed.entered and owed.last_look is None else 0.0)
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

    # --- failing --------------------------------------------------------------------------------------------------

    def _fail_late(self, aggregate: Lifecycled, owed: Obligation, deadline: datetime) -> None:
        message = f"it was not done by its deadline, {deadline:%Y-%m-%d %H:%M:%S} UTC"
        if aggregate.last_error is not None:
            message += f"; last error: {aggregate.last_error}"
        log.warning("deadline_exceeded", aggregate_id=str(aggregate.id), state=aggregate.state, error=message)
        self._fail(aggregate, owed, Failure(code="deadline_exceeded", message=message, state=owed.state))

    def _record_failure(self, aggregate: Lifecycled, owed: Obligation, error: PayError) -> None:
        attempt = aggregate.attempts + 1
        final = isinstance(error, FinalError)
        operation = aggregate.operation if not aggregate.undoing and owed.last_look is None else None
        late = operation is not None and self._is_over(operation.deadline)
        log.warning(
            "effect_failed",
            aggregate_id=str(aggregate.id),
            effect=owed.effect.type_name,
            state=owed.state,
            attempt=attempt,
            code=error.code,
            error=error.message,
        )
        if isinstance(error, TooEarlyError) or not (final or late or attempt >= owed.attempts):
            self._note_attempt(aggregate, owed, attempt, error)
            return
        code = "deadline_exceeded" if late and not final and aggregate.can("failed") else error.code
        message = error.message
        if owed.last_look is not None:
            code = owed.last_look.code
            message = f"{owed.last_look.message}; looked at again when no call could act any longer: {message}"
        self._fail(aggregate, owed, Failure(code=code, message=message, state=owed.state))

    def _note_attempt(self, aggregate: Lifecycled, owed: Obligation, attempt: int, error: PayError) -> None:
        now = self._now()
        pause = max(_next_pause(attempt, self._jitter()), error.retry_after)
        self._retry[aggregate.id] = monotonic() + pause
        aggregate.note(
            "AttemptFailed",
            at=now,
            effect=owed.effect.type_name,
            attempt=attempt,
            code=error.code,
            message=error.message,
            retry_at=now + timedelta(seconds=pause),
        )

    def _fail(self, aggregate: Lifecycled, owed: Obligation, failure: Failure) -> None:
        """It counts as failed, but for a last look where a call may have done it."""
        about = {"effect": owed.effect.type_name, "code": failure.code, "message": failure.message}
        if owed.last_look is None and self._is_in_doubt(aggregate, owed):
            _, until = self._in_doubt[aggregate.id]
            self._retry[aggregate.id] = until
            now = self._now()
            due_at = now + timedelta(seconds=max(0.0, until - monotonic()))
            aggregate.note("LastLookDue", at=now, due_at=due_at, **about)
        elif aggregate.can("failed"):
            said = msgspec.structs.replace(failure, message=failure.message + aggregate.kept)
            aggregate.take("failed", at=self._now(), failure=said)
        else:
            aggregate.note("OperationParked", at=self._now(), **about)

    def _is_in_doubt(self, aggregate: Lifecycled, owed: Obligation) -> bool:
        """Whether a call of this state's may have been carried out, or may yet, and what it does would stay."""
        entered, _ = self._in_doubt.get(owed.aggregate_id, (0, 0.0))
        stays = owed.effect.lasts or (owed.effect.makes and not aggregate.can("failed"))
        return stays and entered == owed.entered


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


def _next_pause(attempt: int, jitter: float) -> float:
    """Exponential, with jitter (0 to 1) so that what failed together does not come back together."""
    pause = min(FIRST_PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE)
    return float(pause * (0.8 + 0.4 * jitter))
