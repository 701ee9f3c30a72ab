"""What comes of paying, as events of the aggregate: the transition, the next try, a last look, a failure, or parking.

A failure is final only when no doubt is left: where a call may have done all the same what is owed, or may yet, and
nothing would undo it, it is looked at once more when no call can act any longer. What this process knows of such
calls it keeps by its own clock, which nobody sets; a process that takes up a state doubts what the one before did.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog

from aggregates.base import Failure, WrongFactsError
from aggregates.effects import Effect
from aggregates.lifecycled import Lifecycled, Obligation
from engine.clock import Now, monotonic
from engine.clouds.port import FinalError, PayError, TooEarlyError, UnknownOutcomeError

log = structlog.get_logger(__name__)

FIRST_PAUSE = 0.5  # seconds before the second try; doubled with each, up to:
LONGEST_PAUSE = 60.0


class Outcomes:
    """Of all aggregates of one settler. `latest_effect` is the cloud's; `jitter` gives numbers from 0 to 1.

    It changes aggregates and commits nothing.
    """

    def __init__(self, latest_effect: timedelta, now: Now, jitter: Callable[[], float]) -> None:
        self._latest_effect = latest_effect
        self._now = now
        self._jitter = jitter
        # On our own clock: until when a call that we noted may be carried out, and what failed is not tried again.
        self._unanswered: dict[UUID, float] = {}
        self._retry: dict[UUID, float] = {}
        # The same of the state entered at that version: until when a call may be carried out whose outcome is not
        # known, ours or that of whoever paid before; and until when it must not be made again.
        self._in_doubt: dict[UUID, tuple[int, float]] = {}
        self._not_alone: dict[UUID, tuple[int, float]] = {}

    def forget(self, aggregate_id: UUID) -> None:
        """Know nothing of the aggregate any more."""
        for known in (self._unanswered, self._retry, self._in_doubt, self._not_alone):
            known.pop(aggregate_id, None)

    # --- before paying --------------------------------------------------------------------------------------------

    def doubt_others(self, owed: Obligation) -> None:
        """Somebody else may have paid the same, and a call of his be under way."""
        self._doubt(owed, alone_after=self._latest_effect.total_seconds())

    def note_unanswered(self, aggregate: Lifecycled, effect: Effect) -> None:
        """Record that a call of the effect may still make something."""
        if self._latest_effect:
            now = self._now()
            aggregate.note("CallUnanswered", at=now, effect=effect.type_name, until=now + self._latest_effect)
            self._unanswered[aggregate.id] = monotonic() + self._latest_effect.total_seconds()

    def least_pause(self, aggregate: Lifecycled, owed: Obligation) -> float:
        """Until when on our own clock, if it was we who noted that there is something to wait for."""
        unanswered = self._unanswered.get(aggregate.id, 0.0) if owed.not_before is not None else 0.0
        return max(unanswered, self._retry.get(aggregate.id, 0.0) if aggregate.retry_at is not None else 0.0)

    def others_act_until(self, owed: Obligation) -> float:
        """Until when a call made before for the same forbids another one. A look is none."""
        entered, until = self._not_alone.get(owed.aggregate_id, (0, 0.0))
        return until if entered == owed.entered and owed.last_look is None else 0.0

    # --- after it -------------------------------------------------------------------------------------------------

    def record(self, aggregate: Lifecycled, owed: Obligation, outcome: dict[str, Any] | PayError) -> None:
        """What paying yielded, or the error that it ended with; the aggregate may be in another state by now."""
        if isinstance(outcome, UnknownOutcomeError):
            if owed.effect.makes:
                self.note_unanswered(aggregate, owed.effect)
            self._doubt(owed, alone_after=outcome.retry_after)
        if aggregate.entered != owed.entered:
            if isinstance(outcome, dict) and outcome:
                self.record_given_up(aggregate, owed, outcome)
        elif isinstance(outcome, PayError):
            self._record_failure(aggregate, owed, outcome)
        else:
            self._record_paid(aggregate, owed, outcome)

    def _record_paid(self, aggregate: Lifecycled, owed: Obligation, facts: dict[str, Any]) -> None:
        try:
            aggregate.take(owed.then, at=self._now(), **owed.facts, **facts)
        except WrongFactsError as wrong:
            self._record_failure(aggregate, owed, FinalError("wrong_facts", str(wrong)))

    def record_given_up(self, aggregate: Lifecycled, owed: Obligation, facts: dict[str, Any]) -> None:
        """What a payment has made that the state does not wait for any more."""
        try:
            aggregate.note("LateOutcome", at=self._now(), effect=owed.effect.type_name, facts=facts)
        except WrongFactsError as wrong:
            if aggregate.entered == owed.entered:
                self._record_failure(aggregate, owed, FinalError("wrong_facts", str(wrong)))
            else:
                log.exception("late_outcome_not_recorded", aggregate_id=str(aggregate.id))

    def fail_late(self, aggregate: Lifecycled, owed: Obligation, deadline: datetime) -> None:
        """Its deadline has come while nothing was under way."""
        message = f"it was not done by its deadline, {deadline:%Y-%m-%d %H:%M:%S} UTC"
        if aggregate.last_error is not None:
            message += f"; last error: {aggregate.last_error}"
        log.warning("deadline_exceeded", aggregate_id=str(aggregate.id), state=aggregate.state, error=message)
        self._fail(aggregate, owed, Failure(code="deadline_exceeded", message=message, state=owed.state))

    def _record_failure(self, aggregate: Lifecycled, owed: Obligation, error: PayError) -> None:
        attempt = aggregate.attempts + 1
        final = isinstance(error, FinalError)
        operation = aggregate.operation if not aggregate.undoing and owed.last_look is None else None
        late = operation is not None and self._now() >= operation.deadline
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
        if owed.last_look is None and self._is_in_doubt(owed):
            _, until = self._in_doubt[aggregate.id]
            self._retry[aggregate.id] = until
            now = self._now()
            due_at = now + timedelta(seconds=max(0.0, until - monotonic()))
            aggregate.note("LastLookDue", at=now, due_at=due_at, **about)
        elif aggregate.can("failed"):
            aggregate.take("failed", at=self._now(), failure=failure)
        else:
            aggregate.note("OperationParked", at=self._now(), **about)

    def _is_in_doubt(self, owed: Obligation) -> bool:
        """Whether a call of this state's may have been carried out, or may yet, and what it does would stay."""
        entered, _ = self._in_doubt.get(owed.aggregate_id, (0, 0.0))
        return owed.effect.lasts and entered == owed.entered

    def _doubt(self, owed: Obligation, *, alone_after: float) -> None:
        """A call may be carried out whose outcome is not known; none may be made again for so many seconds."""
        for known, after in ((self._in_doubt, self._latest_effect.total_seconds()), (self._not_alone, alone_after)):
            entered, until = known.get(owed.aggregate_id, (owed.entered, 0.0))
            until = until if entered == owed.entered else 0.0
            known[owed.aggregate_id] = (owed.entered, max(until, monotonic() + after))


def _next_pause(attempt: int, jitter: float) -> float:
    """Exponential, with jitter (0 to 1) so that what failed together does not come back together."""
    pause = min(FIRST_PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE)
    return float(pause * (0.8 + 0.4 * jitter))
