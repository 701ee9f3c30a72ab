"""The compiled table decides as the chart's own machine does: over every state, transition and outcome of guards."""

from __future__ import annotations

import types
from collections.abc import Iterator
from itertools import count, product
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from statemachine import HistoryState, State, StateChart
from statemachine.exceptions import TransitionNotAllowed
from statemachine.orderedset import OrderedSet
from statemachine.spec_parser import names_in_boolean_expr

from aggregates import instance
from aggregates.base import Lifecycled, _walk, configuration, transitions
from aggregates.decision_table import compiled

OURS = [each for each in Lifecycled.__subclasses__() if each.__module__.startswith("aggregates.")]
CHARTS = sorted({each.chart for each in OURS}, key=str)
GUARDS = ("g0", "g1", "g2")
EXCEPTIONS = (None, "g0", "g1")
CONDITIONS = (None, "g0", "g1", "not g2", "g0 and g1", "g0 or not g1", "!g2")


class Machine:
    """The library's own machine, parked on whatever state is asked about."""

    def __init__(self, chart: Any) -> None:
        self._chart = chart
        self._machine: Any = None

    def choose(self, state: str, transition: str, facts: dict[str, Any]) -> str | None:
        """The leaf that it enters, or None when it refuses."""
        if self._machine is None:
            self._machine = self._chart(types.SimpleNamespace(state=None))
        machine, parked = self._machine, configuration(self._chart, state)
        machine.model.state = parked[0] if len(parked) == 1 else OrderedSet(parked)
        try:
            machine.send(transition, **facts)
        except TransitionNotAllowed:
            return None
        entered = machine.model.state
        if machine.is_terminated:
            self._machine = None
        return entered if isinstance(entered, str) else str(list(entered)[-1])


def guards(chart: Any) -> list[str]:
    """The names of the methods that the chart's transitions ask."""
    conditions = [spec.func for _, state in _walk(chart.states) for each in state.transitions for spec in each.cond]
    return sorted({name for condition in conditions for name in names_in_boolean_expr(condition)})


def said(guard: str) -> Any:
    """A guard whose outcome is what the subject says it is."""

    def outcome(self: Any, subject: dict[str, bool]) -> bool:
        return subject[guard]

    return outcome


def named(chart: Any, leaf: str, transition: str) -> list[str]:
    """The guards that are asked about the transition from the leaf, or from what it lies in."""
    conditions = [
        spec.func
        for _, state in _walk(chart.states)
        if state.id in configuration(chart, leaf)
        for each in state.transitions
        if transition in each.events
        for spec in each.cond
    ]
    return sorted({name for condition in conditions for name in names_in_boolean_expr(condition)})


def asked(chart: Any) -> Iterator[tuple[str, str, dict[str, bool]]]:
    """Every leaf, with every transition and one that there is not, with every outcome of the guards asked there."""
    others = dict.fromkeys(guards(chart), True)
    leaves = [state.id for _, state in _walk(chart.states) if not state.states]
    for leaf, transition in product(leaves, [*transitions(chart), "no_such_transition"]):
        names = named(chart, leaf, transition)
        for outcomes in product((False, True), repeat=len(names)):
            yield leaf, transition, {**others, **dict(zip(names, outcomes, strict=True))}


def answered_alike(chart: Any) -> int:
    """Ask both everything; the number of questions to which the answer was a state."""
    table, machine, entered = compiled(chart), Machine(chart), 0
    for leaf, transition, outcomes in asked(chart):
        facts = {"subject": outcomes, "reason": "a fact that nobody asks for"}
        choices = table.get((leaf, transition), ())
        chosen = next((target for conditions, target in choices if all(guard(**facts) for guard in conditions)), None)
        assert chosen == machine.choose(leaf, transition, facts), (leaf, transition, outcomes)
        entered += chosen is not None
    return entered


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.__name__)
def test_every_chart_is_decided_as_by_its_machine(chart: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in guards(chart):
        # What the guards look at is not the question here, but that each outcome leads where it should.
        monkeypatch.setattr(chart, name, said(name))
    assert answered_alike(chart) > len(transitions(chart))


def test_the_chart_of_an_instance_is_among_them() -> None:
    assert instance.Instance.chart in CHARTS


nodes = st.recursive(st.just(()), lambda inner: st.lists(inner, min_size=1, max_size=3), max_leaves=8)
edges = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.integers(0, 30),
        st.integers(0, 30),
        st.sampled_from(CONDITIONS),
        st.sampled_from(EXCEPTIONS),
    ),
    min_size=1,
    max_size=25,
)


