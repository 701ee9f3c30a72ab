"""The commands: their names, typed arguments and default deadlines.

A command's name on the wire is its class's in snake case, the name of the predecessor's RPC method. Decoding refuses
unknown arguments and wrong types; what depends on the catalogue or the aggregate is checked where it is decided.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any, ClassVar
from uuid import UUID

import msgspec
from msgspec import Meta

from aggregates.effects import Database, User

Name = Annotated[str, Meta(min_length=1, max_length=255)]
Word = Annotated[str, Meta(min_length=1, max_length=255)]
Size = Annotated[int, Meta(ge=1, le=65536)]


class Command(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all commands. `kind` is the aggregate's; `limit` the time after which its operation counts as failed."""

    kind: ClassVar[str]
    limit: ClassVar[timedelta] = timedelta(minutes=30)
    creates: ClassVar[bool] = False

    @classmethod
    def wire_name(cls) -> str:
        """The name in subjects, records and read models: `create_instance`."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


class InstanceCommand(Command, frozen=True, kw_only=True):
    """A command to an instance."""

    kind: ClassVar[str] = "instance"


class CreateInstance(InstanceCommand, frozen=True, kw_only=True):
    """Make an instance. Arguments after `keep_on_failure` are honoured only where the cloud's catalogue says so.

    `flavor` is an id or name; `volume_size` GiB; `overrides` datastore parameters; passwords are references that
    the query `secrets.put` gives.
    """

    limit: ClassVar[timedelta] = timedelta(minutes=60)
    creates: ClassVar[bool] = True

    name: Name
    flavor: Word
    datastore: Word
    datastore_version: Word | None = None
    volume_size: Size
    volume_type: Word | None = None
    databases: tuple[Database, ...] = ()
    users: tuple[User, ...] = ()
    root_password_ref: Word | None = None
    overrides: dict[str, str | int | float | bool] = {}
    availability_zone: Word | None = None
    keep_on_failure: bool = False
    image_id: str | None = None
    packages: Any = None
    backup_id: UUID | None = None
    nics: Any = None
    slave_of_id: Any = None
    cluster_config: Any = None
    modules: Any = None
    locality: Any = None
    access: Any = None


class DeleteInstance(InstanceCommand, frozen=True, kw_only=True):
    """Remove the instance and all it holds; allowed in the middle of another operation, which it cancels."""

    limit: ClassVar[timedelta] = timedelta(hours=24)


class Restart(InstanceCommand, frozen=True, kw_only=True):
    """Restart the database software."""


class Reboot(InstanceCommand, frozen=True, kw_only=True):
    """Stop the database, reboot the server, start the database."""

    hard: bool = False


class ResizeVolume(InstanceCommand, frozen=True, kw_only=True):
    """Extend the volume to `new_size` GiB; it can only grow."""

    new_size: Size


class ResizeFlavor(InstanceCommand, frozen=True, kw_only=True):
    """Give the instance another flavor (id or name)."""

    flavor: Word


class Migrate(InstanceCommand, frozen=True, kw_only=True):
    """Move the server to another host: the one named, or one that the cloud chooses."""

    host: Word | None = None


class StopInstance(InstanceCommand, frozen=True, kw_only=True):
    """Stop the database and its server; the data stay."""


class StartInstance(InstanceCommand, frozen=True, kw_only=True):
    """Start a stopped instance."""


class QuotaCommand(Command, frozen=True, kw_only=True):
    """A command to a project's quota; the engine itself sends it, as what an instance's state owes."""

    kind: ClassVar[str] = "quota"


class ReserveQuota(QuotaCommand, frozen=True, kw_only=True):
    """Hold this much for the instance, in place of what is held for it now; refused when it does not fit."""

    creates: ClassVar[bool] = True

    instance_id: UUID
    ram: Annotated[int, Meta(ge=0)]
    volumes: Annotated[int, Meta(ge=0)]


class ReleaseQuota(QuotaCommand, frozen=True, kw_only=True):
    """Hold nothing for the instance any more."""

    creates: ClassVar[bool] = True

    instance_id: UUID


COMMANDS: dict[tuple[str, str], type[Command]] = {
    (c.kind, c.wire_name()): c
    for c in (
        CreateInstance,
        DeleteInstance,
        Restart,
        Reboot,
        ResizeVolume,
        ResizeFlavor,
        Migrate,
        StopInstance,
        StartInstance,
        ReserveQuota,
        ReleaseQuota,
    )
}
