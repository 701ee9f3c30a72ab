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
    """Something that the cloud must hold or no longer hold for an instance."""

    instance_id: UUID

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


class EnsurePort(MakingEffect, frozen=True, kw_only=True):
    """There is a port of this name. Yields `port_id` and `address`."""

    name: str
    project: str


class EnsureVolume(MakingEffect, frozen=True, kw_only=True):
    """There is an available volume of this name and size (GiB). Yields `volume_id`."""

    name: str
    project: str
    size: int
    volume_type: str | None
    availability_zone: str | None


class EnsureCredentials(MakingEffect, frozen=True, kw_only=True):
    """The guest's own broker credentials exist and are accepted. Yields no facts."""


class EnsureServer(MakingEffect, frozen=True, kw_only=True):
    """There is an ACTIVE server of this name with that port. Yields `server_id` and `host`."""

    name: str
    project: str
    flavor_id: str
    port_id: str
    availability_zone: str | None
    datastore: str
    datastore_version: str


class EnsureAttachment(CloudEffect, frozen=True, kw_only=True):
    """The volume is attached to the server. Yields no facts."""

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


class ResizeServer(MakingEffect, frozen=True, kw_only=True):
    """The server has the flavor and awaits confirmation. Yields no facts."""

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


class SurplusAbsent(ClearingEffect, frozen=True, kw_only=True):
    """No volume of this name exists but the one to keep. Yields `removed`, the ids of those that did."""

    name: str
    keep: str


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


class StopDatabase(GuestEffect, frozen=True, kw_only=True):
    """The database is stopped and stays so. Yields no facts."""


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
