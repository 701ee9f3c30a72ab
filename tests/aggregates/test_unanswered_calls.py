"""What is owed after a call whose answer nobody knows: a wait, a look for surplus, a last look."""

from __future__ import annotations

from datetime import timedelta

import pytest

from aggregates.base import LastLook
from aggregates.effects import (
    CloudEffect,
    SurplusAbsent,
)
from aggregates.instance import Instance
from tests.aggregates.story import given
from tests.support.given import (
    EXAMPLES,
    NOON,
    active,
    advance,
    context,
    everywhere,
    intervention,
    pay,
    requested,
    settle,
    started,
    unanswered,
)

LATER = NOON + timedelta(seconds=60)
CLEARING = {
    "ServerAbsent", "VolumeAbsent", "PortAbsent", "FloatingAddressAbsent", "SecurityGroupAbsent", "ServerGroupAbsent",
    "SnapshotAbsent", "PortGroupAbsent", "AccessRulesAbsent", "SurplusAbsent", "RevertServer", "CredentialsAbsent",
}  # fmt: skip
AGAIN = {"undo_resize_volume_attach", "undo_update_rules_removed"}  # what was taken away is there again


def test_a_create_with_an_unanswered_call_looks_for_surplus_before_it_is_active() -> None:
    instance = advance(unanswered(requested()), "build_surplus")
    owed = instance.owes()
    assert owed is not None
    assert owed.effect == SurplusAbsent(
        instance_id=instance.id,
        name=instance.resource_name,
        security_group_name=instance.security_group_name,
        keep=("volume-1", "security-group-1"),
    )
    assert owed.not_before == LATER
    pay(instance)
    assert (instance.state, given(instance).removed) == ("ACTIVE", ("volume-2",))


def test_a_create_whose_calls_were_all_answered_makes_no_extra_call() -> None:
    assert "build_surplus" not in settle(requested())


def test_a_surplus_that_cannot_be_removed_undoes_no_healthy_database() -> None:
    assert not advance(unanswered(requested()), "build_surplus").can("failed")


def test_the_latest_moment_of_all_unanswered_calls_counts() -> None:
    instance = unanswered(advance(requested(), "build_port"))
    instance.note("CallUnanswered", at=NOON, effect="EnsurePort", until=NOON)
    assert given(instance).unanswered_until == LATER


@pytest.mark.parametrize("state", [state for state in everywhere() if Instance.owes_in(state)])
def test_only_what_clears_away_waits_until_no_call_can_be_carried_out_any_more(state: str) -> None:
    owed = unanswered(everywhere()[state]).owes()
    assert owed is not None
    assert owed.effect.clears == (owed.effect.type_name in CLEARING or state in AGAIN)
    assert owed.not_before == (LATER if owed.effect.clears else None)


def test_a_state_entered_by_a_deletion_may_overtake_a_call_until_it_is_left() -> None:
    instance = advance(requested(), "build_volume")
    before = instance.overtaken
    instance.execute(EXAMPLES["delete_instance"], context())
    entered = instance.overtaken
    pay(instance)
    assert (before, entered, given(instance).overtaken) == (False, True, False)


def test_a_deletion_of_what_is_settled_or_parked_overtakes_nothing() -> None:
    parked = advance(started("resize_volume"), "resize_volume_grow")
    parked.note("OperationParked", at=NOON, effect="GrowFileSystem", code="guest_error", message="no space")
    for instance in (active(), parked):
        instance.execute(EXAMPLES["delete_instance"], context())
        assert not instance.overtaken


# --- last looks ---------------------------------------------------------------------------------------------------


def _doubted(command: str, state: str) -> Instance:
    instance = advance(started(command), state)
    instance.note("LastLookDue", at=NOON, effect="Any", code="timeout", message="no answer", due_at=LATER)
    return given(instance)


def test_what_may_have_been_carried_out_after_the_last_try_is_only_looked_at_when_that_is_over() -> None:
    instance = _doubted("resize_volume", "resize_volume_extend")
    owed = instance.owes()
    assert owed is not None
    assert owed.last_look == LastLook(code="timeout", message="no answer")
    assert (instance.state, instance.attempts, instance.retry_at) == ("resize_volume_extend", 0, LATER)


def test_what_the_last_look_finds_counts() -> None:
    instance = _doubted("resize_volume", "resize_volume_extend")
    pay(instance)
    owed = instance.owes()
    assert owed is not None
    assert (instance.volume_size, owed.last_look) == (2, None)


def test_a_retry_before_the_last_look_tries_again() -> None:
    instance = _doubted("resize_volume", "resize_volume_extend")
    instance.execute(intervention(instance, "retry_operation"), context())
    owed = instance.owes()
    assert owed is not None
    assert (owed.last_look, instance.retry_at) == (None, None)


def test_a_deletion_does_not_wait_for_a_last_look() -> None:
    instance = _doubted("start_instance", "start_server")
    instance.execute(EXAMPLES["delete_instance"], context())
    owed = instance.owes()
    assert owed is not None
    assert (instance.state, owed.last_look, instance.retry_at) == ("delete_server", None, None)


def test_what_is_removed_or_reverted_on_the_way_back_needs_no_last_look() -> None:
    for state, instance in everywhere().items():
        owed = instance.owes()
        if owed is not None:
            assert not (owed.effect.makes and owed.effect.lasts), state
            assert isinstance(owed.effect, CloudEffect) or not owed.effect.lasts, state
