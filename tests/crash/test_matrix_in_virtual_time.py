"""Every boundary of every operation is died at, in virtual time: nothing is lost, doubled or stuck."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from aggregates.instance import Instance
from tests.crash.added import Refresh, add
from tests.crash.boundaries import Passed, changed_twice
from tests.crash.matrix import Crew, Form, Report, made_of
from tests.crash.scenarios import Matrix, examples, scenarios

POINTS = {
    "before_effect", "call", "flight", "answer", "after_effect", "after_append",
    "inbox_before_commit", "inbox_after_commit",
    "inbox_before_reply", "outbox_before_publish", "outbox_after_publish", "outbox_after_commit",
    "projector_before_commit", "projector_after_commit",
}  # fmt: skip


@pytest.mark.timeout(1800)
def test_nothing_is_lost_doubled_or_stuck_whatever_boundary_is_died_at(
    record_property: Callable[[str, object], None],
) -> None:
    crew = Crew(Form.VIRTUAL, 2)
    matrix = made_of(crew.record(scenarios()))
    assert matrix.wrong == []
    report = Report()
    for results in crew.strike(matrix):
        report.add(results)
    record_property("figures", "\n".join(["crash matrix, virtual form", *report.lines()]))
    assert report.bad == []
    assert {Passed.read(result.boundary).point for result in report.results} == POINTS
    owing = {Passed.read(result.boundary).subject for result in report.results if result.met}
    assert set(Instance.owing) - owing == set()
    assert len(report.missed) < len(report.results) / 20


def test_an_operation_added_to_a_chart_is_died_in_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    add(monkeypatch)
    extended = Matrix(Instance, [*examples("instance"), Refresh()]).scenarios()
    crew = Crew(Form.VIRTUAL, 0)
    matrix = made_of(crew.record([each for each in extended if each.name == "refresh from ACTIVE"]))
    report = Report()
    for results in crew.strike(matrix):
        report.add(results)
    assert matrix.wrong == []
    assert report.bad == []
    met = {(Passed.read(result.boundary).point, Passed.read(result.boundary).subject) for result in report.results}
    settler = ("before_effect", "after_effect", "after_append")
    assert met >= {(point, state) for point in settler for state in ("refresh_database", "refresh_health")}
    assert met >= {("call", "restart"), ("answer", "restart")}


def test_a_state_that_changes_one_thing_twice_is_named() -> None:
    lines = ["before_effect:build_port:1", "answer:list_ports:1", "answer:create_port:1", "answer:delete_port:1"]
    assert changed_twice([Passed.read(line) for line in lines]) == ["build_port: 2 calls that change a port"]
    lines = ["before_effect:build_port:1", "answer:create_port:1", "before_effect:build_port:2", "answer:create_port:2"]
    assert changed_twice([Passed.read(line) for line in lines]) == []
