"""The agent's journal and desired state on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.guest.desired import DesiredFile
from engine.guest.journal import Journal
from engine.guest.volume import Use
from engine.messages import GuestReply, GuestState

DONE = GuestReply(state=GuestState.DONE, facts={"port": 5432})


def test_an_answer_is_given_again_by_every_later_agent(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.begin("k", "prepare")
        journal.end("k", "prepare", DONE)
    with Journal(tmp_path) as later:
        assert (later.answer("k"), later.verb("k")) == (DONE, "prepare")


def test_what_was_only_begun_has_no_answer(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.begin("k", "prepare")
    with Journal(tmp_path) as later:
        assert (later.answer("k"), later.verb("k")) == (None, "prepare")


def test_only_a_failure_that_trying_again_does_not_help_holds(tmp_path: Path) -> None:
    final = GuestReply(state=GuestState.FAILED, error="no")
    with Journal(tmp_path) as journal:
        journal.end("passing", "start", GuestReply(state=GuestState.FAILED, error="busy", transient=True))
        journal.end("final", "start", final)
        assert journal.answer("passing") is None
        assert journal.answer("final") == final


def test_a_torn_line_is_passed_over_and_the_next_is_whole(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.end("one", "stop", DONE)
        journal.end("two", "stop", DONE)
    file = tmp_path / "journal.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    with Journal(tmp_path) as torn:
        assert (torn.answer("one"), torn.answer("two")) == (DONE, None)
        torn.end("three", "stop", DONE)
    with Journal(tmp_path) as later:
        assert later.answer("three") == DONE


def test_running_is_no_answer_to_keep(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal, pytest.raises(ValueError, match="no end"):
        journal.end("k", "stop", GuestReply(state=GuestState.RUNNING))


def test_the_desired_state_is_what_was_last_changed(tmp_path: Path) -> None:
    DesiredFile(tmp_path).change(ram=512, running=True)
    file = DesiredFile(tmp_path)
    file.change(ram=1024)
    assert (DesiredFile(tmp_path).now.ram, DesiredFile(tmp_path).now.running) == (1024, True)
    assert (tmp_path / "desired.json").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("used", "is_now", "should_be"), [(99, False, False), (100, False, True), (99, True, True), (97, True, False)]
)
def test_a_full_volume_needs_some_room_to_be_writable_again(used: int, is_now: bool, should_be: bool) -> None:
    assert Use(used=used, size=100, limit=100).should_be_read_only(is_now) is should_be
