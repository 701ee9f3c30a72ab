"""An update of the access: its order, what it leaves when it fails, and what it finds at an instance of before."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from aggregates.commands import UpdateAccess
from aggregates.effects import (
    Access,
    AccessRulesAbsent,
    EnsureAccessRules,
    EnsureFloatingAddress,
)
from aggregates.instance import Instance
from tests.aggregates.story import given, refused
from tests.support.given import (
    BARE,
    EXAMPLES,
    NOON,
    active,
    advance,
    context,
    fail,
    pay,
    requested_before,
    settle,
    unanswered,
)

LATER = NOON + timedelta(seconds=60)
ELSEWHERE = ("10.0.0.0/8",)


def access_of(instance: Instance) -> Access | None:
    return instance.access


def updated(instance: Instance, **arguments: Any) -> Instance:
    instance.execute(UpdateAccess(**arguments), context())
    return instance


def test_rules_are_made_before_others_are_removed_and_before_the_address() -> None:
    instance = updated(active(), public=True, allowed_cidrs=ELSEWHERE)
    seen = []
    while (owed := instance.owes()) is not None:
        seen.append(owed.effect)
        pay(instance)
    added, removed, address = seen
    assert isinstance(added, EnsureAccessRules)
    assert added.cidrs == ELSEWHERE
    assert isinstance(removed, AccessRulesAbsent)
    assert removed.keep == ELSEWHERE
    assert isinstance(address, EnsureFloatingAddress)
    assert given(instance).access == Access(public=True, allowed_cidrs=ELSEWHERE)


@pytest.mark.parametrize(
    ("arguments", "passed"),
    [
        ({"public": True}, ["update_address_created"]),
        ({"allowed_cidrs": ("0.0.0.0/0", "10.0.0.0/8")}, ["update_rules_added"]),
        ({"allowed_cidrs": ()}, ["update_rules_removed"]),
        ({"allowed_cidrs": ELSEWHERE}, ["update_rules_added", "update_rules_removed"]),
    ],
    ids=str,
)
def test_only_what_changes_is_passed(arguments: dict[str, Any], passed: list[str]) -> None:
    instance = updated(active(), **arguments)
    operation = instance.operation
    assert operation is not None
    assert list(operation.plan) == passed
    assert settle(instance) == passed


def test_an_address_that_is_given_up_goes_last_since_no_other_would_be_the_same() -> None:
    instance = updated(active(access=Access(public=True)), public=False, allowed_cidrs=ELSEWHERE)
    assert settle(instance) == ["update_rules_added", "update_rules_removed", "update_address_deleted"]
    assert not Instance.can_from("update_address_deleted", "failed")
    known = given(instance)
    assert (known.public_address, known.access) == (None, Access(public=False, allowed_cidrs=ELSEWHERE))


def test_at_every_moment_the_access_that_is_known_is_the_one_that_there_is() -> None:
    instance = updated(active(), public=True, allowed_cidrs=ELSEWHERE)
    seen = []
    while instance.owes() is not None:
        pay(instance)
        seen.append(access_of(instance))
    assert seen == [
        Access(public=False, allowed_cidrs=("0.0.0.0/0", *ELSEWHERE)),
        Access(public=False, allowed_cidrs=ELSEWHERE),
        Access(public=True, allowed_cidrs=ELSEWHERE),
    ]


@pytest.mark.parametrize("state", ["update_rules_added", "update_rules_removed", "update_address_created"])
def test_an_update_that_fails_leaves_the_access_that_there_was(state: str) -> None:
    before = active()
    instance = advance(updated(before, public=True, allowed_cidrs=ELSEWHERE), state)
    fail(instance)
    settle(instance)
    assert given(instance).access == Access()
    assert instance.public_address is None


def test_what_is_let_in_again_waits_until_no_removal_can_come_late() -> None:
    instance = advance(updated(active(), allowed_cidrs=ELSEWHERE), "update_rules_removed")
    unanswered(instance)
    fail(instance)
    owed = instance.owes()
    assert owed is not None
    assert isinstance(owed.effect, EnsureAccessRules)
    assert owed.not_before == LATER


def test_an_instance_of_before_gets_a_security_group_with_its_first_update() -> None:
    instance = requested_before()
    settle(instance)
    assert access_of(instance) is None
    updated(instance, public=True, allowed_cidrs=ELSEWHERE)
    assert settle(instance) == ["update_security_group", "update_rules_added", "update_port", "update_address_created"]
    assert (instance.security_group_id, access_of(instance)) == (
        "security-group-1",
        Access(public=True, allowed_cidrs=ELSEWHERE),
    )
    instance.execute(EXAMPLES["delete_instance"], context())
    assert {"delete_address", "delete_security_group"} <= set(settle(instance))


@pytest.mark.parametrize(
    "state", ["update_security_group", "update_rules_added", "update_port", "update_address_created"]
)
def test_an_instance_of_before_whose_first_update_fails_has_no_security_group(state: str) -> None:
    instance = requested_before()
    settle(instance)
    advance(updated(instance, public=True, allowed_cidrs=ELSEWHERE), state)
    fail(instance)
    assert settle(instance)[-1] == "undo_update_security_group"
    assert (instance.state, given(instance).access) == ("ACTIVE", None)


def test_a_first_update_with_an_unanswered_call_looks_for_a_second_security_group() -> None:
    instance = requested_before()
    settle(instance)
    assert settle(updated(unanswered_later(instance), allowed_cidrs=ELSEWHERE))[-1] == "update_surplus"


def unanswered_later(instance: Instance) -> Instance:
    """With a call on record that went unanswered while it was made."""
    instance.unanswered_until = LATER
    return instance


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ({}, "invalid_argument", "say what shall change"),
        ({"public": False}, "invalid_argument", "has this access already"),
        ({"allowed_cidrs": ("0.0.0.0/0",)}, "invalid_argument", "has this access already"),
        ({"allowed_cidrs": ("nowhere",)}, "invalid_argument", "is no network"),
    ],
    ids=str,
)
def test_an_update_that_changes_nothing_or_cannot_be_is_refused(
    arguments: dict[str, Any], code: str, words: str
) -> None:
    refused_with = refused(given(active()), UpdateAccess(**arguments))
    assert refused_with.code == code
    assert words in refused_with.message


def test_where_nobodys_access_is_guarded_there_is_nothing_to_update() -> None:
    assert refused(given(active()), UpdateAccess(public=True), catalogue=BARE).code == "unsupported"
