"""Charts as deciders: where a transition leads from a state, and what a chart declares. Replay asks none of it.

What follows from the chart's class alone is worked out once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from statemachine import StateChart

from aggregates.base import Refusal
from aggregates.decision_table import choose

_configurations: dict[type[StateChart[Any]], dict[str, tuple[str, ...]]] = {}
_transitions: dict[type[StateChart[Any]], dict[str, dict[str, tuple[str, ...]]]] = {}


def decide(chart: type[StateChart[Any]], state: str, transition: str, *, subject: Any, **facts: Any) -> str:
    """The leaf state that the transition leads to, or `Refusal`. Guards see `subject` and the facts."""
    facts["subject"] = subject
    entered = choose(chart, state, transition, facts)
    if entered is None:
        raise Refusal("forbidden_state", f"no transition {transition} from state {state}")
    return entered


def configuration(chart: type[StateChart[Any]], state: str) -> tuple[str, ...]:
    """The states that are active together when the leaf is: from the top state to the leaf."""
    return configured(chart)[state]


def configured(chart: type[StateChart[Any]]) -> dict[str, tuple[str, ...]]:
    """The configuration of each state. `TypeError` for two of one name: the library finds out only at run time."""
    known = _configurations.get(chart)
    if known is None:
        known = {}
        for parents, each in walk(chart.states):
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
        for _, state in walk(chart.states):
            for transition in state.transitions:
                for event in transition.events:
                    targets = known.setdefault(str(event), {})
                    targets[state.id] = (*targets.get(state.id, ()), transition.target.id)
        _transitions[chart] = known
    return known


def walk(states: Any, parents: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for state in states:
        yield parents, state
        yield from walk(state.states, (*parents, state.id))
