"""A database instance: what it knows of itself, and what it decides about commands.

The chart is in `lifecycle.py`, what each state owes in `obligations.py`. An event class stands for each
transition and carries the facts that the paid effect yielded. Decisions raise `Refusal` and change nothing then.
"""

from __future__ import annotations

from functools import singledispatchmethod
from typing import ClassVar
from uuid import UUID

from aggregates import arguments, interventions
from aggregates.base import Context, Failure, Lifecycled, Operation, Refusal, declare, path
from aggregates.catalogue import Flavor
from aggregates.commands import (
    AbandonOperation,
    CancelOperation,
    Command,
    CreateInstance,
    DeleteInstance,
    Migrate,
    Reboot,
    Rebuild,
    ResizeFlavor,
    ResizeVolume,
    Restart,
    RetryOperation,
    SkipStep,
    StartInstance,
    StopInstance,
    UpdateAccess,
)
from aggregates.effects import Access, Database, User
from aggregates.instance_events import (
    TRANSITIONS,
    AttemptFailed,
    CallUnanswered,
    InstanceRequested,
    LastLookDue,
    LateOutcome,
    OperationParked,
    RetryRequested,
    StepSkipped,
)
from aggregates.lifecycle import InstanceLifecycle
from aggregates.obligations import OBLIGATIONS
from aggregates.resources import Drift, Resource, ResourceKind, resource_name


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
        # What older versions did not record.
        image_id: str | None = None,
        nics: tuple[str, ...] = (),
        management_network: str | None = None,
        locality: str | None = None,
        access: Access | None = None,
        datastore_port: int | None = None,
        region: str | None = None,
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
        self.image_id = image_id
        self.new_image_id: str | None = None
        self.nics = nics
        self.management_network = management_network
        self.locality = locality
        self.access = access
        self.new_access: Access | None = None
        self.old_access: Access | None = None
        self.datastore_port = datastore_port
        self.region = region
        self.server_group_id: str | None = None
        self.security_group_id: str | None = None
        self.management_port_id: str | None = None
        self.floating_address_id: str | None = None
        self.public_address: str | None = None
        self.offline = self.snapshot = self.snapshot_due = False
        self.snapshot_id: str | None = None
        self.port_id: str | None = None
        self.address: str | None = None
        self.port: int | None = None
        self.volume_id: str | None = None
        self.server_id: str | None = None
        for kind in ResourceKind:
            setattr(self, f"{kind}_gone", False)
        self.host: str | None = None
        self.target_host: str | None = None
        self.new_host: str | None = None
        self.hard = False
        self.removed: tuple[str, ...] = ()
        self.left_behind: tuple[str, ...] = ()
        self.skipped: tuple[str, ...] = ()
        self.surplus: tuple[Resource, ...] = ()
        self.drift: tuple[Drift, ...] = ()

    def recorded(self, kind: ResourceKind) -> str | None:
        """The id of its own resource of the kind. While that is there, no other one is ever recorded."""
        found: str | None = getattr(self, f"{kind}_id")
        return found

    def held(self, kind: ResourceKind) -> str | None:
        """The id of its own resource of the kind, unless that was deleted."""
        return None if getattr(self, f"{kind}_gone") else self.recorded(kind)

    @property
    def resource_name(self) -> str:
        """The name of its server, its port, its volume and all that has no name below, in the cloud."""
        return resource_name(self.id)

    @property
    def security_group_name(self) -> str:
        """The name of its security group in the cloud."""
        return resource_name(self.id, ResourceKind.SECURITY_GROUP)

    @property
    def management_port_name(self) -> str:
        """The name of the port by which its agent is reached, in the cloud."""
        return resource_name(self.id, ResourceKind.MANAGEMENT_PORT)

    @property
    def kept(self) -> str:
        """The snapshot of a rebuild that fails."""
        snapshot = self.held(ResourceKind.SNAPSHOT) if self.status == "REBUILD" else None
        return "" if snapshot is None else f"; the volume as it was before is kept as snapshot {snapshot}"

    def left(self) -> tuple[str, ...]:
        """What there is of it: while it is being removed what the states ahead would remove, else all that is known."""
        ahead = [self.owing[state] for state in path(type(self), self.state, self)]
        # A rebuild removes no more than a snapshot.
        removed = [owed.then for owed in ahead if owed.absence] if self.status != "REBUILD" else []
        return tuple(
            f"{what} {self._named(fact, name)}" if fact is not None else what
            for transition, what, fact, name in _HELD
            if (transition in removed if removed else fact is not None and getattr(self, fact) is not None)
        )

    def _named(self, fact: str, named: str) -> str:
        known, name = getattr(self, fact), getattr(self, named)
        return f"{known} ({name})" if known else f"named {name}, if there is one"

    # --- decisions ------------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, instance_id: UUID, command: CreateInstance, context: Context) -> Instance:
        """Decide create_instance for an id that is not taken. Raises `Refusal`."""
        wanted = arguments.check_create(command, context.catalogue)

        def planning(*plan: str) -> Instance:
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
                    plan=plan,
                ),
                **wanted,
            )

        # What it will pass depends on what it knows.
        return planning(*path(cls, "build_quota", planning()))

    def execute(self, command: Command, context: Context) -> None:
        """Decide any other command. Raises `Refusal`."""
        if context.project != self.project:
            raise Refusal("not_found", f"no instance {self.id} in project {context.project}")
        self._decide(command, context)

    @singledispatchmethod
    def _decide(self, command: Command, context: Context) -> None:
        raise Refusal("unknown_command", f"an instance does not know {command.wire_name()} from {context.actor}")

    @_decide.register
    def _(self, command: CreateInstance, context: Context) -> None:
        raise Refusal("conflict", f"{command.wire_name()} is refused: instance {self.id} exists in {context.project}")

    @_decide.register
    def _(self, command: Restart, context: Context) -> None:
        self.begin("restart_requested", command.wire_name(), context, command.limit)

    @_decide.register
    def _(self, command: Reboot, context: Context) -> None:
        self.begin("reboot_requested", command.wire_name(), context, command.limit, hard=command.hard)

    @_decide.register
    def _(self, command: ResizeVolume, context: Context) -> None:
        offered = arguments.offered_where(self.region, context.catalogue)
        limit = offered.max_volume_size
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
            offline=self.volume_type in offered.extended_offline,
        )

    @_decide.register
    def _(self, command: ResizeFlavor, context: Context) -> None:
        flavor = arguments.check_flavor(command.flavor, arguments.offered_where(self.region, context.catalogue))
        if flavor.id == self.flavor.id:
            raise Refusal("invalid_argument", f"the instance has flavor {flavor.name} already; choose another one")
        self.begin("flavor_resize_requested", command.wire_name(), context, command.limit, new_flavor=flavor)

    @_decide.register
    def _(self, command: Migrate, context: Context) -> None:
        hosts = arguments.offered_where(self.region, context.catalogue).hosts
        if command.host is not None and hosts and command.host not in hosts:
            raise Refusal("invalid_argument", f"no host {command.host}; there are: {', '.join(hosts)}")
        if command.host is not None and command.host == self.host:
            raise Refusal("invalid_argument", f"the instance is on host {command.host} already; choose another one")
        self.begin("migration_requested", command.wire_name(), context, command.limit, target_host=command.host)

    @_decide.register
    def _(self, command: Rebuild, context: Context) -> None:
        if command.image_id:
            arguments.check_honoured("image_id", arguments.offered_where(self.region, context.catalogue))
        if command.snapshot:
            arguments.check_honoured("snapshot", arguments.offered_where(self.region, context.catalogue))
        if self.port is None and self.can("rebuild_requested"):
            raise Refusal(
                "forbidden_state", "there is no database yet to be kept; delete the instance, and create anew"
            )
        image_id = command.image_id or self.image_id
        self.begin(
            "rebuild_requested",
            command.wire_name(),
            context,
            command.limit,
            new_image_id=image_id,
            snapshot=command.snapshot,
        )

    @_decide.register
    def _(self, command: UpdateAccess, context: Context) -> None:
        offered = arguments.offered_where(self.region, context.catalogue)
        access = arguments.check_update(command, self.access, offered)
        if self.access is not None and arguments.same(access, self.access) and self.can("access_update_requested"):
            raise Refusal("invalid_argument", "the instance has this access already; choose another one")
        self.begin(
            "access_update_requested",
            command.wire_name(),
            context,
            command.limit,
            new_access=access,
            old_access=self.access,
        )

    @_decide.register
    def _(self, command: StopInstance, context: Context) -> None:
        self.begin("stop_requested", command.wire_name(), context, command.limit)

    @_decide.register
    def _(self, command: StartInstance, context: Context) -> None:
        self.begin("start_requested", command.wire_name(), context, command.limit)

    @_decide.register
    def _(self, command: DeleteInstance, context: Context) -> None:
        self.begin("deletion_requested", command.wire_name(), context, command.limit)

    @_decide.register
    def _(self, command: CancelOperation, context: Context) -> None:
        interventions.cancel(self, command, context)

    @_decide.register
    def _(self, command: RetryOperation, context: Context) -> None:
        interventions.retry(self, command, context)

    @_decide.register
    def _(self, command: SkipStep, context: Context) -> None:
        interventions.skip(self, command, context)

    @_decide.register
    def _(self, command: AbandonOperation, context: Context) -> None:
        interventions.abandon(self, command, context)


# What is removed by which transition, the fact that holds its id, the attribute that holds its name.
_HELD: tuple[tuple[str, str, str | None, str], ...] = (
    ("server_deleted", "server", "server_id", "resource_name"),
    ("floating_address_deleted", "floating address", "floating_address_id", "resource_name"),
    ("snapshot_deleted", "snapshot", "snapshot_id", "resource_name"),
    ("volume_deleted", "volume", "volume_id", "resource_name"),
    ("port_deleted", "port", "port_id", "resource_name"),
    ("management_port_deleted", "port", "management_port_id", "management_port_name"),
    ("security_group_deleted", "security group", "security_group_id", "security_group_name"),
    ("server_group_deleted", "server group", "server_group_id", "resource_name"),
    ("credentials_revoked", "the credentials of its guest", None, ""),
    ("quota_released", "what the quota holds for it", None, ""),
)

Instance.owing = OBLIGATIONS
Instance.events = declare(Instance, TRANSITIONS)
Instance.notes = {
    each.__name__: each
    for each in (
        AttemptFailed,
        OperationParked,
        LateOutcome,
        CallUnanswered,
        LastLookDue,
        RetryRequested,
        StepSkipped,
    )
}
