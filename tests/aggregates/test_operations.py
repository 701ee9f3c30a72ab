"""Each operation's path when all goes well, what undoes it from each state that can fail, and where it ends.

The tables follow the design of the operations: order, undo, point of no return.
"""

from __future__ import annotations

import pytest

from aggregates.effects import (
    SendCommand,
)
from aggregates.instance import Instance
from tests.aggregates.story import given, names
from tests.support.given import (
    EXAMPLES,
    advance,
    context,
    everywhere,
    fail,
    settle,
    started,
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
    "snapshot_created": "EnsureSnapshot",
    "snapshot_deleted": "SnapshotAbsent",
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
