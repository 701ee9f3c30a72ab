"""Cancel, retry, skip and abandon: where each is taken, what it leads to, and why it is refused elsewhere."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from aggregates.base import Failure, Intervention, Refusal, path, transitions
from aggregates.commands import INTERVENTIONS, DeleteInstance, OperationCommand
from aggregates.instance import Instance
from tests.aggregates.story import given, refused, when
from tests.support.given import (
    EXAMPLES,
    NOON,
    active,
    advance,
    context,
    everywhere,
    fail,
    intervention,
    park,
    pay,
    requested,
    settle,
    started,
    unanswered,
)

BUILD = {
    "build_quota": "undo_build_quota",
    "build_server_group": "undo_build_server_group",
    "build_security_group": "undo_build_security_group",
    "build_rules": "undo_build_security_group",
    "build_port": "undo_build_port",
    "build_management_port": "undo_build_management_port",
    "build_volume": "undo_build_volume",
    "build_credentials": "undo_build_volume",
    "build_server": "undo_build_server",
    "build_address": "undo_build_server",
    "build_attachment": "undo_build_server",
    "build_database": "undo_build_server",
    "build_health": "undo_build_server",
}
# state: where a cancel leads; in no other state is one taken
CANCELS = {
    **BUILD,
    "resize_volume_quota": "undo_resize_volume_quota",
    "resize_volume_stop": "undo_resize_volume_attach",
    "resize_volume_detach": "undo_resize_volume_attach",
    "update_security_group": "undo_update_security_group",
    "update_rules_added": "undo_update_rules_removed",
    "update_rules_removed": "undo_update_rules_removed",
    "update_port": "undo_update_port",
    "update_address_created": "undo_update_address",
    "resize_flavor_quota": "undo_resize_flavor_quota",
    "resize_flavor_stop": "undo_resize_flavor_server",
    "resize_flavor_server": "undo_resize_flavor_server",
    "resize_flavor_agent": "undo_resize_flavor_server",
    "resize_flavor_start": "undo_resize_flavor_server",
    "resize_flavor_health": "undo_resize_flavor_server",
    "migrate_stop": "undo_migrate_server",
    "migrate_server": "undo_migrate_server",
    "migrate_agent": "undo_migrate_server",
    "migrate_start": "undo_migrate_server",
    "migrate_health": "undo_migrate_server",
}
OWING = [state for state in everywhere() if Instance.owes_in(state)]
SETTLED = [state for state in everywhere() if not Instance.owes_in(state)]
# The states that owe the absence of something: what is skipped there is left.
ABSENCES = {
    "undo_build_server", "undo_build_address", "undo_build_volume", "undo_build_management_port", "undo_build_port",
    "undo_build_security_group", "undo_build_server_group", "undo_build_credentials", "undo_build_quota",
    "build_surplus", "update_surplus", "update_address_deleted", "undo_update_address", "undo_update_port",
    "undo_update_security_group", "delete_server", "delete_address", "delete_port", "delete_management_port",
    "rebuild_snapshot_deleted", "undo_rebuild_snapshot", "delete_snapshot",
    "delete_volume", "delete_security_group", "delete_server_group", "delete_credentials", "delete_quota",
}  # fmt: skip


def in_state(state: str) -> Instance:
    return given(everywhere()[state])


def parked_in(state: str) -> Instance:
    return given(park(everywhere()[state]))


def about(instance: Instance, name: str, **arguments: Any) -> OperationCommand:
    return intervention(instance, name, **arguments)


# --- which operation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_another_operation_than_the_running_one_is_not_found_and_the_running_one_named(name: str) -> None:
    instance = parked_in("undo_build_volume")
    assert instance.operation is not None
    refusal = refused(instance, INTERVENTIONS[name](operation_id=UUID(int=1)))
    assert refusal.code == "not_found"
    assert str(UUID(int=1)) in refusal.message
    assert f"{instance.operation.id} (create_instance) runs" in refusal.message


@pytest.mark.parametrize("state", SETTLED)
@pytest.mark.parametrize("name", INTERVENTIONS)
def test_where_no_operation_runs_none_is_found(name: str, state: str) -> None:
    refusal = refused(in_state(state), INTERVENTIONS[name](operation_id=UUID(int=1)))
    assert refusal.code == "not_found"
    assert "none runs" in refusal.message


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_another_project_finds_nothing(name: str) -> None:
    instance = parked_in("delete_volume")
    assert refused(instance, about(instance, name), project="rival").code == "not_found"


# --- cancel -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", CANCELS)
def test_a_cancel_undoes_from_where_there_is_a_way_back(state: str) -> None:
    instance = in_state(state)
    before = instance.operation
    assert when(instance, about(instance, "cancel_operation", reason="by mistake"), actor="bob") == ["CancelRequested"]
    instance_is = (instance.state, instance.operation, instance.undoing)
    assert instance_is == (CANCELS[state], before, True)
    assert instance.failure == Failure(code="cancelled", message="cancelled by bob: by mistake", state=state)
    by = instance.intervention
    assert by is not None
    assert (by.actor, by.reason, by.command) == ("bob", "by mistake", "cancel_operation")


@pytest.mark.parametrize("state", CANCELS)
def test_what_is_cancelled_ends_as_what_has_failed(state: str) -> None:
    cancelled, failed = in_state(state), in_state(state)
    cancelled.execute(about(cancelled, "cancel_operation"), context())
    fail(failed)
    assert settle(cancelled) == settle(failed)
    assert cancelled.state == failed.state == ("FAILED" if state in BUILD else "ACTIVE")


@pytest.mark.parametrize("state", [state for state in OWING if state not in CANCELS])
def test_where_there_is_no_way_back_a_cancel_is_refused_with_the_reason_and_what_to_do(state: str) -> None:
    instance = in_state(state)
    refusal = refused(instance, about(instance, "cancel_operation"))
    assert refusal.code == "forbidden_state"
    assert state in refusal.message or "has nothing that undoes it" in refusal.message
    assert "wait until it has ended" in refusal.message
    assert ("delete the instance" in refusal.message) == instance.can("deletion_requested")


@pytest.mark.parametrize(
    ("command", "state", "words"),
    [
        ("resize_volume", "resize_volume_extend", "past its point of no return, which is resize_volume_extend"),
        ("resize_volume", "resize_volume_grow", "past its point of no return, which is resize_volume_extend: it is in"),
        ("resize_flavor", "resize_flavor_confirm", "past its point of no return, which is resize_flavor_confirm"),
        ("migrate", "migrate_confirm", "past its point of no return, which is migrate_confirm"),
        ("restart", "restart_health", "has nothing that undoes it"),
        ("reboot", "reboot_server", "has nothing that undoes it"),
        ("stop_instance", "stop_server", "has nothing that undoes it"),
        ("start_instance", "start_agent", "has nothing that undoes it"),
        ("delete_instance", "delete_volume", "has nothing that undoes it; wait until it has ended"),
    ],
)
def test_the_refusal_of_a_cancel_says_which_it_is(command: str, state: str, words: str) -> None:
    instance = advance(started(command), state)
    assert words in refused(given(instance), about(instance, "cancel_operation")).message


def test_a_create_that_only_looks_for_surplus_is_past_its_point_of_no_return() -> None:
    instance = advance(unanswered(requested()), "build_surplus")
    message = refused(given(instance), about(instance, "cancel_operation")).message
    assert "past its point of no return, which is build_surplus" in message


def test_what_is_undone_already_says_so_and_what_can_be_done_if_it_is_parked() -> None:
    instance = in_state("undo_build_volume")
    message = refused(instance, about(instance, "cancel_operation")).message
    assert "is being undone already, now in undo_build_volume" in message
    assert "retry it, skip the step or abandon it" not in message
    parked = parked_in("undo_build_volume")
    assert "retry it, skip the step or abandon it" in refused(parked, about(parked, "cancel_operation")).message


def test_a_cancel_asked_for_twice_is_refused_the_second_time() -> None:
    instance = in_state("build_server")
    assert when(instance, about(instance, "cancel_operation")) == ["CancelRequested"]
    assert "is being undone already" in refused(instance, about(instance, "cancel_operation")).message


def test_a_state_entered_by_a_cancel_may_overtake_a_call() -> None:
    instance = in_state("build_server")
    instance.execute(about(instance, "cancel_operation"), context())
    assert instance.overtaken


def test_cancel_is_declared_where_a_failure_is_undone_but_in_a_rebuild_or_when_a_volume_may_have_grown() -> None:
    undone = {
        source
        for source, targets in transitions(Instance.chart)["failed"].items()
        if any(target.startswith("undo_") for target in targets)
    }
    cancels = transitions(Instance.chart)["cancel_requested"].keys()
    assert undone - cancels == {"resize_volume_extend", "rebuild_snapshot"}
    assert cancels <= undone


# --- retry --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", OWING)
def test_a_parked_operation_is_tried_again_from_the_beginning(state: str) -> None:
    instance = parked_in(state)
    key = instance.owes()
    assert when(instance, about(instance, "retry_operation"), actor="bob") == ["RetryRequested"]
    assert (instance.parked, instance.attempts, instance.retry_at, instance.owes()) == (None, 0, None, key)
    assert instance.intervention is not None
    assert instance.intervention.actor == "bob"
    settle(instance)


def test_what_waits_for_its_next_try_is_tried_now() -> None:
    instance = advance(requested(), "build_port")
    instance.note(
        "AttemptFailed", at=NOON, effect="EnsurePort", attempt=3, code="timeout", message="no answer",
        retry_at=NOON + timedelta(minutes=1),
    )  # fmt: skip
    instance = given(instance)
    assert when(instance, about(instance, "retry_operation")) == ["RetryRequested"]
    assert (instance.attempts, instance.retry_at) == (0, None)


def test_what_goes_on_by_itself_is_not_retried() -> None:
    instance = in_state("build_port")
    refusal = refused(instance, about(instance, "retry_operation"))
    assert refusal.code == "forbidden_state"
    assert "neither parked nor waits for its next try: build_port goes on" in refusal.message


# --- skip ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", OWING)
@pytest.mark.parametrize("name", ["skip_step", "abandon_operation"])
def test_what_is_not_parked_is_neither_skipped_nor_abandoned(name: str, state: str) -> None:
    instance = in_state(state)
    refusal = refused(instance, about(instance, name))
    assert refusal.code == "forbidden_state"
    assert f"is not parked: it goes on by itself, now in {state}" in refusal.message


@pytest.mark.parametrize("state", sorted(ABSENCES))
def test_where_absence_is_owed_the_step_is_skipped_and_what_is_left_is_left(state: str) -> None:
    instance, paid = parked_in(state), in_state(state)
    owed = instance.owes()
    assert owed is not None
    names = when(instance, about(instance, "skip_step", reason="removed by hand"), actor="bob")
    pay(paid)
    assert names == ["StepSkipped", Instance.events[owed.then].__name__]
    assert (instance.state, instance.parked) == (paid.state, None)
    assert instance.intervention is not None
    assert (instance.intervention.command, instance.intervention.reason) == ("skip_step", "removed by hand")


@pytest.mark.parametrize("state", [state for state in OWING if state not in ABSENCES])
def test_where_something_must_be_true_a_skip_needs_the_facts_that_say_so(state: str) -> None:
    instance = parked_in(state)
    refusal = refused(instance, about(instance, "skip_step"))
    assert refusal.code == "forbidden_state"
    assert "is no absence; make it true by hand" in refusal.message
    missing = instance.to_yield()
    good: dict[Any, Any] = {str: "by-hand", str | None: "by-hand", int: 5432}
    facts = {name: good[kind] for name, kind in missing.items()}
    assert when(instance, about(instance, "skip_step", facts=facts))[0] == "StepSkipped"
    assert {name: getattr(instance, name) for name in facts} == facts


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({}, "PrepareDatabase yields port as well"),
        ({"port": "no"}, "other types"),
        ({"port": 1, "server_id": "x"}, "does not record server_id"),
    ],
    ids=str,
)
def test_facts_that_could_not_be_recorded_are_refused(facts: dict[str, Any], words: str) -> None:
    instance = parked_in("build_database")
    refusal = refused(instance, about(instance, "skip_step", facts=facts))
    assert refusal.code == "invalid_argument"
    assert words in refusal.message


# --- abandon ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [state for state in OWING if not everywhere()[state].can("failed")])
def test_what_is_parked_can_be_abandoned_and_then_deleted(state: str) -> None:
    instance = parked_in(state)
    assert when(instance, about(instance, "abandon_operation", reason="enough"), actor="bob") == ["OperationAbandoned"]
    assert (instance.state, instance.operation, instance.parked) == ("ERROR", None, None)
    assert instance.failure is not None
    assert (instance.failure.code, instance.failure.state) == ("abandoned", state)
    assert "abandoned by bob: enough" in instance.failure.message
    assert "in use" in instance.failure.message
    instance.execute(DeleteInstance(), context())
    settle(instance)
    assert instance.state == "DELETED"


NAME = "holdfast-00000000-0000-0000-0000-000000000007"
GROUP = "security group security-group-1 (holdfast-sg-00000000-0000-0000-0000-000000000007)"
ALL = (f"server server-1 ({NAME})", f"volume volume-1 ({NAME})", f"port port-1 ({NAME})", GROUP)
GUEST, QUOTA = "the credentials of its guest", "what the quota holds for it"


@pytest.mark.parametrize(
    ("command", "state", "left"),
    [
        ("delete_instance", "delete_server", (*ALL, GUEST, QUOTA)),
        ("delete_instance", "delete_volume", (ALL[1], GROUP, GUEST, QUOTA)),
        ("delete_instance", "delete_quota", (QUOTA,)),
        ("resize_volume", "resize_volume_grow", ALL),
        ("migrate", "migrate_confirm", ALL),
    ],
)
def test_what_is_left_is_listed(command: str, state: str, left: tuple[str, ...]) -> None:
    instance = requested(UUID(int=7))
    settle(instance)
    instance.execute(EXAMPLES[command], context())
    instance = given(park(advance(instance, state)))
    instance.execute(about(instance, "abandon_operation"), context())
    assert instance.left_behind == left


def test_what_may_be_there_without_a_known_id_is_listed_by_name() -> None:
    instance = advance(requested(UUID(int=7)), "build_volume")
    fail(instance)
    park(instance)
    instance.execute(about(instance, "abandon_operation"), context())
    unknown = f"volume named {NAME}, if there is one"
    assert given(instance).left_behind == (unknown, f"port port-1 ({NAME})", GROUP, GUEST, QUOTA)


# --- all four -----------------------------------------------------------------------------------------------------


def test_an_intervention_says_who_why_and_by_which_command() -> None:
    instance = parked_in("delete_volume")
    instance.execute(about(instance, "retry_operation", reason="the node is back"), context(UUID(int=9), actor="bob"))
    assert instance.intervention == Intervention(
        command_id=UUID(int=9), command="retry_operation", actor="bob", reason="the node is back"
    )


@pytest.mark.parametrize("state", OWING)
def test_whatever_is_intervened_the_way_ahead_leads_to_a_settled_state(state: str) -> None:
    for name in INTERVENTIONS:
        instance = parked_in(state)
        try:
            instance.execute(about(instance, name), context())
        except Refusal:
            continue
        for ahead in path(Instance, instance.state, instance):
            assert Instance.owes_in(ahead)
        settle(instance)
        assert instance.operation is None


def test_active_again_after_a_cancel_takes_commands() -> None:
    instance = active()
    instance.execute(EXAMPLES["migrate"], context())
    instance.execute(about(instance, "cancel_operation"), context())
    settle(instance)
    instance.execute(EXAMPLES["restart"], context())
    assert instance.failure is None


def test_a_guest_whose_server_is_gone_already_is_not_asked_to_stop() -> None:
    instance = advance(requested(), "build_health")
    fail(instance)
    park(advance(instance, "undo_build_volume"))
    instance.execute(intervention(instance, "abandon_operation"), context())
    assert instance.status == "ERROR"
    instance.execute(DeleteInstance(), context())
    assert instance.state == "delete_server"
