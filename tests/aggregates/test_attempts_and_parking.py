"""What failed is tried again or parked, and what is noted meanwhile changes nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from aggregates.base import Parked, WrongFactsError
from tests.aggregates.story import ATTEMPT, given, names
from tests.support.given import (
    NOON,
    active,
    advance,
    pay,
    requested,
    started,
)


def test_a_failed_attempt_keeps_the_state_and_says_when_the_next_is_due() -> None:
    instance = advance(requested(), "build_port")
    instance.note("AttemptFailed", at=NOON, **ATTEMPT)
    instance = given(instance)
    assert (instance.state, instance.attempts, instance.retry_at) == ("build_port", 1, NOON)


def test_the_next_state_begins_without_attempts() -> None:
    instance = advance(requested(), "build_port")
    instance.note("AttemptFailed", at=NOON, **ATTEMPT)
    pay(instance)
    assert (instance.attempts, instance.retry_at) == (0, None)


def test_a_parked_operation_keeps_state_and_operation_and_says_why() -> None:
    instance = advance(started("resize_volume"), "resize_volume_grow")
    operation = instance.operation
    instance.note("OperationParked", at=NOON, effect="GrowFileSystem", code="guest_error", message="no space")
    instance = given(instance)
    assert instance.parked == Parked(effect="GrowFileSystem", code="guest_error", message="no space")
    assert (instance.state, instance.operation) == ("resize_volume_grow", operation)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({}, "DatabasePrepared records port as well"),
        ({"port": "5432"}, "DatabasePrepared records facts of other types"),
        ({"port": None}, "DatabasePrepared records facts of other types"),
        ({"port": 5432, "password": "x"}, "DatabasePrepared does not record password"),
    ],
    ids=str,
)
def test_facts_that_could_not_be_read_again_are_never_recorded(facts: dict[str, Any], words: str) -> None:
    instance = given(advance(requested(), "build_database"))
    before = dict(vars(instance))
    with pytest.raises(WrongFactsError, match=words):
        instance.take("database_prepared", at=NOON, **facts)
    assert vars(instance) == before


@pytest.mark.parametrize("facts", [{"state": "ACTIVE"}, {"project": "rival"}, {"server_id": 7}], ids=str)
def test_a_late_outcome_changes_nothing_but_what_effects_yield(facts: dict[str, Any]) -> None:
    instance = given(started("delete_instance"))
    before = dict(vars(instance))
    with pytest.raises(WrongFactsError):
        instance.note("LateOutcome", at=NOON, effect="EnsureServer", facts=facts)
    assert vars(instance) == before


def test_a_settled_instance_takes_no_notes() -> None:
    instance = given(active())
    instance.note("AttemptFailed", at=NOON, **ATTEMPT)
    assert names(instance) == []
