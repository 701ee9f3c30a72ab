"""A database instance: what happened to it, what each of its states owes, and what it decides about commands.

The chart is in `lifecycle.py`. An event class stands for each of its transitions and carries the facts that the paid
effect yielded. Decisions raise `Refusal` and leave the instance unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatchmethod
from typing import Any, ClassVar
from uuid import NAMESPACE_URL, UUID, uuid5

from aggregates import arguments
from aggregates.base import Context, Failure, Lifecycled, Operation, Owed, Refusal, declare, path
from aggregates.catalogue import Flavor
from aggregates.commands import (
    Command,
    CreateInstance,
    DeleteInstance,
    Migrate,
    Reboot,
    ResizeFlavor,
    ResizeVolume,
    Restart,
    StartInstance,
    StopInstance,
)
from aggregates.effects import (
    AwaitAgent,
    AwaitHealthy,
    ConfirmServer,
    CredentialsAbsent,
    Database,
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
    User,
    VolumeAbsent,
)
from aggregates.instance_events import (
    TRANSITIONS,
    AttemptFailed,
    InstanceRequested,
    LateOutcome,
    OperationParked,
)
from aggregates.lifecycle import InstanceLifecycle


def quota_id(project: str) -> UUID:
    """The id of the aggregate that keeps a project's quota."""
    return uuid5(NAMESPACE_URL, f"holdfast:quota:{project}")


