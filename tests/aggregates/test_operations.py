"""Each operation's path when all goes well, what undoes it from each state that can fail, and where it ends.

The tables follow the design of the operations: order, undo, point of no return.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from aggregates.base import LastLook, Parked, WrongFactsError
from aggregates.commands import Migrate, Rebuild, UpdateAccess
from aggregates.effects import (
    Access,
    AccessRulesAbsent,
    CloudEffect,
    EnsureAccessRules,
    EnsureFloatingAddress,
    ExtendVolume,
    MigrateServer,
    PortAbsent,
    RebuildDatabase,
    RebuildServer,
    RevertServer,
    SendCommand,
    StartDatabase,
    SurplusAbsent,
)
from aggregates.instance import Instance
from tests.aggregates.story import given, names, refused
from tests.support.given import (
    BARE,
    EXAMPLES,
    NOON,
    active,
    advance,
    context,
    everywhere,
    fail,
    intervention,
    pay,
    requested,
    requested_before,
    settle,
    started,
    unanswered,
)

BUILD_REST = "build_credentials build_server build_attachment build_database build_health"
DELETE_REST = "delete_security_group delete_credentials delete_quota"
RESTART_RESIZED = "resize_flavor_agent resize_flavor_start resize_flavor_health resize_flavor_confirm"

# command: the states passed, the end, the name of the first event
PATHS = {
    "create_instance": (
        "build_quota build_security_group build_rules build_port build_volume " + BUILD_REST,
        "ACTIVE",
        "InstanceRequested",
    ),
    "delete_instance": (
        "delete_database delete_server delete_port delete_volume delete_security_group delete_credentials delete_quota",
        "DELETED",
        "DeletionRequested",
    ),
    "restart": ("restart_database restart_health", "ACTIVE", "RestartRequested"),
    "reboot": ("reboot_stop reboot_server reboot_agent reboot_start reboot_health", "ACTIVE", "RebootRequested"),
    "resize_volume": (
        "resize_volume_quota resize_volume_extend resize_volume_grow",
        "ACTIVE",
        "VolumeResizeRequested",
    ),
    "resize_flavor": (
        "resize_flavor_quota resize_flavor_stop resize_flavor_server " + RESTART_RESIZED,
        "ACTIVE",
        "FlavorResizeRequested",
    ),
    "migrate": (
        "migrate_stop migrate_server migrate_agent migrate_start migrate_health migrate_confirm",
        "ACTIVE",
        "MigrationRequested",
    ),
    "rebuild": (
        "rebuild_stop rebuild_server rebuild_agent rebuild_database rebuild_health",
        "ACTIVE",
        "RebuildRequested",
    ),
    "update_access": (
        "update_rules_added update_rules_removed update_address_created",
        "ACTIVE",
        "AccessUpdateRequested",
    ),
    "stop_instance": ("stop_database stop_server", "SHUTOFF", "StopRequested"),
    "start_instance": ("start_server start_agent start_database start_health", "ACTIVE", "StartRequested"),
}

UNDO_GROUP = "undo_build_security_group undo_build_credentials undo_build_quota"
UNDO_VOLUME = "undo_build_volume undo_build_port " + UNDO_GROUP
UNDO_BUILD = "undo_build_server " + UNDO_VOLUME
UNDO_RULES = "undo_update_rules_removed undo_update_rules_added"
UNDO_FLAVOR = "undo_resize_flavor_server undo_resize_flavor_agent undo_resize_flavor_start undo_resize_flavor_quota"
UNDO_MIGRATION = "undo_migrate_server undo_migrate_agent undo_migrate_start"

# command: state that fails -> the states passed from there, the end
UNDOES = {
    "create_instance": {
        "build_quota": ("undo_build_quota", "FAILED"),
        "build_security_group": (UNDO_GROUP, "FAILED"),
        "build_rules": (UNDO_GROUP, "FAILED"),
        "build_port": ("undo_build_port " + UNDO_GROUP, "FAILED"),
        "build_volume": (UNDO_VOLUME, "FAILED"),
        "build_credentials": (UNDO_VOLUME, "FAILED"),
        "build_server": (UNDO_BUILD, "FAILED"),
        "build_attachment": (UNDO_BUILD, "FAILED"),
        "build_database": (UNDO_BUILD, "FAILED"),
        "build_health": (UNDO_BUILD, "FAILED"),
    },
    # What is being deleted need not be stopped cleanly; nothing else of a deletion may be left out.
    "delete_instance": {
        "delete_database": (
            "delete_server delete_port delete_volume " + DELETE_REST,
            "DELETED",
        )
    },
    "restart": {"restart_database": ("", "ERROR"), "restart_health": ("", "ERROR")},
    "reboot": {
        "reboot_stop": ("", "ERROR"),
        "reboot_server": ("", "ERROR"),
        "reboot_agent": ("", "ERROR"),
        "reboot_start": ("", "ERROR"),
        "reboot_health": ("", "ERROR"),
    },
    "resize_volume": {
        "resize_volume_quota": ("undo_resize_volume_quota", "ACTIVE"),
        "resize_volume_extend": ("undo_resize_volume_quota", "ACTIVE"),
    },
    "resize_flavor": {
        "resize_flavor_quota": ("undo_resize_flavor_quota", "ACTIVE"),
        "resize_flavor_stop": (UNDO_FLAVOR, "ACTIVE"),
        "resize_flavor_server": (UNDO_FLAVOR, "ACTIVE"),
        "resize_flavor_agent": (UNDO_FLAVOR, "ACTIVE"),
        "resize_flavor_start": (UNDO_FLAVOR, "ACTIVE"),
        "resize_flavor_health": (UNDO_FLAVOR, "ACTIVE"),
    },
    "migrate": {
        "migrate_stop": (UNDO_MIGRATION, "ACTIVE"),
        "migrate_server": (UNDO_MIGRATION, "ACTIVE"),
        "migrate_agent": (UNDO_MIGRATION, "ACTIVE"),
        "migrate_start": (UNDO_MIGRATION, "ACTIVE"),
        "migrate_health": (UNDO_MIGRATION, "ACTIVE"),
    },
    # A server that the cloud does not make anew is as it was, but for its database, which is stopped.
    "rebuild": {"rebuild_stop": ("", "ERROR"), "rebuild_server": ("", "ERROR")},
    "update_access": {
        "update_rules_added": (UNDO_RULES, "ACTIVE"),
        "update_rules_removed": (UNDO_RULES, "ACTIVE"),
        "update_address_created": ("undo_update_address " + UNDO_RULES, "ACTIVE"),
    },
    "stop_instance": {"stop_database": ("", "ERROR"), "stop_server": ("", "ERROR")},
    "start_instance": {
        "start_server": ("", "ERROR"),
        "start_agent": ("", "ERROR"),
        "start_database": ("", "ERROR"),
        "start_health": ("", "ERROR"),
    },
}

# transition: the effect that is paid when it is taken
PAID = {
    "quota_reserved": "SendCommand reserve_quota",
    "quota_released": "SendCommand release_quota",
    "server_group_created": "EnsureServerGroup",
    "security_group_created": "EnsureSecurityGroup",
    "access_rules_added": "EnsureAccessRules",
    "access_rules_removed": "AccessRulesAbsent",
    "port_created": "EnsurePort",
    "management_port_created": "EnsureManagementPort",
    "port_secured": "EnsurePortGroup",
    "port_unsecured": "PortGroupAbsent",
    "floating_address_created": "EnsureFloatingAddress",
    "volume_created": "EnsureVolume",
    "credentials_issued": "EnsureCredentials",
    "server_created": "EnsureServer",
    "volume_attached": "EnsureAttachment",
    "volume_detached": "DetachVolume",
    "database_rebuilt": "RebuildDatabase",
    "database_prepared": "PrepareDatabase",
    "database_healthy": "AwaitHealthy",
    "database_restarted": "RestartDatabase",
    "database_stopped": "StopDatabase",
    "database_started": "StartDatabase",
    "server_rebooted": "RebootServer",
    "server_rebuilt": "RebuildServer",
    "server_resized": "ResizeServer",
    "server_migrated": "MigrateServer",
    "server_stopped": "StopServer",
    "server_started": "StartServer",
    "server_reverted": "RevertServer",
    "agent_answered": "AwaitAgent",
    "flavor_resize_confirmed": "ConfirmServer",
    "migration_confirmed": "ConfirmServer",
    "volume_extended": "ExtendVolume",
    "file_system_grown": "GrowFileSystem",
    "server_deleted": "ServerAbsent",
    "floating_address_deleted": "FloatingAddressAbsent",
    "port_deleted": "PortAbsent",
    "management_port_deleted": "PortAbsent",
    "security_group_deleted": "SecurityGroupAbsent",
    "server_group_deleted": "ServerGroupAbsent",
    "volume_deleted": "VolumeAbsent",
    "credentials_revoked": "CredentialsAbsent",
    "surplus_removed": "SurplusAbsent",
}
# An undone resize gives back what it had asked for by asking for the old again.
RESERVES_THE_OLD = {"undo_resize_volume_quota", "undo_resize_flavor_quota"}
ATTEMPT = {"effect": "EnsurePort", "attempt": 1, "code": "timeout", "message": "no answer", "retry_at": NOON}

FAILURES = [(command, state, *undo) for command, states in UNDOES.items() for state, undo in states.items()]
IRREVERSIBLE = [
    (command, state) for command, (path, *_) in PATHS.items() for state in path.split() if state not in UNDOES[command]
]


def test_the_tables_speak_of_every_command() -> None:
    assert PATHS.keys() == UNDOES.keys() == {"create_instance", *EXAMPLES}


@pytest.mark.parametrize("command", PATHS)
def test_a_command_passes_its_states_in_order(command: str) -> None:
    path, end, first = PATHS[command]
    instance = started(command)
    assert names(instance)[0 if command == "create_instance" else -1] == first
    assert settle(instance) == path.split()
    assert instance.state == end


@pytest.mark.parametrize("command", PATHS)
def test_a_command_plans_what_it_passes(command: str) -> None:
    operation = started(command).operation
    assert operation is not None
    assert list(operation.plan) == PATHS[command][0].split()


@pytest.mark.parametrize("command", PATHS)
def test_an_operation_that_is_done_leaves_neither_operation_nor_failure(command: str) -> None:
    instance = started(command)
    settle(instance)
    assert instance.operation is None
    assert instance.failure is None


@pytest.mark.parametrize(("command", "state", "path", "end"), FAILURES)
def test_a_failure_is_undone(command: str, state: str, path: str, end: str) -> None:
    instance = advance(started(command), state)
    fail(instance)
    assert settle(instance) == path.split()
    assert instance.state == end


@pytest.mark.parametrize(("command", "state", "path", "end"), FAILURES)
def test_a_failure_is_kept_with_its_cause_until_the_next_operation(
    command: str, state: str, path: str, end: str
) -> None:
    instance = advance(started(command), state)
    fail(instance, "no_valid_host", "No valid host was found.")
    settle(instance)
    failure = given(instance).failure
    assert failure is not None
    assert (failure.code, failure.message, failure.state) == ("no_valid_host", "No valid host was found.", state)


@pytest.mark.parametrize(("command", "state"), IRREVERSIBLE)
def test_past_the_point_of_no_return_nothing_fails(command: str, state: str) -> None:
    assert not advance(started(command), state).can("failed")


@pytest.mark.parametrize("state", sorted({s for _, _, path, _ in FAILURES for s in path.split()}))
def test_what_undoes_never_fails_it_parks(state: str) -> None:
    for command, failing, path, _ in FAILURES:
        if state in path.split():
            instance = advance(started(command), failing)
            fail(instance)
            assert not advance(instance, state).can("failed")


@pytest.mark.parametrize(("command", "state"), [("start_instance", "start_server"), ("stop_instance", "stop_server")])
def test_where_the_database_is_stopped_and_the_server_may_be_off_a_deletion_asks_no_guest(
    command: str, state: str
) -> None:
    instance = advance(started(command), state)
    instance.execute(EXAMPLES["delete_instance"], context())
    assert instance.state == "delete_server"


def test_where_the_server_is_on_a_deletion_has_the_database_stopped_first() -> None:
    for command, state in (("start_instance", "start_agent"), ("stop_instance", "stop_database")):
        instance = advance(started(command), state)
        instance.execute(EXAMPLES["delete_instance"], context())
        assert instance.state == "delete_database"


@pytest.mark.parametrize("state", [state for state in everywhere() if Instance.owes_in(state)])
def test_a_state_owes_what_its_transition_says_was_done(state: str) -> None:
    owed = everywhere()[state].owes()
    assert owed is not None
    name, _, command = PAID[owed.then].partition(" ")
    assert owed.effect.type_name == name
    if isinstance(owed.effect, SendCommand):
        assert owed.effect.command == ("reserve_quota" if state in RESERVES_THE_OLD else command)


# --- facts --------------------------------------------------------------------------------------------------------


def test_a_built_instance_knows_what_was_made() -> None:
    instance = given(active())
    assert (instance.port_id, instance.volume_id, instance.server_id) == ("port-1", "volume-1", "server-1")
    assert (instance.address, instance.port, instance.host) == ("127.9.9.9", 5432, "host-1")


def test_a_create_that_shall_be_kept_ends_in_error_with_all_that_was_made() -> None:
    for state in ("build_server", "build_attachment", "build_database", "build_health"):
        instance = advance(requested(keep_on_failure=True), state)
        fail(instance)
        assert (instance.state, instance.operation, instance.volume_id) == ("ERROR", None, "volume-1")


def test_a_create_that_shall_be_kept_is_undone_while_there_is_no_server_to_look_at() -> None:
    for state in ("build_quota", "build_port", "build_volume", "build_credentials"):
        instance = advance(requested(keep_on_failure=True), state)
        fail(instance)
        settle(instance)
        assert instance.state == "FAILED"


def test_the_volume_has_its_new_size_once_it_is_extended() -> None:
    instance = advance(started("resize_volume"), "resize_volume_extend")
    owed = instance.owes()
    assert instance.volume_size == 1
    assert owed is not None
    assert owed.effect == ExtendVolume(instance_id=instance.id, volume_id="volume-1", size=2)
    pay(instance)
    assert given(instance).volume_size == 2


def test_a_failed_extension_leaves_the_old_size_and_reserves_it_again() -> None:
    instance = advance(started("resize_volume"), "resize_volume_extend")
    fail(instance)
    owed = instance.owes()
    assert owed is not None
    assert isinstance(owed.effect, SendCommand)
    assert owed.effect.args["volumes"] == instance.volume_size == 1


def test_the_flavor_is_the_old_one_until_the_new_one_is_confirmed() -> None:
    instance = advance(started("resize_flavor"), "resize_flavor_confirm")
    assert instance.flavor.id == "small"
    pay(instance)
    assert given(instance).flavor.id == "large"


def _ram_configured(instance: Instance) -> int:
    owed = instance.owes()
    assert owed is not None
    assert isinstance(owed.effect, StartDatabase)
    return owed.effect.ram


def test_the_database_is_started_for_the_memory_that_its_server_has() -> None:
    forward = advance(started("resize_flavor"), "resize_flavor_start")
    assert _ram_configured(forward) == 2048
    fail(forward)
    assert _ram_configured(advance(forward, "undo_resize_flavor_start")) == 512


def test_a_flavor_that_was_given_up_does_not_come_back_with_a_later_start() -> None:
    instance = advance(started("resize_flavor"), "resize_flavor_health")
    fail(instance)
    settle(instance)
    instance = given(instance)
    again = started("reboot")
    assert instance.flavor.id == "small"
    instance.execute(EXAMPLES["reboot"], context())
    assert _ram_configured(advance(instance, "reboot_start")) == _ram_configured(advance(again, "reboot_start"))


def test_a_reverted_server_goes_back_to_flavor_and_host_that_it_had() -> None:
    for command in ("resize_flavor", "migrate"):
        instance = advance(started(command), f"{command}_health")
        fail(instance)
        owed = instance.owes()
        assert owed is not None
        assert owed.effect == RevertServer(
            instance_id=instance.id, server_id="server-1", flavor_id="small", host="host-1"
        )


def test_the_host_is_the_old_one_until_the_migration_is_confirmed() -> None:
    instance = active()
    instance.execute(Migrate(host="host-2"), context())
    advance(instance, "migrate_server")
    owed = instance.owes()
    assert owed is not None
    assert owed.effect == MigrateServer(
        instance_id=instance.id, server_id="server-1", from_host="host-1", host="host-2"
    )
    advance(instance, "migrate_confirm")
    assert instance.host == "host-1"
    pay(instance)
    assert given(instance).host == "host-2"


def test_absence_is_owed_by_name_when_no_id_is_known() -> None:
    instance = advance(requested(), "build_port")
    fail(instance)
    owed = instance.owes()
    assert owed is not None
    assert owed.effect == PortAbsent(instance_id=instance.id, name=f"holdfast-{instance.id}", port_id=None)


def test_the_key_of_an_effect_is_the_same_over_all_attempts_and_another_in_the_next_state() -> None:
    instance = advance(requested(), "build_port")
    first = instance.owes()
    assert first is not None
    assert first.key == f"{instance.id}:4:EnsurePort"
    instance.note("AttemptFailed", at=NOON, **ATTEMPT)
    assert instance.owes() == first
    pay(instance)
    second = instance.owes()
    assert second is not None
    assert second.key == f"{instance.id}:6:EnsureVolume"


# --- unanswered calls ------------------------------------------------------------------------------------------

LATER = NOON + timedelta(seconds=60)
CLEARING = {
    "ServerAbsent", "VolumeAbsent", "PortAbsent", "FloatingAddressAbsent", "SecurityGroupAbsent", "ServerGroupAbsent",
    "PortGroupAbsent", "AccessRulesAbsent", "SurplusAbsent", "RevertServer", "CredentialsAbsent",
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


# --- attempts and parking -----------------------------------------------------------------------------------------


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


# --- access -------------------------------------------------------------------------------------------------------

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


# --- rebuilding, and volumes that cannot be extended in use ------------------------------------------------------


def test_a_server_is_made_anew_from_the_image_named_and_the_database_keeps_its_port() -> None:
    instance = active()
    instance.execute(Rebuild(image_id="image-2"), context())
    advance(instance, "rebuild_server")
    owed = instance.owes()
    assert owed is not None
    assert isinstance(owed.effect, RebuildServer)
    assert owed.effect.image_id == "image-2"
    advance(instance, "rebuild_database")
    owed = instance.owes()
    assert owed is not None
    assert owed.effect == RebuildDatabase(instance_id=instance.id, ram=512, volume_size=1, port=5432, overrides={})
    settle(instance)
    assert given(instance).image_id == "image-2"


def test_without_an_image_it_is_the_one_that_the_instance_was_made_from() -> None:
    instance = active(image_id="image-1")
    instance.execute(Rebuild(), context())
    assert instance.new_image_id == "image-1"


def test_in_error_the_guest_is_not_asked_to_stop_since_it_may_be_what_is_broken() -> None:
    instance = advance(started("restart"), "restart_health")
    fail(instance)
    assert instance.state == "ERROR"
    instance.execute(Rebuild(), context())
    assert settle(instance) == ["rebuild_server", "rebuild_agent", "rebuild_database", "rebuild_health"]
    assert given(instance).failure is None


def test_what_was_never_built_to_the_end_is_not_rebuilt() -> None:
    instance = advance(requested(keep_on_failure=True), "build_database")
    fail(instance)
    assert instance.state == "ERROR"
    refused_with = refused(given(instance), Rebuild())
    assert refused_with.code == "forbidden_state"
    assert "no database yet to be kept" in refused_with.message


def test_an_image_is_refused_where_the_cloud_honours_none() -> None:
    assert refused(given(active()), Rebuild(image_id="image-2"), catalogue=BARE).code == "unsupported"


OFFLINE = [
    "resize_volume_quota", "resize_volume_stop", "resize_volume_detach", "resize_volume_extend",
    "resize_volume_attach", "resize_volume_grow", "resize_volume_start", "resize_volume_health",
]  # fmt: skip


def test_a_volume_that_cannot_be_extended_in_use_is_detached_meanwhile() -> None:
    instance = active(volume_type="remote")
    instance.execute(EXAMPLES["resize_volume"], context())
    operation = instance.operation
    assert operation is not None
    assert list(operation.plan) == OFFLINE
    assert settle(instance) == OFFLINE
    assert given(instance).volume_size == 2


@pytest.mark.parametrize("state", ["resize_volume_stop", "resize_volume_detach", "resize_volume_extend"])
def test_if_it_is_not_extended_it_is_attached_again_and_its_database_started(state: str) -> None:
    instance = active(volume_type="remote")
    instance.execute(EXAMPLES["resize_volume"], context())
    fail(advance(instance, state))
    assert settle(instance) == [
        "undo_resize_volume_attach",
        "undo_resize_volume_start",
        "undo_resize_volume_quota",
    ]
    assert (instance.state, given(instance).volume_size) == ("ACTIVE", 1)


@pytest.mark.parametrize("state", OFFLINE[4:])
def test_once_it_is_extended_there_is_only_forward(state: str) -> None:
    instance = active(volume_type="remote")
    instance.execute(EXAMPLES["resize_volume"], context())
    assert not advance(instance, state).can("failed")
