"""The scenarios of the crash matrix show everything that the charts can do, and nobody has to list them."""

from __future__ import annotations

import pytest

from aggregates.charts import configuration, transitions
from aggregates.instance import Instance
from tests.crash.added import Refresh, add
from tests.crash.scenarios import Matrix, Scenario, examples, scenarios

# What the chart declares and no history of an instance leads to.
UNREACHED: frozenset[tuple[str, str]] = frozenset()


@pytest.fixture(scope="module")
def found() -> list[Scenario]:
    return scenarios()


def test_every_owing_state_is_passed(found: list[Scenario]) -> None:
    entered = {state for scenario in found for _, _, _, state in scenario.shows}
    assert set(Instance.owing) - entered == set()


def test_every_transition_is_taken_from_everywhere_that_it_is_declared(found: list[Scenario]) -> None:
    taken = {(event, left) for scenario in found for _, event, left, _ in scenario.shows}
    declared = {
        (Instance.events[transition].__name__, source)
        for transition, sources in transitions(Instance.chart).items()
        for source in sources
    }
    missing = {
        (event, source)
        for event, source in declared
        if not any(event == name and source in _configuration(left) for name, left in taken)
    }
    assert missing == UNREACHED


def test_every_command_that_begins_an_operation_is_under_test(found: list[Scenario]) -> None:
    under_test = {scenario.operation for scenario in found}
    assert under_test >= {command.wire_name() for command in examples("instance")}


def test_whatever_can_fail_fails_and_whatever_can_be_interrupted_is(found: list[Scenario]) -> None:
    failing = {state for scenario in found for step in scenario.steps for state in step.fails}
    interrupted = {step.during for scenario in found for step in scenario.steps if step.during and not step.parked}
    with_way_back = {state for state in Instance.owing if _leaves(state, "failed")}
    assert with_way_back - failing == set()
    assert {state for state in Instance.owing if _leaves(state, "deletion_requested")} - interrupted == set()


def test_the_names_tell_the_scenarios_apart(found: list[Scenario]) -> None:
    names = [scenario.name for scenario in found]
    assert len(set(names)) == len(names)


def test_an_operation_added_to_a_chart_is_in_the_matrix_by_that_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    add(monkeypatch)
    extended = Matrix(Instance, [*examples("instance"), Refresh()]).scenarios()
    assert {scenario.name for scenario in extended if "refresh" in scenario.name} >= {
        "refresh from ACTIVE",
        "refresh failing in refresh_database from ACTIVE",
        "refresh failing in refresh_health from ACTIVE",
        "refresh, delete_instance while in refresh_database from ACTIVE",
        "refresh, delete_instance while in refresh_health from ACTIVE",
    }


def _configuration(state: str) -> tuple[str, ...]:
    return configuration(Instance.chart, state)


def _leaves(state: str, transition: str) -> bool:
    return any(each in transitions(Instance.chart).get(transition, {}) for each in _configuration(state))
