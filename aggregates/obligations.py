"""What each state of an instance owes: the table, and how each effect follows from the recorded facts.

Pure: the same instance always owes the same. An id that the chart's order guarantees is taken for granted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, UUID, uuid5

import msgspec

from aggregates.base import Owed
from aggregates.effects import (
    Access,
    AccessRulesAbsent,
    AwaitAgent,
    AwaitHealthy,
    CloudEffect,
    ConfirmServer,
    CredentialsAbsent,
    DetachVolume,
    Effect,
    EnsureAccessRules,
    EnsureAttachment,
    EnsureCredentials,
    EnsureFloatingAddress,
    EnsureManagementPort,
    EnsurePort,
    EnsurePortGroup,
    EnsureSecurityGroup,
    EnsureServer,
    EnsureServerGroup,
    EnsureSnapshot,
    EnsureVolume,
    ExtendVolume,
    FloatingAddressAbsent,
    GrowFileSystem,
    MigrateServer,
    PortAbsent,
    PortGroupAbsent,
    PrepareDatabase,
    RebootServer,
    RebuildDatabase,
    RebuildServer,
    ResizeServer,
    RestartDatabase,
    RevertServer,
    SecurityGroupAbsent,
    SendCommand,
    ServerAbsent,
    ServerGroupAbsent,
    SnapshotAbsent,
    StartDatabase,
    StartServer,
    StopDatabase,
    StopServer,
    SurplusAbsent,
    VolumeAbsent,
)

if TYPE_CHECKING:
    from aggregates.instance import Instance


def quota_id(project: str) -> UUID:
    """The id of the aggregate that keeps a project's quota."""
    return uuid5(NAMESPACE_URL, f"holdfast:quota:{project}")


def _reserve(i: Instance, *, ram: int, volumes: int) -> SendCommand:
    return SendCommand(
        project=i.project,
        kind="quota",
        aggregate_id=quota_id(i.project),
        command="reserve_quota",
        args={"instance_id": str(i.id), "ram": ram, "volumes": volumes, "as_of": i.entered},
    )


def _reserve_present(i: Instance) -> SendCommand:
    return _reserve(i, ram=i.flavor.ram, volumes=i.volume_size)


def _reserve_new_volume(i: Instance) -> SendCommand:
    return _reserve(i, ram=i.flavor.ram, volumes=i.new_volume_size or i.volume_size)


def _reserve_new_flavor(i: Instance) -> SendCommand:
    return _reserve(i, ram=(i.new_flavor or i.flavor).ram, volumes=i.volume_size)


def _release(i: Instance) -> SendCommand:
    return SendCommand(
        project=i.project,
        kind="quota",
        aggregate_id=quota_id(i.project),
        command="release_quota",
        args={"instance_id": str(i.id)},
    )


def _server_group(i: Instance) -> EnsureServerGroup:
    return EnsureServerGroup(instance_id=i.id, name=i.resource_name, project=i.project, policy=i.locality or "")


def _security_group(i: Instance) -> EnsureSecurityGroup:
    return EnsureSecurityGroup(instance_id=i.id, name=i.security_group_name, project=i.project)


def _rules(access: Access | None, i: Instance, *, again: bool = False) -> EnsureAccessRules:
    return EnsureAccessRules(
        instance_id=i.id,
        security_group_id=i.security_group_id or "",
        port=_tcp_port(i),
        cidrs=admitted(access),
        again=again,
    )


def _no_other_rules(access: Access | None, i: Instance) -> AccessRulesAbsent:
    return AccessRulesAbsent(
        instance_id=i.id, security_group_id=i.security_group_id or "", port=_tcp_port(i), keep=admitted(access)
    )


def _tcp_port(i: Instance) -> int:
    """Where the database is reached: what its guest said or, before that, the datastore's own."""
    return i.port or i.datastore_port or 0


def admitted(access: Access | None) -> tuple[str, ...]:
    """The networks that are let in."""
    return () if access is None else access.allowed_cidrs


