"""What a state can owe: one idempotent obligation towards the cloud, the guest or another aggregate, as typed data.

An effect says what must be true, never how it is brought about, and paying it twice leaves what paying it once
leaves. It carries references to secrets, never a secret.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec

from aggregates.resources import ResourceKind


class Effect(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """An obligation. The name of its type is part of the idempotency key."""

    @property
    def type_name(self) -> str:
        """The effect's name as read models show it."""
        return type(self).__name__

    @property
    def waits(self) -> bool:
        """Whether paying only waits and looks, so that it may be given up at any moment."""
        return False

    @property
    def makes(self) -> bool:
        """Whether a call of it that is carried out late leaves something which must be removed or reverted."""
        return False

    @property
    def clears(self) -> bool:
        """Whether it removes or reverts what a call has left: too early, it would miss what is carried out late."""
        return False

    @property
    def lasts(self) -> bool:
        """Whether what a call of it does late stays, since nothing on the way back removes or reverts it."""
        return False


class SendCommand(Effect, frozen=True, kw_only=True):
    """Another aggregate has decided the command; paid when its record is in the log.

    Yields no facts. A rejection is a final error with the record's code and reason.
    """

    project: str
    kind: str
    aggregate_id: UUID
    command: str
    args: dict[str, Any]


class CloudEffect(Effect, frozen=True, kw_only=True):
    """Something that the cloud must hold or no longer hold for an instance.

    `region`: where, of a cloud that has several; None is the cloud's own.
    """

    instance_id: UUID
    region: str | None = None

    @property
    def lasts(self) -> bool:
        """It does, unless it makes something."""
        return not self.makes


class MakingEffect(CloudEffect, frozen=True, kw_only=True):
    """Something is made, or changed so that it must be confirmed."""

    @property
    def makes(self) -> bool:
        """It does."""
        return True


class ClearingEffect(CloudEffect, frozen=True, kw_only=True):
    """What was made is removed, or what was changed is reverted."""

    @property
    def clears(self) -> bool:
        """It does."""
        return True


class EnsureServerGroup(MakingEffect, frozen=True, kw_only=True):
    """There is a server group of this name and policy (`affinity`, `anti-affinity`). Yields `server_group_id`."""

    name: str
    project: str
    policy: str


class EnsureSecurityGroup(MakingEffect, frozen=True, kw_only=True):
    """There is a security group of this name. Yields `security_group_id`."""

    name: str
    project: str


class EnsureAccessRules(MakingEffect, frozen=True, kw_only=True):
    """Each of these networks may reach the TCP port; rules that are there besides stay. Yields no facts.

    All that is missing is made by one call. `again`: what was removed is there again, so that a removal which comes
    late must be over.
    """

    security_group_id: str
    port: int
    cidrs: tuple[str, ...]
    again: bool = False

    @property
    def clears(self) -> bool:
        """Where it reverts."""
        return self.again


class EnsurePort(MakingEffect, frozen=True, kw_only=True):
    """There is a port of this name. Yields `port_id` and `address`.

    It lies on the tenant's network, the cloud's own choice if that is None, and has the security group if one is
    given.
    """

    name: str
    project: str
    network: str | None
    security_group_id: str | None


class EnsureManagementPort(MakingEffect, frozen=True, kw_only=True):
    """There is a port of this name on the network by which guest agents are reached. Yields `management_port_id`."""

    name: str
    project: str
    network: str


class EnsurePortGroup(MakingEffect, frozen=True, kw_only=True):
    """The port has the security group, besides those that it has. Yields no facts."""

    port_id: str
    security_group_id: str


class EnsureFloatingAddress(MakingEffect, frozen=True, kw_only=True):
    """The port is reached by a floating address of this name, made together with that association.

    Yields `floating_address_id` and `public_address`.
    """

    name: str
    project: str
    port_id: str


class EnsureVolume(MakingEffect, frozen=True, kw_only=True):
    """There is an available volume of this name and size (GiB). Yields `volume_id`."""

    name: str
    project: str
    size: int
    volume_type: str | None
    availability_zone: str | None


class EnsureSnapshot(MakingEffect, frozen=True, kw_only=True):
    """There is an available snapshot of this name of the volume, which a server may have. Yields `snapshot_id`."""

    name: str
    project: str
    volume_id: str


