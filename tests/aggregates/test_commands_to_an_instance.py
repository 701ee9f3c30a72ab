"""What an instance that exists answers to each command in each of its states: accepted, or refused with which code."""

from __future__ import annotations

from uuid import uuid4

import msgspec
import pytest

from aggregates.base import configuration
from aggregates.commands import (
    Command,
    DeleteInstance,
    Migrate,
    Reboot,
    ReleaseQuota,
    ResizeFlavor,
    ResizeVolume,
    Restart,
    StartInstance,
    StopInstance,
)
from aggregates.effects import RebootServer, ServerAbsent
from aggregates.instance import Instance
from tests.aggregates.story import given, refused, when
from tests.support.given import (
    CATALOGUE,
    EXAMPLES,
    NOON,
    active,
    advance,
    context,
    everywhere,
    requested,
    settle,
    started,
)

# What is allowed in which settled state; delete is allowed in all but DELETED.
ALLOWED = {
    "restart": {"ACTIVE", "ERROR"},
    "reboot": {"ACTIVE", "ERROR"},
    "resize_volume": {"ACTIVE"},
    "resize_flavor": {"ACTIVE"},
    "migrate": {"ACTIVE"},
    "rebuild": {"ACTIVE", "ERROR"},
    "update_access": {"ACTIVE"},
    "stop_instance": {"ACTIVE"},
    "start_instance": {"SHUTOFF"},
    "delete_instance": {"ACTIVE", "SHUTOFF", "ERROR", "FAILED"},
}
STATES = everywhere()
SETTLED = [state for state in STATES if not Instance.owes_in(state)]
OWING = [state for state in STATES if Instance.owes_in(state)]
STEADY = [name for name in EXAMPLES if name != "delete_instance"]


def in_state(state: str) -> Instance:
    return given(everywhere()[state])


def in_error() -> Instance:
    return in_state("ERROR")


@pytest.mark.parametrize("state", SETTLED)
@pytest.mark.parametrize("name", EXAMPLES)
def test_a_settled_instance_allows_what_its_state_allows_and_names_what_would_be(name: str, state: str) -> None:
    instance = in_state(state)
    if state in ALLOWED[name]:
        assert len(when(instance, EXAMPLES[name])) == 1
        return
    refusal = refused(instance, EXAMPLES[name])
    assert refusal.code == "forbidden_state"
    assert state in refusal.message
    assert all(allowed in refusal.message for allowed in ALLOWED[name])


@pytest.mark.parametrize("state", OWING)
@pytest.mark.parametrize("name", STEADY)
def test_a_running_operation_refuses_others_and_is_named(name: str, state: str) -> None:
    instance = in_state(state)
    running = instance.operation
    assert running is not None
    refusal = refused(instance, msgspec.structs.replace(EXAMPLES[name], **_other(name, instance)))
    assert refusal.code == "conflict"
    assert str(running.id) in refusal.message
    assert running.command in refusal.message
    assert state in refusal.message


def _other(name: str, instance: Instance) -> dict[str, object]:
    """Arguments that would be good in the present state, so that only the state refuses."""
    if name == "resize_volume":
        return {"new_size": instance.volume_size + 1}
    return {}


@pytest.mark.parametrize("state", [s for s in OWING if configuration(Instance.chart, s)[0] != "SHUTDOWN"])
def test_a_deletion_cancels_the_operation_that_runs(state: str) -> None:
    instance = in_state(state)
    cancelled = instance.operation
    assert when(instance, DeleteInstance(), actor="bob") == ["DeletionRequested"]
    assert cancelled is not None
    assert instance.operation is not None
    assert instance.operation.id != cancelled.id
    assert (instance.operation.command, instance.operation.actor) == ("delete_instance", "bob")
    settle(instance)
    assert instance.state == "DELETED"


@pytest.mark.parametrize("state", [s for s in OWING if configuration(Instance.chart, s)[0] == "SHUTDOWN"])
def test_a_deletion_that_runs_is_no_second_one(state: str) -> None:
    refusal = refused(in_state(state), DeleteInstance())
    assert refusal.code == "conflict"
    assert "delete_instance" in refusal.message


