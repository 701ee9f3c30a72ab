"""What each state of an instance owes: the table, and how each effect follows from the recorded facts.

Pure: the same instance always owes the same. An id that the chart's order guarantees is taken for granted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, UUID, uuid5

from aggregates.effects import (
    AwaitAgent,
    AwaitHealthy,
    ConfirmServer,
    CredentialsAbsent,
    EnsureAttachment,
    EnsureCredentials,
    EnsurePort,
    EnsureServer,
    EnsureVolume,
    ExtendVolume,
    GrowFileSystem,
    MigrateServer,
    PortAbsent,
    PrepareDatabase,
    RebootServer,
    ResizeServer,
    RestartDatabase,
    RevertServer,
    SendCommand,
    ServerAbsent,
    StartDatabase,
    StartServer,
    StopDatabase,
    StopServer,
    SurplusAbsent,
    VolumeAbsent,
)
from aggregates.lifecycled import Owed

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
        args={"instance_id": str(i.id), "ram": ram, "volumes": volumes},
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


def _port(i: Instance) -> EnsurePort:
    return EnsurePort(instance_id=i.id, name=i.resource_name, project=i.project)


def _volume(i: Instance) -> EnsureVolume:
    return EnsureVolume(
        instance_id=i.id,
        name=i.resource_name,
        project=i.project,
        size=i.volume_size,
        volume_type=i.volume_type,
        availability_zone=i.availability_zone,
    )


def _server(i: Instance) -> EnsureServer:
    return EnsureServer(
        instance_id=i.id,
        name=i.resource_name,
        project=i.project,
        flavor_id=i.flavor.id,
        port_id=i.port_id or "",
        availability_zone=i.availability_zone,
        datastore=i.datastore,
        datastore_version=i.datastore_version,
    )


def _attachment(i: Instance) -> EnsureAttachment:
    return EnsureAttachment(instance_id=i.id, server_id=i.server_id or "", volume_id=i.volume_id or "")


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


def _port_absent(i: Instance) -> PortAbsent:
    return PortAbsent(instance_id=i.id, name=i.resource_name, port_id=i.port_id)


def _on_server(effect: type[Any]) -> Callable[[Instance], Any]:
    return lambda i: effect(instance_id=i.id, server_id=i.server_id or "")


def _on_instance(effect: type[Any]) -> Callable[[Instance], Any]:
    return lambda i: effect(instance_id=i.id)


# Where there is no way back: about a quarter of an hour of tries before the operation parks.
STUBBORN = 20

_old_quota = Owed("quota_released", _reserve_present, attempts=STUBBORN)
_no_quota = Owed("quota_released", _release, attempts=STUBBORN, absence=True)
_stop = Owed("database_stopped", _on_instance(StopDatabase))
_agent = Owed("agent_answered", _on_instance(AwaitAgent))
_started = Owed("database_started", _start)
_health = Owed("database_healthy", _on_instance(AwaitHealthy))
_reverted = Owed("server_reverted", _revert, attempts=STUBBORN)
_server_gone = Owed("server_deleted", _server_absent, attempts=STUBBORN, absence=True)
_volume_gone = Owed("volume_deleted", _volume_absent, attempts=STUBBORN, absence=True)
_port_gone = Owed("port_deleted", _port_absent, attempts=STUBBORN, absence=True)
_credentials_gone = Owed("credentials_revoked", _on_instance(CredentialsAbsent), attempts=STUBBORN, absence=True)

OBLIGATIONS: Mapping[str, Owed[Any]] = {
    "build_quota": Owed("quota_reserved", _reserve_present),
    "build_port": Owed("port_created", _port),
    "build_volume": Owed("volume_created", _volume),
    "build_credentials": Owed("credentials_issued", _on_instance(EnsureCredentials)),
    "build_server": Owed("server_created", _server),
    "build_attachment": Owed("volume_attached", _attachment),
    "build_database": Owed("database_prepared", _prepare),
    "build_health": _health,
    "build_surplus": Owed(
        "surplus_removed",
        lambda i: SurplusAbsent(instance_id=i.id, name=i.resource_name, keep=i.volume_id or ""),
        attempts=STUBBORN,
        absence=True,
    ),
    "undo_build_server": _server_gone,
    "undo_build_volume": _volume_gone,
    "undo_build_port": _port_gone,
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
    "resize_volume_extend": Owed(
        "volume_extended",
        lambda i: ExtendVolume(instance_id=i.id, volume_id=i.volume_id or "", size=i.new_volume_size),
        lambda i: {"volume_size": i.new_volume_size},
    ),
    "resize_volume_grow": Owed(
        "file_system_grown", lambda i: GrowFileSystem(instance_id=i.id, volume_size=i.volume_size)
    ),
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
        "flavor_resize_confirmed", _on_server(ConfirmServer), lambda i: {"flavor": i.new_flavor}
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
    "stop_database": _stop,
    "stop_server": Owed("server_stopped", _on_server(StopServer)),
    "start_server": Owed("server_started", _on_server(StartServer)),
    "start_agent": _agent,
    "start_database": _started,
    "start_health": _health,
    # The data go anyway, so one short try to stop the database cleanly is enough.
    "delete_database": Owed("database_stopped", lambda i: StopDatabase(instance_id=i.id, patience=15), attempts=1),
    "delete_server": _server_gone,
    "delete_port": _port_gone,
    "delete_volume": _volume_gone,
    "delete_credentials": _credentials_gone,
    "delete_quota": _no_quota,
}