def _having(access: Access | None, *, public: bool | None = None, cidrs: tuple[str, ...] | None = None) -> Access:
    """The access with one part of it changed. Of what was not guarded nothing is kept."""
    known = access or Access(allowed_cidrs=())
    return Access(
        public=known.public if public is None else public,
        allowed_cidrs=known.allowed_cidrs if cidrs is None else cidrs,
    )


def _admitting_also(access: Access | None, others: Access | None) -> Access:
    return _having(access, cidrs=tuple(dict.fromkeys((*admitted(access), *admitted(others)))))


def _port(i: Instance) -> EnsurePort:
    return EnsurePort(
        instance_id=i.id,
        name=i.resource_name,
        project=i.project,
        network=i.nics[0] if i.nics else None,
        security_group_id=i.security_group_id,
    )


def _management_port(i: Instance) -> EnsureManagementPort:
    return EnsureManagementPort(
        instance_id=i.id, name=i.management_port_name, project=i.project, network=i.management_network or ""
    )


def _address(i: Instance) -> EnsureFloatingAddress:
    return EnsureFloatingAddress(instance_id=i.id, name=i.resource_name, project=i.project, port_id=i.port_id or "")


def _volume(i: Instance) -> EnsureVolume:
    return EnsureVolume(
        instance_id=i.id,
        name=i.resource_name,
        project=i.project,
        size=i.volume_size,
        volume_type=i.volume_type,
        availability_zone=i.availability_zone,
    )


def _snapshot(i: Instance) -> EnsureSnapshot:
    return EnsureSnapshot(instance_id=i.id, name=i.resource_name, project=i.project, volume_id=i.volume_id or "")


def _server(i: Instance) -> EnsureServer:
    return EnsureServer(
        instance_id=i.id,
        name=i.resource_name,
        project=i.project,
        flavor_id=i.flavor.id,
        port_id=i.port_id or "",
        management_port_id=i.management_port_id,
        server_group_id=i.server_group_id,
        image_id=i.image_id,
        availability_zone=i.availability_zone,
        datastore=i.datastore,
        datastore_version=i.datastore_version,
    )


def _attachment(i: Instance) -> EnsureAttachment:
    return EnsureAttachment(instance_id=i.id, server_id=i.server_id or "", volume_id=i.volume_id or "")


def _reattachment(i: Instance) -> EnsureAttachment:
    return EnsureAttachment(instance_id=i.id, server_id=i.server_id or "", volume_id=i.volume_id or "", again=True)


def _detachment(i: Instance) -> DetachVolume:
    return DetachVolume(instance_id=i.id, server_id=i.server_id or "", volume_id=i.volume_id or "")


def _rebuild(i: Instance) -> RebuildServer:
    return RebuildServer(
        instance_id=i.id,
        server_id=i.server_id or "",
        name=i.resource_name,
        project=i.project,
        image_id=i.new_image_id,
        datastore=i.datastore,
        datastore_version=i.datastore_version,
    )


def _rebuild_database(i: Instance) -> RebuildDatabase:
    return RebuildDatabase(
        instance_id=i.id, ram=i.flavor.ram, volume_size=i.volume_size, port=i.port or 0, overrides=i.overrides
    )


def _prepare(i: Instance) -> PrepareDatabase:
    return PrepareDatabase(
        instance_id=i.id,
        project=i.project,
        datastore=i.datastore,
        datastore_version=i.datastore_version,
        ram=i.flavor.ram,
        volume_size=i.volume_size,
        databases=i.databases,
        users=i.users,
        root_password_ref=i.root_password_ref,
        overrides=i.overrides,
    )


def _start(i: Instance) -> StartDatabase:
    flavor = i.new_flavor if i.state == "resize_flavor_start" and i.new_flavor else i.flavor
    return StartDatabase(instance_id=i.id, ram=flavor.ram, overrides=i.overrides)


def _revert(i: Instance) -> RevertServer:
    return RevertServer(
        instance_id=i.id,
        server_id=i.server_id or "",
        flavor_id=i.flavor.id,
        host=i.host or "",
    )


def _migrate(i: Instance) -> MigrateServer:
    return MigrateServer(instance_id=i.id, server_id=i.server_id or "", from_host=i.host or "", host=i.target_host)