def made(trees: list[Any], arrows: list[tuple[int, int, int, str | None, str | None]]) -> Any:
    """A chart of this form: states in states, and transitions between any two, some under several conditions."""
    every: list[Any] = []
    ordinal = count()

    def state(tree: Any, *, initial: bool) -> tuple[str, Any]:
        name = f"s{next(ordinal)}"
        if not tree:
            each: Any = State(initial=initial)
        else:
            body = dict(state(child, initial=place == 0) for place, child in enumerate(tree))
            each = types.new_class(name, (State.Compound,), {}, lambda namespace: namespace.update(body))
            each._initial = initial
        every.append(each)
        return name, each

    body: dict[str, Any] = dict(state(tree, initial=place == 0) for place, tree in enumerate(trees))
    for event, source, target, condition, exception in arrows:
        arrow = every[source % len(every)].to(every[target % len(every)], cond=condition, unless=exception)
        name = f"e{event}"
        body[name] = body[name] | arrow if name in body else arrow
    for guard in GUARDS:
        body[guard] = said(guard)
    body |= {
        "allow_event_without_transition": False,
        "catch_errors_as_events": False,
        "validate_disconnected_states": False,
        "validate_trap_states": False,
    }
    return types.new_class("Made", (StateChart[Any],), {}, lambda namespace: namespace.update(body))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(nodes, min_size=1, max_size=4), edges)
def test_any_chart_is_decided_as_by_its_machine(
    trees: list[Any], arrows: list[tuple[int, int, int, str | None, str | None]]
) -> None:
    answered_alike(made(trees, arrows))


class Acts(StateChart[Any]):
    """Does something on its way."""

    allow_event_without_transition = False

    A = State(initial=True)
    B = State()
    go = A.to(B) | B.to(A)

    def on_go(self) -> None:
        """Do it."""


class Remembers(StateChart[Any]):
    """Has a history, which no event records."""

    class C(State.Compound):
        """Two, of which one is remembered."""

        one = State(initial=True)
        two = State()
        last = HistoryState()
        on = one.to(two) | two.to(one)

    A = State()
    away = C.to(A)
    back = A.to(C.last)


class AsksTheMachine(StateChart[Any]):
    """Has a guard that looks at more than subject and facts."""

    A = State(initial=True)
    B = State()
    go = A.to(B, cond="ready") | B.to(A)

    def ready(self, machine: Any) -> bool:
        """Look at the machine."""
        return bool(machine)


class Falls(StateChart[Any]):
    """Has a transition that nobody takes: it happens."""

    A = State(initial=True)
    B = State()
    go = A.to(B)
    B.to(A)


class EndsInside(StateChart[Any]):
    """A compound that is left by being done."""

    class C(State.Compound):
        """One, then its end."""

        one = State(initial=True)
        two = State(final=True)
        on = one.to(two)

    A = State()
    done_state_C = C.to(A)  # noqa: N815 - the library's word
    back = A.to(C)


REFUSED = [Acts, Remembers, AsksTheMachine, Falls, EndsInside]


@pytest.mark.parametrize("chart", REFUSED, ids=lambda chart: chart.__name__)
def test_a_chart_that_no_table_expresses_is_refused(chart: Any) -> None:
    with pytest.raises(TypeError, match=chart.__name__):
        compiled(chart)
