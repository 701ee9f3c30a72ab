"""The mechanism of all lifecycles: the chart decides, the event records the state entered, replay assigns.

Guarantees that a lifecycle's state changes only through `Lifecycled.take`, and that each transition of a chart has
exactly one event class (checked when the class is made). It does no I/O and knows no clock: times are passed in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar, Generic, TypeVar
from uuid import UUID

import msgspec
from eventsourcing.domain import Aggregate as LibraryAggregate
from statemachine import StateChart

from aggregates.base import (
    Context,
    Event,
    Intervention,
    LastLook,
    Operation,
    Parked,
    Refusal,
    Transitioned,
    WrongFactsError,
    checked,
    facts_of,
)
from aggregates.charts import configuration, configured, decide, transitions, walk
from aggregates.effects import Effect

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
        declared = facts_of(event)
        if missing := sorted(declared.keys() - facts.keys()):
            raise WrongFactsError(f"{event.__name__} records {', '.join(missing)} as well")
        facts = checked(event.__name__, facts, declared)
        state = decide(self.chart, self.state, transition, subject=self, **facts)
        operation: Operation | None = facts.get("operation", self.operation)
        if operation is None:
            raise Refusal("forbidden_state", f"{transition} belongs to no operation")
        self.trigger_event(event, timestamp=at, state=state, operation_id=operation.id, **facts)

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
                facts["facts"] = checked(event, facts["facts"], self._yielded())
            self.trigger_event(self.notes[event], timestamp=at, operation_id=operation.id, **facts)

    def to_yield(self) -> dict[str, Any]:
        """The facts that what is owed would yield, each with its type."""
        owed = self.owing[self.state]
        declared = facts_of(self.events[owed.then])
        return {name: kind for name, kind in declared.items() if name not in owed.facts(self)}

    @classmethod
    def _yielded(cls) -> dict[str, Any]:
        """The facts that paid effects yield, each with its type."""
        paid = (cls.events[owed.then] for owed in cls.owing.values())
        return {name: kind for event in paid for name, kind in facts_of(event).items()}

    def begin(self, transition: str, command: str, context: Context, limit: timedelta, **facts: Any) -> None:
        """Take the transition that begins an operation; refuse it as a conflict while another one runs."""
        if not self.can(transition):
            raise self.refusal(command, transition)
        plan = path(type(self), decide(self.chart, self.state, transition, subject=self, **facts), self)
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
    known, declared = configured(chart), transitions(chart)
    by_transition: dict[str, type[Transitioned]] = {}
    for event in events:
        transition = re.sub(r"(?<!^)(?=[A-Z])", "_", event.__name__).lower()
        if transition in by_transition:
            raise TypeError(f"{name}: two event classes record {transition}")
        by_transition[transition] = event
    if by_transition.keys() != declared.keys():
        differing = sorted(by_transition.keys() ^ declared.keys())
        raise TypeError(f"{name}: transitions and event classes differ: {differing}")
    inner = [state.id for parents, state in walk(chart.states) if parents and not state.states]
    for state, owed in aggregate.owing.items():
        if state not in inner:
            raise TypeError(f"{name}: {state} owes, but is no inner state of {chart.__name__}")
        if not any(s in declared.get(owed.then, {}) for s in known[state]):
            raise TypeError(f"{name}: {state} owes, but has no transition {owed.then}")
    for state in inner:
        if state not in aggregate.owing:
            raise TypeError(f"{name}: {state} is an inner state and owes nothing")
    return by_transition


def path(aggregate: type[Lifecycled], state: str, subject: Lifecycled | None) -> tuple[str, ...]:
    """The plan: the owing states from this one on, in order, if every effect succeeds."""
    passed: list[str] = []
    while (owed := aggregate.owing.get(state)) is not None:
        passed.append(state)
        state = decide(aggregate.chart, state, owed.then, subject=subject)
    return tuple(passed)
