"""A chart compiled into a table: for each state and transition the targets to choose from, each with its guards.

It answers as the chart's own machine does, a thousand times cheaper; the tests compare the two over every state,
transition and outcome of guards. A chart that it cannot express (actions, history, parallel states, transitions without
a name) is refused with `TypeError`, never decided in another way.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from statemachine import StateChart
from statemachine.callbacks import CallbackGroup
from statemachine.spec_parser import operator_mapping, parse_boolean_expr

Chart = type[StateChart[Any]]
Guard = Callable[..., Any]
Choices = tuple[tuple[tuple[Guard, ...], str], ...]

_INJECTED = frozenset({"event", "event_data", "machine", "model", "source", "state", "target", "transition"})

_tables: dict[Chart, dict[tuple[str, str], Choices]] = {}


def choose(chart: Chart, state: str, transition: str, facts: Mapping[str, Any]) -> str | None:
    """The leaf state that the transition leads to from this one; None if it is not declared or no guard lets it.

    Guards are given those of the facts that they name.
    """
    table = _tables.get(chart)
    if table is None:
        table = _tables[chart] = compiled(chart)
    for guards, target in table.get((state, transition), ()):
        if all(guard(**facts) for guard in guards):
            return target
    return None


def compiled(chart: Chart) -> dict[tuple[str, str], Choices]:
    """By leaf state and transition: the guards and the leaf entered, in the order in which they are tried.

    What a state declares goes before what its parents do. Raises `TypeError`.
    """
    table: dict[tuple[str, str], Choices] = {}
    guards = _Guards(chart)
    for leaf in (each for each in _every(chart, chart.states) if each.is_atomic):
        for declaring in (leaf, *leaf.ancestors()):
            for transition in declaring.transitions:
                if transition.initial:
                    continue
                choice = (guards.of(transition), _entered(chart, transition))
                for event in _names(chart, transition):
                    table[leaf.id, event] = (*table.get((leaf.id, event), ()), choice)
    return table


def _every(chart: Chart, states: Any) -> Iterator[Any]:
    for state in states:
        if state.parallel or state.history:
            raise TypeError(f"{chart.__name__}: {state.id} is parallel or has a history, which an event cannot record")
        if state.final and state.parent is not None:
            raise TypeError(
                f"{chart.__name__}: {state.id} is final inside {state.parent.id}, which would end it unasked"
            )
        _refuse_actions(chart, state, {CallbackGroup.ENTER, CallbackGroup.EXIT, CallbackGroup.INVOKE})
        yield state
        yield from _every(chart, state.states)


def _names(chart: Chart, transition: Any) -> list[str]:
    names = [str(event) for event in transition.events]
    if not names or not all(name.isidentifier() for name in names):
        raise TypeError(f"{chart.__name__}: {transition!r} needs plain names to be taken by")
    return names


def _entered(chart: Chart, transition: Any) -> str:
    """The leaf: of a compound, the one that it begins in."""
    if transition.internal or len(transition.targets) != 1:
        raise TypeError(f"{chart.__name__}: {transition!r} does not lead into exactly one state")
    _refuse_actions(chart, transition, set(CallbackGroup) - {CallbackGroup.COND})
    state = transition.target
    while not state.is_atomic:
        state = next(each.target for each in state.transitions if each.initial)
    return str(state.id)


def _refuse_actions(chart: Chart, declaring: Any, groups: set[CallbackGroup]) -> None:
    """A chart decides; what were done on the way would be done by no replay."""
    for spec in declaring._specs:  # noqa: SLF001 - nothing public says which callbacks there are
        if spec.group in groups and (not spec.is_convention or hasattr(chart, str(spec.func))):
            raise TypeError(f"{chart.__name__}: {declaring!r} does {spec.func}; a decider has guards only")


class _Guards:
    """The guards of one chart as functions of the facts."""

    def __init__(self, chart: Chart) -> None:
        self._chart = chart
        # Guards are methods, which may ask each other; what a machine holds besides is not theirs to see.
        self._self = chart.__new__(chart)

    def of(self, transition: Any) -> tuple[Guard, ...]:
        """All of which must let the transition pass."""
        return tuple(self._guard(spec) for spec in transition.cond)

    def _guard(self, spec: Any) -> Guard:
        if not isinstance(spec.func, str):
            raise TypeError(f"{self._chart.__name__}: write the guard {spec.func!r} as a method, and give its name")
        parse: Callable[..., Guard] = parse_boolean_expr
        guard = parse(spec.func, self._named, operator_mapping)
        if spec.expected_value:
            return guard
        return lambda **facts: not guard(**facts)

    def _named(self, name: str) -> Guard:
        method = getattr(self._self, name, None)
        if not inspect.ismethod(method):
            raise TypeError(f"{self._chart.__name__}: no method is named {name}, as a guard is")
        parameters = inspect.signature(method).parameters
        if any(p.kind is not p.POSITIONAL_OR_KEYWORD or p.name in _INJECTED for p in parameters.values()):
            raise TypeError(f"{self._chart.__name__}: the guard {name} may ask for the subject and facts, by name")
        asked = tuple(parameters)

        def guard(**facts: Any) -> Any:
            return method(**{each: facts.get(each) for each in asked})

        guard.__name__ = name
        return guard
