"""What can happen to an instance: one event class for each transition of its chart, and the notes beside.

The class names are public: they stand in stored topics and in subjects. A fact is a field; whoever reads the log
needs nothing else.
"""

from __future__ import annotations

from typing import Any, ClassVar

from aggregates import base
from aggregates.base import Failure, Intervention, Operation
from aggregates.catalogue import Flavor
from aggregates.effects import Access, Database, User
from aggregates.resources import Drift, Resource, ResourceKind


class InstanceEvent(base.Event):
    """Base of an instance's events."""

    kind: ClassVar[str] = "instance"


class InstanceRequested(InstanceEvent, base.Created):
    """create_instance was accepted; nothing exists yet.

    The last facts are not in the events of older versions. `access` None: the cloud guards nobody's access. `region`
    None: it lies where the cloud has all it has, or where it had it before it got further regions.
    """

    operation: Operation
    name: str
    flavor: Flavor
    datastore: str
    datastore_version: str
    volume_size: int
    volume_type: str | None
    databases: tuple[Database, ...]
    users: tuple[User, ...]
    root_password_ref: str | None
    overrides: dict[str, str]
    availability_zone: str | None
    keep_on_failure: bool
    image_id: str | None = None
    nics: tuple[str, ...] = ()
    management_network: str | None = None
    locality: str | None = None
    access: Access | None = None
    datastore_port: int | None = None
    region: str | None = None


class AttemptFailed(InstanceEvent, base.AttemptFailed):
    """A try to pay failed in a way that may pass."""


class OperationParked(InstanceEvent, base.OperationParked):
    """Paying has stopped until an operator acts."""


class LateOutcome(InstanceEvent, base.LateOutcome):
    """What an effect has made became known when its state had ended."""


class CallUnanswered(InstanceEvent, base.CallUnanswered):
    """A call to the cloud may have gone out and its answer is not known."""


class LastLookDue(InstanceEvent, base.LastLookDue):
    """What is owed failed; a call whose outcome is not known may have done it, so it is looked at once more."""


class RetryRequested(InstanceEvent, base.RetryRequested):
    """retry_operation was accepted."""


class StepSkipped(InstanceEvent, base.StepSkipped):
    """skip_step was accepted; the transition that follows belongs to it."""

    def apply(self, aggregate: Any) -> None:
        """What it would have removed is left on somebody's word."""
        super().apply(aggregate)
        aggregate.skipped = (*aggregate.skipped, self.effect)


class Observed(InstanceEvent):
    """Base of what was seen in the cloud from outside, maybe long after the instance was deleted.

    It belongs to no operation, and changes no state.
    """


class SurplusFound(Observed):
    """The cloud holds something of the instance's name that is none of its own: it is to be removed."""

    found: Resource

    def apply(self, aggregate: Any) -> None:
        """Remember it until it is gone."""
        aggregate.surplus = (*aggregate.surplus, self.found)


class OrphanDisowned(Observed):
    """Somebody wants something removed that bears the instance's name and is none of its own, but was left alone."""

    found: Resource
    actor: str

    def apply(self, aggregate: Any) -> None:
        """It is surplus from now on."""
        aggregate.surplus = (*aggregate.surplus, self.found)


class OrphanAdopted(Observed):
    """Somebody says that what bears the instance's name is its own from now on; what it had recorded is not there."""

    found: Resource
    actor: str

    def apply(self, aggregate: Any) -> None:
        """Record it, and forget in what the lost one differed."""
        kind = self.found.kind
        setattr(aggregate, f"{kind}_id", self.found.id)
        setattr(aggregate, f"{kind}_gone", False)
        if kind is ResourceKind.SERVER and self.found.host is not None:
            aggregate.host = self.found.host
        aggregate.drift = tuple(each for each in aggregate.drift if each.resource is not kind)


class SurplusDeleted(Observed):
    """What was found to be surplus is gone."""

    removed: Resource

    def apply(self, aggregate: Any) -> None:
        """Forget it."""
        aggregate.surplus = tuple(each for each in aggregate.surplus if each.id != self.removed.id)


class DriftFound(Observed):
    """Something recorded is not, in the cloud, what it is believed to be. Takes the place of what was found before.

    Nothing is done about it.
    """

    drift: Drift

    def apply(self, aggregate: Any) -> None:
        """Remember it."""
        others = (each for each in aggregate.drift if each.about != self.drift.about)
        aggregate.drift = (*others, self.drift)


class DriftGone(Observed):
    """What was found to differ is again as it is believed to be, or is believed no longer."""

    drift: Drift

    def apply(self, aggregate: Any) -> None:
        """Forget it."""
        aggregate.drift = tuple(each for each in aggregate.drift if each.about != self.drift.about)


# The states in which an instance has nothing in the cloud.
NOTHING = frozenset({"FAILED", "DELETED"})