class EnsureCredentials(MakingEffect, frozen=True, kw_only=True):
    """The guest's own broker credentials exist and are accepted. Yields no facts."""


class EnsureServer(MakingEffect, frozen=True, kw_only=True):
    """There is an ACTIVE server of this name with that port. Yields `server_id` and `host`.

    It has the management port as well, and is a member of the server group, where they are given. Without an image
    it is made from that of the datastore's version.
    """

    name: str
    project: str
    flavor_id: str
    port_id: str
    management_port_id: str | None
    server_group_id: str | None
    image_id: str | None
    availability_zone: str | None
    datastore: str
    datastore_version: str


class EnsureAttachment(CloudEffect, frozen=True, kw_only=True):
    """The volume is attached to the server. Yields no facts.

    `again`: what was detached is attached again, so that a detachment which comes late must be over.
    """

    server_id: str
    volume_id: str
    again: bool = False

    @property
    def clears(self) -> bool:
        """Where it reverts."""
        return self.again


class DetachVolume(MakingEffect, frozen=True, kw_only=True):
    """The server has not the volume, which is available. Yields no facts."""

    server_id: str
    volume_id: str


class ExtendVolume(CloudEffect, frozen=True, kw_only=True):
    """The volume has at least this size (GiB). Yields no facts."""

    volume_id: str
    size: int


class RebootServer(CloudEffect, frozen=True, kw_only=True):
    """The server was rebooted once under this effect's key and is ACTIVE. Yields no facts."""

    server_id: str
    hard: bool


class RebuildServer(CloudEffect, frozen=True, kw_only=True):
    """The server was made anew from an image once under this effect's key, and is ACTIVE. Yields no facts.

    Its id, ports, host and attached volume stay; all else that lay on it is gone. Without an image it is made from
    that of the datastore's version.
    """

    server_id: str
    name: str
    project: str
    image_id: str | None
    datastore: str
    datastore_version: str


class ResizeServer(MakingEffect, frozen=True, kw_only=True):
    """The server has the flavor and awaits confirmation, maybe on another host. Yields `new_host`."""

    server_id: str
    flavor_id: str


class MigrateServer(MakingEffect, frozen=True, kw_only=True):
    """The server is on another host than `from_host` (`host` if given), to be confirmed. Yields `new_host`."""

    server_id: str
    from_host: str
    host: str | None


class ConfirmServer(CloudEffect, frozen=True, kw_only=True):
    """No resize or migration of the server awaits confirmation; the new one holds. Yields no facts."""

    server_id: str


class RevertServer(ClearingEffect, frozen=True, kw_only=True):
    """No resize or migration of the server awaits confirmation; flavor and host are the old ones. Yields no facts."""

    server_id: str
    flavor_id: str
    host: str


class StopServer(CloudEffect, frozen=True, kw_only=True):
    """The server is SHUTOFF. Yields no facts."""

    server_id: str


class StartServer(CloudEffect, frozen=True, kw_only=True):
    """The server is ACTIVE. Yields no facts."""

    server_id: str


class ServerAbsent(ClearingEffect, frozen=True, kw_only=True):
    """No server of this name or id exists. Yields no facts."""

    name: str
    server_id: str | None


class VolumeAbsent(ClearingEffect, frozen=True, kw_only=True):
    """No volume of this name or id exists. Yields no facts."""

    name: str
    volume_id: str | None


class SnapshotAbsent(ClearingEffect, frozen=True, kw_only=True):
    """No snapshot of this name or id exists. Yields no facts."""

    name: str
    snapshot_id: str | None


class SurplusAbsent(ClearingEffect, frozen=True, kw_only=True):
    """Of what nothing fences there is only what is to be kept. Yields `removed`, the ids of what there was besides.

    Looked for are snapshots, volumes, server groups and floating addresses of the name, and security groups of
    theirs; `keep` holds ids of all kinds.
    """

    name: str
    security_group_name: str
    keep: tuple[str, ...]


class ResourceAbsent(ClearingEffect, frozen=True, kw_only=True):
    """No resource of this id exists, which bears this name. Yields no facts.

    One that bears another name is a stranger's: it is left alone, and the error is final.
    """

    kind: ResourceKind
    name: str
    resource_id: str