def _server_absent(i: Instance) -> ServerAbsent:
    return ServerAbsent(instance_id=i.id, name=i.resource_name, server_id=i.server_id)


def _volume_absent(i: Instance) -> VolumeAbsent:
    return VolumeAbsent(instance_id=i.id, name=i.resource_name, volume_id=i.volume_id)


def _snapshot_absent(i: Instance) -> SnapshotAbsent:
    return SnapshotAbsent(instance_id=i.id, name=i.resource_name, snapshot_id=i.snapshot_id)


def _port_absent(i: Instance) -> PortAbsent:
    return PortAbsent(instance_id=i.id, name=i.resource_name, port_id=i.port_id)


def _management_port_absent(i: Instance) -> PortAbsent:
    return PortAbsent(instance_id=i.id, name=i.management_port_name, port_id=i.management_port_id)


def _port_group(i: Instance) -> EnsurePortGroup:
    return EnsurePortGroup(instance_id=i.id, port_id=i.port_id or "", security_group_id=i.security_group_id or "")


def _port_group_absent(i: Instance) -> PortGroupAbsent:
    return PortGroupAbsent(instance_id=i.id, port_id=i.port_id or "", security_group_id=i.security_group_id or "")


def _address_absent(i: Instance) -> FloatingAddressAbsent:
    return FloatingAddressAbsent(
        instance_id=i.id, name=i.resource_name, floating_address_id=i.floating_address_id, port_id=i.port_id
    )


def _security_group_absent(i: Instance) -> SecurityGroupAbsent:
    return SecurityGroupAbsent(instance_id=i.id, name=i.security_group_name, security_group_id=i.security_group_id)


def _server_group_absent(i: Instance) -> ServerGroupAbsent:
    return ServerGroupAbsent(instance_id=i.id, name=i.resource_name, server_group_id=i.server_group_id)


def _surplus_absent(i: Instance) -> SurplusAbsent:
    kept = (i.snapshot_id, i.volume_id, i.server_group_id, i.security_group_id, i.floating_address_id)
    return SurplusAbsent(
        instance_id=i.id,
        name=i.resource_name,
        security_group_name=i.security_group_name,
        keep=tuple(each for each in kept if each is not None),
    )


def _stop_and_let_go(i: Instance) -> StopDatabase:
    return StopDatabase(instance_id=i.id, release_volume=True)


def _on_server(effect: type[Any]) -> Callable[[Instance], Any]:
    return lambda i: effect(instance_id=i.id, server_id=i.server_id or "")


def _on_instance(effect: type[Any]) -> Callable[[Instance], Any]:
    return lambda i: effect(instance_id=i.id)


def _reached_from_inside(i: Instance) -> dict[str, Any]:
    return {"access": None if i.access is None else _having(i.access, public=False), "public_address": None}


def _as_it_was(i: Instance) -> dict[str, Any]:
    return {"access": i.access}


# Where there is no way back: about a quarter of an hour of tries before the operation parks.
STUBBORN = 20

_old_quota = Owed("quota_released", _reserve_present, attempts=STUBBORN)
_no_quota = Owed("quota_released", _release, attempts=STUBBORN, absence=True)
_stop = Owed("database_stopped", _on_instance(StopDatabase))
# Before the volume is taken from the machine, or the machine is switched off hard.
_let_go = Owed("database_stopped", _stop_and_let_go)
_agent = Owed("agent_answered", _on_instance(AwaitAgent))
_started = Owed("database_started", _start)
_health = Owed("database_healthy", _on_instance(AwaitHealthy))
_reverted = Owed("server_reverted", _revert, attempts=STUBBORN)
_server_gone = Owed("server_deleted", _server_absent, attempts=STUBBORN, absence=True)
_snapshot_gone = Owed("snapshot_deleted", _snapshot_absent, attempts=STUBBORN, absence=True)
_volume_gone = Owed("volume_deleted", _volume_absent, attempts=STUBBORN, absence=True)
_port_gone = Owed("port_deleted", _port_absent, attempts=STUBBORN, absence=True)
_management_port_gone = Owed("management_port_deleted", _management_port_absent, attempts=STUBBORN, absence=True)
_address_gone = Owed(
    "floating_address_deleted",
    _address_absent,
    _reached_from_inside,
    attempts=STUBBORN,
    absence=True,
)
_security_group_gone = Owed(
    "security_group_deleted",
    _security_group_absent,
    _as_it_was,
    attempts=STUBBORN,
    absence=True,
)
_server_group_gone = Owed("server_group_deleted", _server_group_absent, attempts=STUBBORN, absence=True)
_surplus_gone = Owed("surplus_removed", _surplus_absent, attempts=STUBBORN, absence=True)
_credentials_gone = Owed("credentials_revoked", _on_instance(CredentialsAbsent), attempts=STUBBORN, absence=True)