class Transition(InstanceEvent, base.Transitioned):
    """Base of the lifecycle's events. After it the resource of the kind is there, or is not."""

    makes: ClassVar[ResourceKind | None] = None
    removes: ClassVar[ResourceKind | None] = None

    def apply(self, aggregate: Any) -> None:
        """Assign; the id of what is removed is kept. Of what has nothing nothing can differ."""
        super().apply(aggregate)
        for kind, gone in ((self.makes, False), (self.removes, True)):
            if kind is not None:
                setattr(aggregate, f"{kind}_gone", gone)
        if self.state in NOTHING:
            aggregate.drift = ()


class Requested(Transition):
    """Base of the events that begin an operation."""

    commanded: ClassVar[bool] = True

    operation: Operation
    failure: None


class RestartRequested(Requested):
    """restart was accepted."""


class RebootRequested(Requested):
    """reboot was accepted."""

    hard: bool


class VolumeResizeRequested(Requested):
    """resize_volume was accepted. `offline`: the server lets go of the volume meanwhile."""

    new_volume_size: int
    offline: bool = False  # older versions knew no other way


class FlavorResizeRequested(Requested):
    """resize_flavor was accepted."""

    new_flavor: Flavor


class MigrationRequested(Requested):
    """migrate was accepted."""

    target_host: str | None


class RebuildRequested(Requested):
    """rebuild was accepted. `new_image_id` None: the image of the datastore's version.

    `snapshot`: the volume is to be kept as it was; older versions knew no snapshots.
    """

    new_image_id: str | None
    snapshot: bool = False

    def apply(self, aggregate: Any) -> None:
        """Until it is removed there may be one."""
        super().apply(aggregate)
        aggregate.snapshot_due = aggregate.snapshot_due or self.snapshot


class AccessUpdateRequested(Requested):
    """update_access was accepted. `old_access` None: until now nobody's access was guarded."""

    new_access: Access
    old_access: Access | None


class StopRequested(Requested):
    """stop_instance was accepted."""


class StartRequested(Requested):
    """start_instance was accepted."""


class DeletionRequested(Requested):
    """delete_instance was accepted; an operation that was running is cancelled by it."""

    def apply(self, aggregate: Any) -> None:
        """Whoever has it deleted wants nothing left, whatever was skipped before."""
        super().apply(aggregate)
        aggregate.skipped = ()


class CancelRequested(Transition):
    """cancel_operation was accepted; what follows undoes the operation."""

    commanded: ClassVar[bool] = True

    failure: Failure
    intervention: Intervention


class OperationAbandoned(Transition):
    """abandon_operation was accepted: nobody goes on with the operation. `left_behind` lists what there is."""

    failure: Failure
    left_behind: tuple[str, ...]
    intervention: Intervention


class QuotaReserved(Transition):
    """The project's quota holds what the instance needs."""


class QuotaReleased(Transition):
    """The project's quota no longer holds what the instance does not need."""


class ServerGroupCreated(Transition):
    """The server group exists; the server is to be made in it."""

    makes = ResourceKind.SERVER_GROUP

    server_group_id: str


class SecurityGroupCreated(Transition):
    """The security group exists and lets nobody in."""

    makes = ResourceKind.SECURITY_GROUP

    security_group_id: str


class AccessRulesAdded(Transition):
    """The security group lets in the networks that `access` names."""

    access: Access


class AccessRulesRemoved(Transition):
    """The security group lets in no other networks than `access` names."""

    access: Access


class PortCreated(Transition):
    """The port exists."""

    makes = ResourceKind.PORT

    port_id: str
    address: str


class ManagementPortCreated(Transition):
    """The port by which the guest agent is reached exists."""

    makes = ResourceKind.MANAGEMENT_PORT

    management_port_id: str


class PortSecured(Transition):
    """The port has the security group."""

    access: Access


class PortUnsecured(Transition):
    """The port has the security group no more."""


class FloatingAddressCreated(Transition):
    """The port is reached from outside by the floating address."""

    makes = ResourceKind.FLOATING_ADDRESS

    floating_address_id: str
    public_address: str
    access: Access


class VolumeCreated(Transition):
    """The volume exists and is available."""

    makes = ResourceKind.VOLUME

    volume_id: str


class SnapshotCreated(Transition):
    """The volume is kept as it is now by a snapshot."""

    makes = ResourceKind.SNAPSHOT

    snapshot_id: str


class CredentialsIssued(Transition):
    """The guest may speak to the broker, for this instance alone."""


class ServerCreated(Transition):
    """The server exists and is ACTIVE."""

    makes = ResourceKind.SERVER

    server_id: str
    host: str


class VolumeAttached(Transition):
    """The server holds the volume."""


class VolumeDetached(Transition):
    """The server has let go of the volume."""


class DatabasePrepared(Transition):
    """The database is installed, configured, secured and started."""

    port: int


class DatabaseRebuilt(Transition):
    """The database runs on the server made anew, with the data that it had."""


class DatabaseHealthy(Transition):
    """The guest agent reported the database HEALTHY."""


