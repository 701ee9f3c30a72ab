"""With one safeguard switched off the matrix shows doubles: it would see them, and it is that safeguard that prevents
them.
"""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from aggregates.base import Obligation
from aggregates.record import record_id
from engine import deciding
from engine.clouds.simulated import CloudApi
from engine.clouds.simulated.ground import FENCES, PORT_MAC, SERVER_PORT
from tests.crash.boundaries import Passed
from tests.crash.matrix import Form, Report, Strike, record, strike
from tests.crash.scenarios import scenarios
from tests.crash.verdict import Breach

CREATE = "create_instance"
RESTART = "restart from ACTIVE"


def died_at(scenario: str, *boundaries: str) -> Report:
    """What comes of the scenario with a death at each of the boundaries."""
    recordings = record(Form.VIRTUAL, [each for each in scenarios() if each.name == scenario])
    met = [Strike(recording=each, boundaries=[Passed.read(line) for line in boundaries]) for each in recordings]
    report = Report()
    report.add(strike(Form.VIRTUAL, met))
    return report


@pytest.fixture
def unfenced(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A cloud that has all its fences but one."""
    made = CloudApi.__init__

    def make(self: CloudApi, **options: object) -> None:
        made(self, **{**options, "fences": FENCES - {request.param}})  # type: ignore[arg-type]

    monkeypatch.setattr(CloudApi, "__init__", make)


@pytest.mark.parametrize("unfenced", [PORT_MAC, SERVER_PORT], indirect=True)
@pytest.mark.usefixtures("unfenced")
def test_without_a_fence_a_call_in_flight_makes_a_second_resource() -> None:
    report = died_at(CREATE, "flight:create_port:1", "flight:create_server:1")
    assert report.count(Breach.DOUBLED) > 0


def test_with_the_fences_it_does_not() -> None:
    report = died_at(CREATE, "flight:create_port:1", "flight:create_server:1")
    assert report.bad == []


def test_without_the_command_record_the_same_command_is_carried_out_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    decided: set[UUID] = set()

    def forgotten(project: str, command_id: UUID) -> UUID:
        key = record_id(project, command_id)
        if key in decided:
            return uuid4()
        decided.add(key)
        return key

    monkeypatch.setattr(deciding, "record_id", forgotten)
    assert died_at(RESTART, "after_append:restart_database:1").count(Breach.DOUBLED) > 0


def test_without_a_stable_key_the_guest_does_it_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Obligation, "key", property(lambda owed: f"{owed.aggregate_id}:{uuid4()}"))
    assert died_at(RESTART, "answer:restart:1").count(Breach.DOUBLED) > 0


def test_with_record_and_stable_key_it_is_done_once() -> None:
    assert died_at(RESTART, "after_append:restart_database:1", "answer:restart:1").bad == []
