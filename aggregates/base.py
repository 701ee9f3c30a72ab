"""The mechanism of all lifecycles: the chart decides, the event records the state entered, replay assigns.

Guarantees that a lifecycle's state changes only through `Lifecycled.take`, that each transition of a chart has
exactly one event class (checked when the class is made), and that replay never asks the chart, so that a later
change of a chart or a guard cannot invalidate history. It does no I/O and knows no clock: times are passed in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any, ClassVar, Generic, TypeVar, get_type_hints
from uuid import UUID

import msgspec
from eventsourcing.domain import Aggregate as LibraryAggregate
from eventsourcing.utils import register_topic
from statemachine import StateChart

from aggregates.catalogue import Catalogue
from aggregates.decision_table import choose
from aggregates.effects import Effect


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
        for name in _facts(type(self)):
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


_BASE_FIELDS = {"originator_id", "originator_version", "timestamp", "state", "operation_id"}
_facts_of: dict[type, dict[str, Any]] = {}


def _facts(event: type[Any]) -> dict[str, Any]:
    """The facts that the event class records, each with its type."""
    known = _facts_of.get(event)
    if known is None:
        hints = get_type_hints(event)
        known = _facts_of[event] = {f.name: hints[f.name] for f in fields(event) if f.name not in _BASE_FIELDS}
    return known


def _checked(what: str, facts: dict[str, Any], declared: Mapping[str, Any]) -> dict[str, Any]:
    """The facts, which must be among those declared and of their types: guests and clouds answer what they like."""
    if unknown := sorted(facts.keys() - declared.keys()):
        raise WrongFactsError(f"{what} does not record {', '.join(unknown)}")
    try:
        return {name: msgspec.convert(value, declared[name]) for name, value in facts.items()}
    except msgspec.ValidationError as error:
        raise WrongFactsError(f"{what} records facts of other types than {sorted(facts)} have: {error}") from None


A = TypeVar("A", bound="Lifecycled")


@dataclass(frozen=True)
class Owed(Generic[A]):
    """What one state owes: how the effect follows from the aggregate, and the transition taken once it is paid.

    `facts` are what the transition's event records besides what the effect yields; `attempts` bounds the tries of
    one effect before its failure counts as final. `absence`: that something is not there is owed, so whoever skips
    it leaves something behind, and lacks nothing.
    """

    then: str
    effect: Callable[[A], Effect]
    facts: Callable[[A], dict[str, Any]] = lambda _: {}
    attempts: int = 8
    absence: bool = False


class Obligation(msgspec.Struct, frozen=True, kw_only=True):
    """An effect owed now, under its idempotency key: the same over all attempts and restarts.

    `not_before`: what clears away what calls have left is paid only when no unanswered one can be carried out later.
    `last_look`: it may only be looked whether it is paid; why, if it is not.
    """

    aggregate_id: UUID
    entered: int
    state: str
    effect: Effect
    then: str
    facts: dict[str, Any]
    attempts: int
    not_before: datetime | None = None
    last_look: LastLook | None = None

    @property
    def key(self) -> str:
        """Aggregate, version at which the owing state was entered, effect."""
        return f"{self.aggregate_id}:{self.entered}:{self.effect.type_name}"


class Parked(msgspec.Struct, frozen=True, kw_only=True):
    """Paying has stopped until an operator retries, skips or abandons."""

    effect: str
    code: str
    message: str


class LastLook(msgspec.Struct, frozen=True, kw_only=True):
    """No try is left; what it failed with counts unless a look finds that it was carried out after all."""

    code: str
    message: str


class Lifecycled(LibraryAggregate):
    """An aggregate whose state is a leaf of its chart, and whose owing states each owe one effect."""

    kind: ClassVar[str]
    chart: ClassVar[type[StateChart[Any]]]
    owing: ClassVar[Mapping[str, Owed[Any]]]
    events: ClassVar[Mapping[str, type[Transitioned]]]
    notes: ClassVar[Mapping[str, type[Event]]]

    def __init__(self, project: str, partition: int) -> None:
        self.project = project
        self.partition = partition
        self.state = ""
        self.entered = self.version
        self.operation: Operation | None = None
        self.attempts = 0
        self.retry_at: datetime | None = None
        self.parked: Parked | None = None
        self.last_look: LastLook | None = None
        self.last_error: str | None = None
        self.intervention: Intervention | None = None
        self.unanswered_until: datetime | None = None
        # The state was entered by a command while what the one before owed was maybe being paid.
        self.overtaken = False

    @classmethod
    def owes_in(cls, state: str) -> bool:
        """Whether the state owes something: an aggregate in it is in an operation."""
        return state in cls.owing

    @property
    def kept(self) -> str:
        """What whoever reads why its operation failed should know that is kept for them; begins with `; `, or empty."""
        return ""

    @property
    def status(self) -> str:
        """The top state, the word that users see."""
        return configuration(self.chart, self.state)[0]

    def owes(self) -> Obligation | None:
        """What must be paid next, or None in a settled state. Pure."""
        owed = self.owing.get(self.state)
        if owed is None:
            return None
        effect = owed.effect(self)
        return Obligation(
            aggregate_id=self.id,
            entered=self.entered,
            state=self.state,
            effect=effect,
            then=owed.then,
            facts=owed.facts(self),
            attempts=owed.attempts,
            not_before=self.unanswered_until if effect.clears else None,
            last_look=self.last_look,
        )

    def take(self, transition: str, *, at: datetime, **facts: Any) -> None:
        """Take a transition: the chart decides, the event records. The only way the state changes.

        Raises `Refusal` when the chart has no such transition from this state, `WrongFactsError` when the facts are
        not those that its event records.
        """
        event = self.events[transition]
        declared = _facts(event)
        if missing := sorted(declared.keys() - facts.keys()):
            raise WrongFactsError(f"{event.__name__} records {', '.join(missing)} as well")
        facts = _checked(event.__name__, facts, declared)
        state = decide(self.chart, self.state, transition, subject=self._knowing(facts), **facts)
        operation: Operation | None = facts.get("operation", self.operation)
        if operation is None:
            raise Refusal("forbidden_state", f"{transition} belongs to no operation")
        self.trigger_event(event, timestamp=at, state=state, operation_id=operation.id, **facts)

    def _knowing(self: A, facts: Mapping[str, Any]) -> A:
        """The aggregate as it is once it knows these facts, for the guards; only to be looked at."""
        known = copy(self)
        vars(known).update(facts)
        return known

    def can(self, transition: str) -> bool:
        """Whether the chart declares the transition from this state."""
        return self.can_from(self.state, transition)

    @classmethod
    def can_from(cls, state: str, transition: str) -> bool:
        """Whether the chart declares the transition from the state."""
        sources = transitions(cls.chart).get(transition, {})
        return any(each in sources for each in configuration(cls.chart, state))

    @property
    def undoing(self) -> bool:
        """Whether the state is one of those that undo an operation."""
        return self.state.startswith("undo_")

    def left(self) -> tuple[str, ...]:
        """What would be left if nothing more was done, in words."""
        return ()

    def note(self, event: str, *, at: datetime, **facts: Any) -> None:
        """Record a fact that leaves the state as it is: one of `notes`, of the running operation.

        Raises `WrongFactsError` for a late outcome that no paid effect yields.
        """
        operation = self.operation
        if operation is not None:
            if "facts" in facts:
                facts["facts"] = _checked(event, facts["facts"], self._yielded())
            self.trigger_event(self.notes[event], timestamp=at, operation_id=operation.id, **facts)

    def to_yield(self) -> dict[str, Any]:
        """The facts that what is owed would yield, each with its type."""
        owed = self.owing[self.state]
        declared = _facts(self.events[owed.then])
        return {name: kind for name, kind in declared.items() if name not in owed.facts(self)}

    @classmethod
    def _yielded(cls) -> dict[str, Any]:
        """The facts that paid effects yield, each with its type."""
        paid = (cls.events[owed.then] for owed in cls.owing.values())
        return {name: kind for event in paid for name, kind in _facts(event).items()}

    def begin(self, transition: str, command: str, context: Context, limit: timedelta, **facts: Any) -> None:
        """Take the transition that begins an operation; refuse it as a conflict while another one runs."""
        if not self.can(transition):
            raise self.refusal(command, transition)
        known = self._knowing(facts)
        plan = path(type(self), decide(self.chart, self.state, transition, subject=known, **facts), known)
        operation = Operation(
            id=context.command_id,
            command=command,
            actor=context.actor,
            deadline=context.deadline or context.at + limit,
            plan=plan,
        )
        self.take(transition, at=context.at, operation=operation, failure=None, **facts)

    def refusal(self, command: str, transition: str) -> Refusal:
        """The refusal of a command whose transition this state does not have."""
        if self.operation is not None:
            return Refusal(
                "conflict",
                f"{command} is refused: operation {self.operation.id} ({self.operation.command}) is running, now in "
                f"{self.state}; wait until it has ended",
            )
        allowed = ", ".join(sorted(transitions(self.chart)[transition]))
        return Refusal("forbidden_state", f"{command} is not allowed in state {self.status}; it is in: {allowed}")


def declare(aggregate: type[A], events: tuple[type[Transitioned], ...]) -> dict[str, type[Transitioned]]:
    """The event class of each transition, by name: `PortCreated` records `port_created`.

    Raises `TypeError` when two states bear one name, when transitions and event classes do not match one to one, or
    when the owing states are not the inner states, each leading on by a transition that it has.
    """
    name, chart = aggregate.__name__, aggregate.chart
    known, declared = _configured(chart), transitions(chart)
    by_transition: dict[str, type[Transitioned]] = {}
    for event in events:
        transition = re.sub(r"(?<!^)(?=[A-Z])", "_", event.__name__).lower()
        if transition in by_transition:
            raise TypeError(f"{name}: two event classes record {transition}")
        by_transition[transition] = event
    if by_transition.keys() != declared.keys():
        differing = sorted(by_transition.keys() ^ declared.keys())
        raise TypeError(f"{name}: transitions and event classes differ: {differing}")
    inner = [state.id for parents, state in _walk(chart.states) if parents and not state.states]
    for state, owed in aggregate.owing.items():
        if state not in inner:
            raise TypeError(f"{name}: {state} owes, but is no inner state of {chart.__name__}")
        if not any(s in declared.get(owed.then, {}) for s in known[state]):
            raise TypeError(f"{name}: {state} owes, but has no transition {owed.then}")
    for state in inner:
        if state not in aggregate.owing:
            raise TypeError(f"{name}: {state} is an inner state and owes nothing")
    return by_transition


# --- the chart as a decider ---------------------------------------------------------------------------------------


_configurations: dict[type[StateChart[Any]], dict[str, tuple[str, ...]]] = {}
_transitions: dict[type[StateChart[Any]], dict[str, dict[str, tuple[str, ...]]]] = {}


def decide(chart: type[StateChart[Any]], state: str, transition: str, *, subject: Any, **facts: Any) -> str:
    """The leaf state that the transition leads to, or `Refusal`. Guards see `subject`, which knows the facts."""
    facts["subject"] = subject
    entered = choose(chart, state, transition, facts)
    if entered is None:
        raise Refusal("forbidden_state", f"no transition {transition} from state {state}")
    return entered


def configuration(chart: type[StateChart[Any]], state: str) -> tuple[str, ...]:
    """The states that are active together when the leaf is: from the top state to the leaf."""
    return _configured(chart)[state]


def _configured(chart: type[StateChart[Any]]) -> dict[str, tuple[str, ...]]:
    """The configuration of each state. `TypeError` for two of one name: the library finds out only at run time."""
    known = _configurations.get(chart)
    if known is None:
        known = {}
        for parents, each in _walk(chart.states):
            if each.id in known:
                raise TypeError(f"{chart.__name__}: two states are named {each.id}")
            known[each.id] = (*parents, each.id)
        _configurations[chart] = known
    return known


def transitions(chart: type[StateChart[Any]]) -> dict[str, dict[str, tuple[str, ...]]]:
    """The declared graph: transition name -> source state -> target states."""
    known = _transitions.get(chart)
    if known is None:
        known = {}
        for _, state in _walk(chart.states):
            for transition in state.transitions:
                for event in transition.events:
                    targets = known.setdefault(str(event), {})
                    targets[state.id] = (*targets.get(state.id, ()), transition.target.id)
        _transitions[chart] = known
    return known


def _walk(states: Any, parents: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for state in states:
        yield parents, state
        yield from _walk(state.states, (*parents, state.id))


def path(aggregate: type[Lifecycled], state: str, subject: Lifecycled | None) -> tuple[str, ...]:
    """The plan: the owing states from this one on, in order, if every effect succeeds."""
    passed: list[str] = []
    while (owed := aggregate.owing.get(state)) is not None:
        passed.append(state)
        state = decide(aggregate.chart, state, owed.then, subject=subject)
    return tuple(passed)
