"""The command record: whose key decides each command once."""

from __future__ import annotations

from dataclasses import fields
from uuid import UUID

from aggregates.record import CommandAccepted, CommandRejected, record_id

ONE, TWO = UUID(int=1), UUID(int=2)


def test_a_record_has_the_same_id_for_the_same_command_of_a_project() -> None:
    assert record_id("acme", ONE) == record_id("acme", ONE)


def test_two_projects_may_use_one_command_id() -> None:
    assert record_id("acme", ONE) != record_id("rival", ONE)


def test_a_project_and_an_id_cannot_be_mistaken_for_others() -> None:
    assert len({record_id(project, each) for project in ("a", "a-", "-a") for each in (ONE, TWO)}) == 6


def test_a_record_says_what_was_decided_about_which_command_from_whom() -> None:
    common = {
        "originator_id", "originator_version", "timestamp", "project", "command_id", "command", "aggregate_kind",
        "aggregate_id", "actor", "content", "sequence",
    }  # fmt: skip
    assert {f.name for f in fields(CommandAccepted)} == {*common, "version"}
    assert {f.name for f in fields(CommandRejected)} == {*common, "code", "reason"}


def test_the_topics_are_part_of_the_wire_contract() -> None:
    assert (CommandAccepted.TOPIC, CommandRejected.TOPIC) == ("command.CommandAccepted", "command.CommandRejected")