_OWED: Mapping[str, Owed[Any]] = {
    "build_quota": Owed("quota_reserved", _reserve_present),
    "build_server_group": Owed("server_group_created", _server_group),
    "build_security_group": Owed("security_group_created", _security_group),
    "build_rules": Owed("access_rules_added", lambda i: _rules(i.access, i), _as_it_was),
    "build_port": Owed("port_created", _port),
    "build_management_port": Owed("management_port_created", _management_port),
    "build_volume": Owed("volume_created", _volume),
    "build_credentials": Owed("credentials_issued", _on_instance(EnsureCredentials)),
    "build_server": Owed("server_created", _server),
    "build_address": Owed("floating_address_created", _address, _as_it_was),
    "build_attachment": Owed("volume_attached", _attachment),
    "build_database": Owed("database_prepared", _prepare),
    "build_health": _health,
    "build_surplus": _surplus_gone,
    "undo_build_server": _server_gone,
    "undo_build_address": _address_gone,
    "undo_build_volume": _volume_gone,
    "undo_build_management_port": _management_port_gone,
    "undo_build_port": _port_gone,
    "undo_build_security_group": _security_group_gone,
    "undo_build_server_group": _server_group_gone,
    "undo_build_credentials": _credentials_gone,
    "undo_build_quota": _no_quota,
    "restart_database": Owed("database_restarted", _on_instance(RestartDatabase)),
    "restart_health": _health,
    # What a reboot, a resize or a migration stops may be broken already: the stop is tried, then the server acts.
    "reboot_stop": _stop,
    "reboot_server": Owed(
        "server_rebooted",
        lambda i: RebootServer(instance_id=i.id, server_id=i.server_id or "", hard=i.hard),
    ),
    "reboot_agent": _agent,
    "reboot_start": _started,
    "reboot_health": _health,
    "resize_volume_quota": Owed("quota_reserved", _reserve_new_volume),
    "resize_volume_stop": _let_go,
    "resize_volume_detach": Owed("volume_detached", _detachment),
    "resize_volume_extend": Owed(
        "volume_extended",
        lambda i: ExtendVolume(instance_id=i.id, volume_id=i.volume_id or "", size=i.new_volume_size),
        lambda i: {"volume_size": i.new_volume_size},
    ),
    "resize_volume_attach": Owed("volume_attached", _attachment),
    "resize_volume_grow": Owed(
        "file_system_grown", lambda i: GrowFileSystem(instance_id=i.id, volume_size=i.volume_size)
    ),
    "resize_volume_start": _started,
    "resize_volume_health": _health,
    "undo_resize_volume_attach": Owed("volume_attached", _reattachment, attempts=STUBBORN),
    "undo_resize_volume_start": _started,
    "undo_resize_volume_quota": _old_quota,
    "resize_flavor_quota": Owed("quota_reserved", _reserve_new_flavor),
    "resize_flavor_stop": _stop,
    "resize_flavor_server": Owed(
        "server_resized",
        lambda i: ResizeServer(instance_id=i.id, server_id=i.server_id or "", flavor_id=i.new_flavor.id),
    ),
    "resize_flavor_agent": _agent,
    "resize_flavor_start": _started,
    "resize_flavor_health": _health,
    "resize_flavor_confirm": Owed(
        "flavor_resize_confirmed",
        _on_server(ConfirmServer),
        lambda i: {"flavor": i.new_flavor, "host": i.new_host or i.host},
    ),
    "undo_resize_flavor_server": _reverted,
    "undo_resize_flavor_agent": _agent,
    "undo_resize_flavor_start": _started,
    "undo_resize_flavor_quota": _old_quota,
    "migrate_stop": _stop,
    "migrate_server": Owed("server_migrated", _migrate),
    "migrate_agent": _agent,
    "migrate_start": _started,
    "migrate_health": _health,
    "migrate_confirm": Owed("migration_confirmed", _on_server(ConfirmServer), lambda i: {"host": i.new_host}),
    "undo_migrate_server": _reverted,
    "undo_migrate_agent": _agent,
    "undo_migrate_start": _started,
    "rebuild_stop": _let_go,
    "rebuild_snapshot": Owed("snapshot_created", _snapshot),
    "rebuild_server": Owed("server_rebuilt", _rebuild, lambda i: {"image_id": i.new_image_id}),
    "rebuild_agent": _agent,
    "rebuild_database": Owed("database_rebuilt", _rebuild_database),
    "rebuild_health": _health,
    "rebuild_snapshot_deleted": _snapshot_gone,
    "undo_rebuild_snapshot": _snapshot_gone,
    # Rules come before the address: never is it public while those are let in who shall not be any more.
    "update_security_group": Owed("security_group_created", _security_group),
    "update_rules_added": Owed(
        "access_rules_added",
        lambda i: _rules(i.new_access, i),
        lambda i: {"access": _admitting_also(i.access, i.new_access)},
    ),
    "update_rules_removed": Owed(
        "access_rules_removed",
        lambda i: _no_other_rules(i.new_access, i),
        lambda i: {"access": _having(i.access, cidrs=admitted(i.new_access))},
    ),
    "update_port": Owed("port_secured", _port_group, lambda i: {"access": _having(i.access)}),
    "update_address_created": Owed(
        "floating_address_created", _address, lambda i: {"access": _having(i.access, public=True)}
    ),
    "update_address_deleted": _address_gone,
    "update_surplus": _surplus_gone,
    "undo_update_address": _address_gone,
    "undo_update_port": Owed("port_unsecured", _port_group_absent, attempts=STUBBORN, absence=True),
    "undo_update_security_group": Owed(
        "security_group_deleted", _security_group_absent, lambda _: {"access": None}, attempts=STUBBORN, absence=True
    ),
    "undo_update_rules_removed": Owed(
        "access_rules_added",
        lambda i: _rules(i.old_access, i, again=True),
        lambda i: {"access": _admitting_also(i.access, i.old_access)},
        attempts=STUBBORN,
    ),
    "undo_update_rules_added": Owed(
        "access_rules_removed",
        lambda i: _no_other_rules(i.old_access, i),
        lambda i: {"access": _having(i.access, cidrs=admitted(i.old_access))},
        attempts=STUBBORN,
    ),
    "stop_database": _stop,
    "stop_server": Owed("server_stopped", _on_server(StopServer)),
    "start_server": Owed("server_started", _on_server(StartServer)),
    "start_agent": _agent,
    "start_database": _started,
    "start_health": _health,
    # The data go anyway, so one short try to stop the database cleanly is enough.
    "delete_database": Owed("database_stopped", lambda i: StopDatabase(instance_id=i.id, patience=15), attempts=1),
    "delete_server": _server_gone,
    "delete_address": _address_gone,
    "delete_port": _port_gone,
    "delete_management_port": _management_port_gone,
    "delete_snapshot": _snapshot_gone,
    "delete_volume": _volume_gone,
    "delete_security_group": _security_group_gone,
    "delete_server_group": _server_group_gone,
    "delete_credentials": _credentials_gone,
    "delete_quota": _no_quota,
}


def _where_it_lies(owed: Owed[Any]) -> Owed[Any]:
    """The same, in the instance's region if it is owed to the cloud."""

    def effect(i: Instance) -> Effect:
        wanted = owed.effect(i)
        return msgspec.structs.replace(wanted, region=i.region) if isinstance(wanted, CloudEffect) else wanted

    return replace(owed, effect=effect)


OBLIGATIONS: Mapping[str, Owed[Any]] = {state: _where_it_lies(owed) for state, owed in _OWED.items()}
