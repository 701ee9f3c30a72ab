"""Histories that were recorded once and that every later version must read as it was meant then."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID

import pytest
from eventsourcing.persistence import StoredEvent

from aggregates.base import Event
from engine.event_log import fold
from engine.mapper import MsgspecMapper
from tests.aggregates.event_classes import concrete
from tests.golden.history import DIRECTORY, History, attributes, differences, read
from tests.golden.record import record
from tests.golden.scenarios import scenarios

FILES = sorted(DIRECTORY.glob("*.jsonl"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recorded_history_still_folds_to_the_aggregate_that_it_was(path: Path) -> None:
    history = read(path)
    mapper = MsgspecMapper()
    events = [mapper.to_domain_event(stored) for stored in history.events]
    if history.aggregate is None:
        assert [(e.originator_id, e.originator_version) for e in events] == [(history.events[0].originator_id, 1)]
        return
    present = attributes(fold(events))
    assert history.aggregate.keys() <= present.keys()
    assert differences(history.aggregate, _known(present, history)) == []


def _known(present: dict[str, Any], history: History) -> dict[str, Any]:
    """The attributes that there were when the history was recorded."""
    assert history.aggregate is not None
    return {name: value for name, value in present.items() if name in history.aggregate}


def test_every_command_has_a_history_of_each_way_in_which_it_can_end() -> None:
    missing = scenarios().keys() - {path.stem for path in FILES}
    assert not missing, f"run `python -m tests.golden.record`; it adds: {sorted(missing)}"


def test_every_event_class_occurs_in_a_recorded_history() -> None:
    recorded = {event.topic for path in FILES for event in read(path).events}
    assert concrete().keys() <= recorded


def test_recording_adds_what_is_missing_and_leaves_what_is_there(tmp_path: Path) -> None:
    there = tmp_path / "health.jsonl"
    there.write_text("as it was\n")
    added = record(tmp_path)
    assert "health.jsonl" not in added
    assert len(added) == len(scenarios()) - 1
    assert record(tmp_path) == []
    assert there.read_text() == "as it was\n"


def test_a_history_that_folds_to_something_else_is_noticed() -> None:
    history = read(DIRECTORY / "create_instance-done.jsonl")
    assert history.aggregate is not None
    mapper = MsgspecMapper()
    *earlier, last = [mapper.to_domain_event(stored) for stored in history.events]
    present = _known(attributes(fold(earlier)), history)
    found = differences(history.aggregate, present)
    assert any("aggregate.state: is 'build_health', not 'ACTIVE'" in each for each in found)
    assert differences(history.aggregate, _known(attributes(fold([*earlier, last])), history)) == []


def test_what_an_older_version_stored_is_brought_up_to_date() -> None:
    class VolumeMeasured(Event):
        """Said the size in MiB first; says it in GiB, with the unit in its name, since version 2."""

        kind: ClassVar[str] = "golden"
        class_version = 2

        size_gib: int

        @staticmethod
        def upcast_v1_v2(state: dict[str, Any]) -> None:
            """One field became another."""
            state["size_gib"] = state.pop("size_mib") // 1024

    mapper = MsgspecMapper()
    stored = StoredEvent(
        UUID(int=1),
        1,
        "golden.VolumeMeasured",
        b'{"originator_id":"00000000-0000-0000-0000-000000000001","originator_version":1,'
        b'"timestamp":"2026-01-31T12:00:00Z","size_mib":2048}',
    )
    event = mapper.to_domain_event(stored)
    assert isinstance(event, VolumeMeasured)
    assert event.size_gib == 2
    again = mapper.to_stored_event(event)
    assert again.state.startswith(b'{"class_version":2,')
    assert mapper.to_domain_event(again) == event