class PortAbsent(ClearingEffect, frozen=True, kw_only=True):
    """No port of this name or id exists. Yields no facts."""

    name: str
    port_id: str | None


class PortGroupAbsent(ClearingEffect, frozen=True, kw_only=True):
    """The port, if there is one, has not the security group; it keeps its others. Yields no facts."""

    port_id: str
    security_group_id: str


class FloatingAddressAbsent(ClearingEffect, frozen=True, kw_only=True):
    """No floating address of this name or id exists, nor one of that port. Yields no facts."""

    name: str
    floating_address_id: str | None
    port_id: str | None


class AccessRulesAbsent(ClearingEffect, frozen=True, kw_only=True):
    """No rule of the security group lets in other networks than those to keep. Yields no facts.

    Each rule is removed by its id. A removal that comes late would undo what let somebody in again meanwhile.
    """

    security_group_id: str
    port: int
    keep: tuple[str, ...]

    @property
    def makes(self) -> bool:
        """A removal may have to be reverted."""
        return True


class SecurityGroupAbsent(ClearingEffect, frozen=True, kw_only=True):
    """No security group of this name or id exists. Yields no facts."""

    name: str
    security_group_id: str | None


class ServerGroupAbsent(ClearingEffect, frozen=True, kw_only=True):
    """No server group of this name or id exists, but one with servers in it, which stays. Yields no facts."""

    name: str
    server_group_id: str | None


class CredentialsAbsent(ClearingEffect, frozen=True, kw_only=True):
    """The guest's broker credentials are refused. Yields no facts."""


class GuestEffect(Effect, frozen=True, kw_only=True):
    """Something that the guest agent of the instance brings about. One try may take `patience` seconds."""

    instance_id: UUID
    patience: float = 1800.0

    @property
    def waits(self) -> bool:
        """It asks the agent until the answer is there; the agent goes on by itself, and knows the key."""
        return True


class Access(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From where a database can be reached: `public`, by a floating address; and the networks that are let in."""

    public: bool = False
    allowed_cidrs: tuple[str, ...] = ("0.0.0.0/0",)


class User(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A database user to be made: name, where it may come from, its databases, a reference to its password."""

    name: str
    password_ref: str
    host: str = "%"
    databases: tuple[str, ...] = ()


class Database(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A database to be made."""

    name: str
    character_set: str | None = None
    collate: str | None = None


class PrepareDatabase(GuestEffect, frozen=True, kw_only=True):
    """The datastore is installed, configured, secured and running, with these databases and users.

    Yields `port` (TCP). `ram` is the flavor's memory in MiB; secrets belong to `project`.
    """

    project: str
    datastore: str
    datastore_version: str
    ram: int
    volume_size: int
    databases: tuple[Database, ...]
    users: tuple[User, ...]
    root_password_ref: str | None
    overrides: dict[str, str]


class RebuildDatabase(GuestEffect, frozen=True, kw_only=True):
    """On a server made anew the database runs with the data, users and TCP port that it had. Yields no facts.

    Nothing on the volume is made: data that are not there are an error. `ram` in MiB, `volume_size` in GiB.
    """

    ram: int
    volume_size: int
    port: int
    overrides: dict[str, str]


class StopDatabase(GuestEffect, frozen=True, kw_only=True):
    """The database is stopped and stays so. Yields no facts.

    `release_volume`: the machine has let go of the volume as well, and all that was written lies on it.
    """

    release_volume: bool = False


class StartDatabase(GuestEffect, frozen=True, kw_only=True):
    """The database is configured for this memory (MiB) and running. Yields no facts."""

    ram: int
    overrides: dict[str, str]


class RestartDatabase(GuestEffect, frozen=True, kw_only=True):
    """The database was restarted once under this effect's key and is running. Yields no facts."""


class GrowFileSystem(GuestEffect, frozen=True, kw_only=True):
    """The database's file system has the volume's size (GiB). Yields no facts."""

    volume_size: int


class AwaitAgent(GuestEffect, frozen=True, kw_only=True):
    """The guest agent answers. Yields no facts."""


class AwaitHealthy(GuestEffect, frozen=True, kw_only=True):
    """The guest agent reports the database HEALTHY. Yields no facts."""