class SurplusRemoved(Transition):
    """Nothing is left over of calls that went unanswered; what was removed was never used."""

    removed: tuple[str, ...]


class DatabaseRestarted(Transition):
    """The database was restarted."""


class DatabaseStopped(Transition):
    """The database is stopped."""


class DatabaseStarted(Transition):
    """The database was started."""


class ServerRebooted(Transition):
    """The server was rebooted."""


class ServerRebuilt(Transition):
    """The server was made anew from the image, the datastore version's if None."""

    image_id: str | None


class ServerResized(Transition):
    """The server has the new flavor, to be confirmed; on `new_host`, which older logs do not tell."""

    new_host: str | None = None

    def apply(self, aggregate: Any) -> None:
        """Assign; what is not told stays."""
        before = aggregate.new_host
        super().apply(aggregate)
        aggregate.new_host = self.new_host or before


class ServerMigrated(Transition):
    """The server is on another host, to be confirmed."""

    new_host: str


class ServerStopped(Transition):
    """The server is SHUTOFF."""


class ServerStarted(Transition):
    """The server is ACTIVE again."""


class ServerReverted(Transition):
    """The server has its old flavor and host."""


class AgentAnswered(Transition):
    """The guest agent answers again."""


class FlavorResizeConfirmed(Transition):
    """The new flavor holds; on `host`, which older logs do not tell."""

    flavor: Flavor
    host: str | None = None

    def apply(self, aggregate: Any) -> None:
        """Assign; what is not told stays."""
        before = aggregate.host
        super().apply(aggregate)
        aggregate.host = self.host or before


class MigrationConfirmed(Transition):
    """The new host holds."""

    host: str


class VolumeExtended(Transition):
    """The volume has the new size."""

    volume_size: int


class FileSystemGrown(Transition):
    """The database can use the new size."""


class ServerDeleted(Transition):
    """No server of the instance exists."""

    removes = ResourceKind.SERVER


class PortDeleted(Transition):
    """No port of the instance exists."""

    removes = ResourceKind.PORT


class ManagementPortDeleted(Transition):
    """No port by which its guest agent was reached exists."""

    removes = ResourceKind.MANAGEMENT_PORT


class FloatingAddressDeleted(Transition):
    """No floating address of the instance exists."""

    removes = ResourceKind.FLOATING_ADDRESS

    access: Access | None
    public_address: None


class SnapshotDeleted(Transition):
    """No snapshot of the volume that bears the instance's name exists."""

    removes = ResourceKind.SNAPSHOT

    def apply(self, aggregate: Any) -> None:
        """There can be none until one is asked for again."""
        super().apply(aggregate)
        aggregate.snapshot_due = False


class VolumeDeleted(Transition):
    """No volume of the instance exists."""

    removes = ResourceKind.VOLUME


class SecurityGroupDeleted(Transition):
    """No security group of the instance exists."""

    removes = ResourceKind.SECURITY_GROUP

    access: Access | None


class ServerGroupDeleted(Transition):
    """No server group of the instance exists, unless other servers are in it."""

    removes = ResourceKind.SERVER_GROUP


class CredentialsRevoked(Transition):
    """The guest's credentials are refused."""


class Failed(Transition):
    """An effect failed for good; what follows undoes the operation, or its end is ERROR."""

    failure: Failure


TRANSITIONS: tuple[type[Transition], ...] = (
    RestartRequested,
    RebootRequested,
    VolumeResizeRequested,
    FlavorResizeRequested,
    MigrationRequested,
    RebuildRequested,
    AccessUpdateRequested,
    StopRequested,
    StartRequested,
    DeletionRequested,
    CancelRequested,
    OperationAbandoned,
    QuotaReserved,
    QuotaReleased,
    ServerGroupCreated,
    SecurityGroupCreated,
    AccessRulesAdded,
    AccessRulesRemoved,
    PortCreated,
    ManagementPortCreated,
    PortSecured,
    PortUnsecured,
    FloatingAddressCreated,
    VolumeCreated,
    SnapshotCreated,
    CredentialsIssued,
    ServerCreated,
    VolumeAttached,
    VolumeDetached,
    DatabasePrepared,
    DatabaseRebuilt,
    DatabaseHealthy,
    SurplusRemoved,
    DatabaseRestarted,
    DatabaseStopped,
    DatabaseStarted,
    ServerRebooted,
    ServerRebuilt,
    ServerResized,
    ServerMigrated,
    ServerStopped,
    ServerStarted,
    ServerReverted,
    AgentAnswered,
    FlavorResizeConfirmed,
    MigrationConfirmed,
    VolumeExtended,
    FileSystemGrown,
    ServerDeleted,
    FloatingAddressDeleted,
    PortDeleted,
    ManagementPortDeleted,
    SnapshotDeleted,
    VolumeDeleted,
    SecurityGroupDeleted,
    ServerGroupDeleted,
    CredentialsRevoked,
    Failed,
)
