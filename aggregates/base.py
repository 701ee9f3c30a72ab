"""What decisions and events are made of: contexts, operations, failures, and the events that every lifecycle has.

Replay assigns what an event records and never asks a chart, so that a later change of a chart or a guard cannot
invalidate history. Nothing here does I/O or knows a clock: times are passed in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from datetime import datetime
from typing import Any, ClassVar, get_type_hints
from uuid import UUID

import msgspec
from eventsourcing.domain import Aggregate as LibraryAggregate
from eventsourcing.utils import register_topic

from aggregates.catalogue import Catalogue


class Refusal(Exception):  # noqa: N818 - the field's word for a command that is not accepted
    """A command is not accepted. `code` is stable and documented; the aggregate is unchanged."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class WrongFactsError(ValueError):
    """An effect yielded other facts than its event records: recorded, the log could not be read any more."""


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """What a decision may use besides the aggregate: who asks, when, and what the cloud offers."""

    at: datetime
    command_id: UUID
    actor: str
    project: str
    partition: int
    catalogue: Catalogue
    deadline: datetime | None = None


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """The running operation: its id is the id of the command that began it.

    `plan` lists the owing states to pass if all goes well, in order; `deadline` is when what is still owed forward
    counts as failed.
    """

    id: UUID
    command: str
    actor: str
    deadline: datetime
    plan: tuple[str, ...]


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why an operation left its plan: a stable code, the cause's own words, the state it happened in."""

    code: str
    message: str
    state: str


class Intervention(msgspec.Struct, frozen=True, kw_only=True):
    """A command about the running operation: who sent it, and why."""

    command_id: UUID
    command: str
    actor: str
    reason: str | None


class Parked(msgspec.Struct, frozen=True, kw_only=True):
    """Paying has stopped until an operator retries, skips or abandons."""

    effect: str
    code: str
    message: str


class LastLook(msgspec.Struct, frozen=True, kw_only=True):
    """No try is left; what it failed with counts unless a look finds that it was carried out after all."""

    code: str
    message: str


class Event(LibraryAggregate.Event):
    """Base of all events. The stored topic is `<kind>.<class name>`: the name is part of the wire contract."""

    kind: ClassVar[str] = ""
    TOPIC: ClassVar[str]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.kind:
            cls.TOPIC = f"{cls.kind}.{cls.__name__}"
            register_topic(cls.TOPIC, cls)


class Created(Event, LibraryAggregate.Created):
    """Base of first events: records to whom the aggregate belongs and which partition serves it for life."""

    project: str
    partition: int


class Transitioned(Event):
    """Base of lifecycle events: the state entered, the operation it belongs to.

    Further fields are facts, set on the aggregate by name. `commanded`: a command led to it, maybe while an effect
    was being paid.
    """

    commanded: ClassVar[bool] = False

    state: str
    operation_id: UUID

    def apply(self, aggregate: Any) -> None:
        """Assign; never ask the chart."""
        aggregate.overtaken = self.commanded and aggregate.operation is not None and aggregate.parked is None
        aggregate.state = self.state
        aggregate.entered = self.originator_version
        aggregate.attempts = 0
        aggregate.retry_at = None
        aggregate.last_error = None
        aggregate.parked = None
        aggregate.last_look = None
        for name in facts_of(type(self)):
            setattr(aggregate, name, getattr(self, name))
        if not aggregate.owes_in(self.state):
            aggregate.operation = None


class AttemptFailed(Event):
    """A try to pay failed in a way that may pass; the next is due at `retry_at`."""

    operation_id: UUID
    effect: str
    attempt: int
    code: str
    message: str
    retry_at: datetime

    def apply(self, aggregate: Any) -> None:
        """Count it."""
        aggregate.attempts = self.attempt
        aggregate.retry_at = self.retry_at
        aggregate.last_error = f"{self.code}: {self.message}"


class OperationParked(Event):
    """What is owed cannot be paid and the chart has no way back: paying stops until an operator acts."""

    operation_id: UUID
    effect: str
    code: str
    message: str

    def apply(self, aggregate: Any) -> None:
        """Keep the state."""
        aggregate.parked = Parked(effect=self.effect, code=self.code, message=self.message)


class LateOutcome(Event):
    """What an effect has made became known when its state had ended: it is remembered, so that it can be removed."""

    operation_id: UUID
    effect: str
    facts: dict[str, Any]

    def apply(self, aggregate: Any) -> None:
        """Remember the ids of what was made."""
        for name, value in self.facts.items():
            setattr(aggregate, name, value)


class CallUnanswered(Event):
    """A call of the effect may have gone out and its answer is not known: until then it may still be carried out."""

    operation_id: UUID
    effect: str
    until: datetime

    def apply(self, aggregate: Any) -> None:
        """Remember the latest moment."""
        known = aggregate.unanswered_until
        aggregate.unanswered_until = self.until if known is None else max(known, self.until)


class LastLookDue(Event):
    """What is owed failed, yet a call may have brought it about, or may until `due_at`: then it is looked at once more.

    Only if it has not come about by then does it count as failed, with this code and these words.
    """

    operation_id: UUID
    effect: str
    code: str
    message: str
    due_at: datetime

    def apply(self, aggregate: Any) -> None:
        """Nothing is changed any more, only looked at; looks are counted anew."""
        aggregate.attempts = 0
        aggregate.retry_at = self.due_at
        aggregate.last_error = f"{self.code}: {self.message}"
        aggregate.last_look = LastLook(code=self.code, message=self.message)


class RetryRequested(Event):
    """Somebody has what is owed tried again now; tries are counted anew."""

    operation_id: UUID
    intervention: Intervention

    def apply(self, aggregate: Any) -> None:
        """Begin anew."""
        aggregate.attempts = 0
        aggregate.retry_at = None
        aggregate.parked = None
        aggregate.last_look = None
        aggregate.intervention = self.intervention


class StepSkipped(Event):
    """Somebody declared what was owed to be paid; the transition that follows says what came of it."""

    operation_id: UUID
    effect: str
    intervention: Intervention

    def apply(self, aggregate: Any) -> None:
        """Remember who."""
        aggregate.intervention = self.intervention


# --- facts ------------------------------------------------------------------------------------------------------------

_BASE_FIELDS = {"originator_id", "originator_version", "timestamp", "state", "operation_id"}
_known_facts: dict[type, dict[str, Any]] = {}


def facts_of(event: type[Any]) -> dict[str, Any]:
    """The facts that the event class records, each with its type."""
    known = _known_facts.get(event)
    if known is None:
        hints = get_type_hints(event)
        known = _known_facts[event] = {f.name: hints[f.name] for f in fields(event) if f.name not in _BASE_FIELDS}
    return known


def checked(what: str, facts: dict[str, Any], declared: Mapping[str, Any]) -> dict[str, Any]:
    """The facts, which must be among those declared and of their types: guests and clouds answer what they like."""
    if unknown := sorted(facts.keys() - declared.keys()):
        raise WrongFactsError(f"{what} does not record {', '.join(unknown)}")
    try:
        return {name: msgspec.convert(value, declared[name]) for name, value in facts.items()}
    except msgspec.ValidationError as error:
        raise WrongFactsError(f"{what} records facts of other types than {sorted(facts)} have: {error}") from None