class Instance(Lifecycled):
    """One database instance, its servers and volumes being the cloud's."""

    TOPIC = "instance"
    kind: ClassVar[str] = "instance"
    chart = InstanceLifecycle

    class Event(Lifecycled.Event):
        """Required by the library beside an explicit topic; never recorded."""

        TOPIC = "instance.Event"

    class Created(Event, Lifecycled.Created):
        """Required by the library beside an explicit topic; never recorded."""

        TOPIC = "instance.Created"

    def __init__(
        self,
        project: str,
        partition: int,
        name: str,
        flavor: Flavor,
        datastore: str,
        datastore_version: str,
        volume_size: int,
        volume_type: str | None,
        databases: tuple[Database, ...],
        users: tuple[User, ...],
        root_password_ref: str | None,
        overrides: dict[str, str],
        availability_zone: str | None,
        keep_on_failure: bool,
        operation: Operation,
    ) -> None:
        super().__init__(project, partition)
        self.state = "build_quota"
        self.operation = operation
        self.failure: Failure | None = None
        self.name = name
        self.flavor = flavor
        self.new_flavor: Flavor | None = None
        self.datastore = datastore
        self.datastore_version = datastore_version
        self.volume_size = volume_size
        self.new_volume_size: int | None = None
        self.volume_type = volume_type
        self.databases = databases
        self.users = users
        self.root_password_ref = root_password_ref
        self.overrides = overrides
        self.availability_zone = availability_zone
        self.keep_on_failure = keep_on_failure
        self.port_id: str | None = None
        self.address: str | None = None
        self.port: int | None = None
        self.volume_id: str | None = None
        self.server_id: str | None = None
        self.host: str | None = None
        self.target_host: str | None = None
        self.new_host: str | None = None
        self.hard = False

    @property
    def resource_name(self) -> str:
        """The name of its server, port and volume in the cloud."""
        return f"holdfast-{self.id}"

    # --- decisions ------------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, instance_id: UUID, command: CreateInstance, context: Context) -> Instance:
        """Decide create_instance for an id that is not taken. Raises `Refusal`."""
        wanted = arguments.check_create(command, context.catalogue)
        return cls._create(
            InstanceRequested,
            id=instance_id,
            timestamp=context.at,
            project=context.project,
            partition=context.partition,
            operation=Operation(
                id=context.command_id,
                command=command.wire_name(),
                actor=context.actor,
                deadline=context.deadline or context.at + command.limit,
                plan=path(cls, "build_quota", None),
            ),
            **wanted,
        )

    def execute(self, command: Command, context: Context) -> None:
        """Decide any other command. Raises `Refusal`."""
        if context.project != self.project:
            raise Refusal("not_found", f"no instance {self.id} in project {context.project}")
        self._decide(command, context)

    @singledispatchmethod
    def _decide(self, command: Command, context: Context) -> None:
        raise Refusal("conflict", f"instance {self.id} exists already")

    @_decide.register
    def _(self, command: Restart, context: Context) -> None:
        self.begin("restart_requested", command.wire_name(), context, command.limit)

    @_decide.register
    def _(self, command: Reboot, context: Context) -> None:
        self.begin("reboot_requested", command.wire_name(), context, command.limit, hard=command.hard)

    @_decide.register
    def _(self, command: ResizeVolume, context: Context) -> None:
        limit = context.catalogue.max_volume_size
        if not self.volume_size < command.new_size <= limit:
            raise Refusal(
                "invalid_argument",
                f"new_size must be larger than the present {self.volume_size} GiB and at most {limit} GiB, "
                f"not {command.new_size}",
            )
        self.begin(
            "volume_resize_requested",
            command.wire_name(),
            context,
            command.limit,
            new_volume_size=command.new_size,
        )

    @_decide.register
    def _(self, command: ResizeFlavor, context: Context) -> None:
        flavor = arguments.check_flavor(command.flavor, context.catalogue)
        if flavor.id == self.flavor.id:
            raise Refusal("invalid_argument", f"the instance has flavor {flavor.name} already; choose another one")
        self.begin("flavor_resize_requested", command.wire_name(), context, command.limit, new_flavor=flavor)

    @_decide.register
    def _(self, command: Migrate, context: Context) -> None:
        hosts = context.catalogue.hosts
        if command.host is not None and hosts and command.host not in hosts:
            raise Refusal("invalid_argument", f"no host {command.host}; there are: {', '.join(hosts)}")
        if command.host is not None and command.host == self.host:
            raise Refusal("invalid_argument", f"the instance is on host {command.host} already; choose another one")
        self.begin("migration_requested", command.wire_name(), context, command.limit, target_host=command.host)

    @_decide.register
    def _(self, command: StopInstance, context: Context) -> None:
        self.begin("stop_requested", command.wire_name(), context, command.limit)

    @_decide.register
    def _(self, command: StartInstance, context: Context) -> None:
        self.begin("start_requested", command.wire_name(), context, command.limit)

    @_decide.register
    def _(self, command: DeleteInstance, context: Context) -> None:
        self.begin("deletion_requested", command.wire_name(), context, command.limit)

    # --- what states owe ------------------------------------------------------------------------------------------

    def _reserve(self, *, ram: int, volumes: int) -> SendCommand:
        return SendCommand(
            kind="quota",
            aggregate_id=quota_id(self.project),
            command="reserve_quota",
            args={"instance_id": str(self.id), "ram": ram, "volumes": volumes},
        )

    def _reserve_present(self) -> SendCommand:
        return self._reserve(ram=self.flavor.ram, volumes=self.volume_size)

    def _reserve_new_volume(self) -> SendCommand:
        return self._reserve(ram=self.flavor.ram, volumes=self.new_volume_size or self.volume_size)

    def _reserve_new_flavor(self) -> SendCommand:
        return self._reserve(ram=(self.new_flavor or self.flavor).ram, volumes=self.volume_size)

    def _release(self) -> SendCommand:
        return SendCommand(
            kind="quota",
            aggregate_id=quota_id(self.project),
            command="release_quota",
            args={"instance_id": str(self.id)},
        )

    def _port(self) -> EnsurePort:
        return EnsurePort(instance_id=self.id, name=self.resource_name, project=self.project)

    def _volume(self) -> EnsureVolume:
        return EnsureVolume(
            instance_id=self.id,
            name=self.resource_name,
            project=self.project,
            size=self.volume_size,
            volume_type=self.volume_type,
            availability_zone=self.availability_zone,
        )

    def _server(self) -> EnsureServer:
        return EnsureServer(
            instance_id=self.id,
            name=self.resource_name,
            project=self.project,
            flavor_id=self.flavor.id,
            port_id=self.port_id or "",
            availability_zone=self.availability_zone,
            datastore=self.datastore,
            datastore_version=self.datastore_version,
        )

    def _attachment(self) -> EnsureAttachment:
        return EnsureAttachment(instance_id=self.id, server_id=self.server_id or "", volume_id=self.volume_id or "")

    def _prepare(self) -> PrepareDatabase:
        return PrepareDatabase(
            instance_id=self.id,
            datastore=self.datastore,
            datastore_version=self.datastore_version,
            ram=self.flavor.ram,
            volume_size=self.volume_size,
            databases=self.databases,
            users=self.users,
            root_password_ref=self.root_password_ref,
            overrides=self.overrides,
        )

    def _start(self) -> StartDatabase:
        flavor = self.new_flavor if self.state == "resize_flavor_start" and self.new_flavor else self.flavor
        return StartDatabase(instance_id=self.id, ram=flavor.ram, overrides=self.overrides)

    def _revert(self) -> RevertServer:
        return RevertServer(
            instance_id=self.id,
            server_id=self.server_id or "",
            flavor_id=self.flavor.id,
            host=self.host or "",
        )

    def _migrate(self) -> MigrateServer:
        return MigrateServer(
            instance_id=self.id, server_id=self.server_id or "", from_host=self.host or "", host=self.target_host
        )

    def _server_absent(self) -> ServerAbsent:
        return ServerAbsent(instance_id=self.id, name=self.resource_name, server_id=self.server_id)

    def _volume_absent(self) -> VolumeAbsent:
        return VolumeAbsent(instance_id=self.id, name=self.resource_name, volume_id=self.volume_id)

    def _port_absent(self) -> PortAbsent:
        return PortAbsent(instance_id=self.id, name=self.resource_name, port_id=self.port_id)


