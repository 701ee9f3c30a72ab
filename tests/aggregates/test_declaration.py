"""A lifecycle that is not whole is refused when it is declared, which is when its module is imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from statemachine import State, StateChart

from aggregates.base import Transitioned
from aggregates.charts import configuration
from aggregates.effects import AwaitAgent
from aggregates.instance import Instance
from aggregates.instance_events import TRANSITIONS
from aggregates.lifecycled import Lifecycled, Owed, declare


class Whole(StateChart[Any]):
    """One state that owes, and the two that it settles in."""

    allow_event_without_transition = False
    catch_errors_as_events = False

    class BUILD(State.Compound):
        """It is being made."""

        build_server = State(initial=True)

    ACTIVE = State()
    ERROR = State()

    server_created = BUILD.build_server.to(ACTIVE)
    failed = BUILD.to(ERROR)
    retried = ERROR.to(BUILD) | ACTIVE.to(BUILD)


class SameNames(StateChart[Any]):
    """Two compounds with an inner state of one name."""

    class BUILD(State.Compound):
        """One."""

        wait = State(initial=True)

    class RESIZE(State.Compound):
        """The other."""

        wait = State(initial=True)

    server_created = BUILD.to(RESIZE)
    failed = RESIZE.to(BUILD)


class ServerCreated(Transitioned):
    """Records `server_created`."""


class Failed(Transitioned):
    """Records `failed`."""


class Retried(Transitioned):
    """Records `retried`."""


EVENTS = (ServerCreated, Failed, Retried)
OWING = {"build_server": Owed[Any]("server_created", lambda i: AwaitAgent(instance_id=i.id))}


def declared(
    chart: type[StateChart[Any]] = Whole,
    owing: Mapping[str, Owed[Any]] = OWING,
    events: tuple[type[Transitioned], ...] = EVENTS,
) -> dict[str, type[Transitioned]]:
    aggregate = type("Thing", (Lifecycled,), {"chart": chart, "owing": owing})
    return declare(aggregate, events)


def owing(then: str) -> Owed[Any]:
    return Owed(then, lambda i: AwaitAgent(instance_id=i.id))


def test_a_whole_lifecycle_has_one_event_class_for_each_transition() -> None:
    assert declared() == {"server_created": ServerCreated, "failed": Failed, "retried": Retried}


def test_a_transition_without_an_event_class_is_named() -> None:
    with pytest.raises(TypeError, match=r"Thing: transitions and event classes differ: \['retried'\]"):
        declared(events=(ServerCreated, Failed))


def test_an_event_class_without_a_transition_is_named() -> None:
    class PortCreated(Transitioned):
        """Records a transition that there is none of."""

    with pytest.raises(TypeError, match=r"Thing: transitions and event classes differ: \['port_created'\]"):
        declared(events=(*EVENTS, PortCreated))


def test_two_event_classes_for_one_transition_are_named() -> None:
    other = type("Failed", (Transitioned,), {"__doc__": "Records `failed` too."})
    with pytest.raises(TypeError, match="Thing: two event classes record failed"):
        declared(events=(*EVENTS, other))


def test_two_states_of_one_name_are_named() -> None:
    with pytest.raises(TypeError, match="SameNames: two states are named wait"):
        configuration(SameNames, "wait")
    with pytest.raises(TypeError, match="SameNames: two states are named wait"):
        declared(chart=SameNames, owing={}, events=(ServerCreated, Failed))


def test_an_owing_state_that_leads_on_by_an_undeclared_transition_is_named() -> None:
    with pytest.raises(TypeError, match="Thing: build_server owes, but has no transition port_created"):
        declared(owing={"build_server": owing("port_created")})


def test_an_owing_state_that_leads_on_by_another_states_transition_is_named() -> None:
    with pytest.raises(TypeError, match="Thing: build_server owes, but has no transition retried"):
        declared(owing={"build_server": owing("retried")})


def test_an_owing_state_that_the_chart_does_not_have_is_named() -> None:
    with pytest.raises(TypeError, match="Thing: build_port owes, but is no inner state of Whole"):
        declared(owing={**OWING, "build_port": owing("server_created")})


@pytest.mark.parametrize("state", ["ACTIVE", "BUILD"])
def test_a_state_that_is_no_waiting_point_cannot_owe(state: str) -> None:
    with pytest.raises(TypeError, match=f"Thing: {state} owes, but is no inner state of Whole"):
        declared(owing={**OWING, state: owing("retried")})


def test_an_inner_state_that_owes_nothing_is_named() -> None:
    with pytest.raises(TypeError, match="Thing: build_server is an inner state and owes nothing"):
        declared(owing={})


def test_the_instance_is_whole() -> None:
    assert declare(Instance, TRANSITIONS) == Instance.events
    assert len(Instance.events) == len(TRANSITIONS)