@pytest.mark.parametrize("state", ["build_quota", "build_server", "FAILED", "SHUTOFF"])
def test_a_deletion_asks_no_guest_where_none_can_answer(state: str) -> None:
    instance = in_state(state)
    instance.execute(DeleteInstance(), context())
    assert instance.state == "delete_server"


def test_a_deletion_owes_the_absence_of_what_was_made_meanwhile() -> None:
    instance = advance(requested(), "build_server")
    instance.execute(DeleteInstance(), context())
    instance.note("LateOutcome", at=NOON, effect="EnsureServer", facts={"server_id": "server-9", "host": "host-1"})
    instance = given(instance)
    assert instance.state == "delete_server"
    effect = instance.owing["delete_server"].effect(instance)
    assert effect == ServerAbsent(instance_id=instance.id, name=instance.resource_name, server_id="server-9")


@pytest.mark.parametrize("name", ["create_instance", *EXAMPLES])
def test_a_parked_operation_refuses_others_but_gives_way_to_a_deletion(name: str) -> None:
    instance = started(name)
    instance.note("OperationParked", at=NOON, effect="Any", code="cloud_error", message="gone")
    instance = given(instance)
    assert refused(instance, Restart()).code == "conflict"
    if name == "delete_instance":
        assert refused(instance, DeleteInstance()).code == "conflict"
        return
    when(instance, DeleteInstance())
    assert instance.parked is None


@pytest.mark.parametrize("state", STATES)
def test_another_project_finds_nothing(state: str) -> None:
    for command in EXAMPLES.values():
        assert refused(in_state(state), command, project="rival").code == "not_found"


def test_a_command_of_another_kind_is_unknown() -> None:
    assert refused(given(active()), ReleaseQuota(instance_id=uuid4())).code == "unknown_command"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (ResizeVolume(new_size=1), "larger than the present 1 GiB"),
        (ResizeVolume(new_size=1025), "at most 1024 GiB"),
        (ResizeFlavor(flavor="huge"), "no flavor huge; there are: small, large"),
        (ResizeFlavor(flavor="small"), "has flavor small already"),
        (Migrate(host="host-9"), "no host host-9; there are: host-1, host-2"),
        (Migrate(host="host-1"), "is on host host-1 already"),
    ],
    ids=str,
)
def test_an_argument_that_makes_no_sense_here_is_refused(command: Command, words: str) -> None:
    refusal = refused(given(active()), command)
    assert refusal.code == "invalid_argument"
    assert words in refusal.message


def test_a_cloud_that_names_no_hosts_may_be_asked_for_any() -> None:
    nameless = msgspec.structs.replace(CATALOGUE, hosts=())
    instance = given(active())
    assert when(instance, Migrate(host="host-9"), catalogue=nameless) == ["MigrationRequested"]
    assert instance.target_host == "host-9"


def test_a_migration_without_a_host_leaves_the_choice_to_the_cloud() -> None:
    instance = given(active())
    when(instance, Migrate())
    assert instance.target_host is None


@pytest.mark.parametrize("hard", [True, False])
def test_a_reboot_is_as_hard_as_it_was_asked_for(hard: bool) -> None:
    instance = given(active())
    when(instance, Reboot(hard=hard))
    effect = instance.owing["reboot_server"].effect(instance)
    assert effect == RebootServer(instance_id=instance.id, server_id="server-1", hard=hard)


def test_a_new_operation_forgets_the_failure_of_the_one_before() -> None:
    instance = in_error()
    assert instance.failure is not None
    when(instance, Restart())
    assert instance.failure is None


def test_an_operation_has_its_commands_time_unless_the_command_says_otherwise() -> None:
    for command in (Restart(), DeleteInstance()):
        instance = given(active())
        when(instance, command)
        assert instance.operation is not None
        assert instance.operation.deadline == NOON + command.limit


def test_what_was_stopped_starts_and_nothing_else() -> None:
    instance = given(active())
    when(instance, StopInstance())
    settle(instance)
    assert instance.status == "SHUTOFF"
    assert when(instance, StartInstance())[-1] == "StartRequested"