def _on_server(effect: type[Any]) -> Callable[[Instance], Any]:
    return lambda i: effect(instance_id=i.id, server_id=i.server_id or "")


def _on_instance(effect: type[Any]) -> Callable[[Instance], Any]:
    return lambda i: effect(instance_id=i.id)


_old_quota = Owed("quota_released", Instance._reserve_present)
_no_quota = Owed("quota_released", Instance._release)
_stop = Owed("database_stopped", _on_instance(StopDatabase))
_agent = Owed("agent_answered", _on_instance(AwaitAgent))
_start = Owed("database_started", Instance._start)
_health = Owed("database_healthy", _on_instance(AwaitHealthy))
_revert = Owed("server_reverted", Instance._revert)
_server_gone = Owed("server_deleted", Instance._server_absent)
_volume_gone = Owed("volume_deleted", Instance._volume_absent)
_port_gone = Owed("port_deleted", Instance._port_absent)
_credentials_gone = Owed("credentials_revoked", _on_instance(CredentialsAbsent))

Instance.owing = {
    "build_quota": Owed("quota_reserved", Instance._reserve_present),
    "build_port": Owed("port_created", Instance._port),
    "build_volume": Owed("volume_created", Instance._volume),
    "build_credentials": Owed("credentials_issued", _on_instance(EnsureCredentials)),
    "build_server": Owed("server_created", Instance._server),
    "build_attachment": Owed("volume_attached", Instance._attachment),
    "build_database": Owed("database_prepared", Instance._prepare),
    "build_health": _health,
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
    "reboot_start": _start,
    "reboot_health": _health,
    "resize_volume_quota": Owed("quota_reserved", Instance._reserve_new_volume),
    "resize_volume_extend": Owed(
        "volume_extended",
        lambda i: ExtendVolume(instance_id=i.id, volume_id=i.volume_id or "", size=i.new_volume_size),
        lambda i: {"volume_size": i.new_volume_size},
    ),
    "resize_volume_grow": Owed(
        "file_system_grown", lambda i: GrowFileSystem(instance_id=i.id, volume_size=i.volume_size)
    ),
    "undo_resize_volume_quota": _old_quota,
    "resize_flavor_quota": Owed("quota_reserved", Instance._reserve_new_flavor),
    "resize_flavor_stop": _stop,
    "resize_flavor_server": Owed(
        "server_resized",
        lambda i: ResizeServer(instance_id=i.id, server_id=i.server_id or "", flavor_id=i.new_flavor.id),
    ),
    "resize_flavor_agent": _agent,
    "resize_flavor_start": _start,
    "resize_flavor_health": _health,
    "resize_flavor_confirm": Owed(
        "flavor_resize_confirmed", _on_server(ConfirmServer), lambda i: {"flavor": i.new_flavor}
    ),
    "undo_resize_flavor_server": _revert,
    "undo_resize_flavor_agent": _agent,
    "undo_resize_flavor_start": _start,
    "undo_resize_flavor_quota": _old_quota,
    "migrate_stop": _stop,
    "migrate_server": Owed("server_migrated", Instance._migrate),
    "migrate_agent": _agent,
    "migrate_start": _start,
    "migrate_health": _health,
    "migrate_confirm": Owed("migration_confirmed", _on_server(ConfirmServer), lambda i: {"host": i.new_host}),
    "undo_migrate_server": _revert,
    "undo_migrate_agent": _agent,
    "undo_migrate_start": _start,
    "stop_database": _stop,
    "stop_server": Owed("server_stopped", _on_server(StopServer)),
    "start_server": Owed("server_started", _on_server(StartServer)),
    "start_agent": _agent,
    "start_database": _start,
    "start_health": _health,
    # The data go anyway, so one try to stop the database cleanly is enough.
    "delete_database": Owed("database_stopped", _on_instance(StopDatabase), attempts=1),
    "delete_server": _server_gone,
    "delete_port": _port_gone,
    "delete_volume": _volume_gone,
    "delete_credentials": _credentials_gone,
    "delete_quota": _no_quota,
}


Instance.events = declare(Instance, TRANSITIONS)
Instance.notes = {"AttemptFailed": AttemptFailed, "OperationParked": OperationParked, "LateOutcome": LateOutcome}
