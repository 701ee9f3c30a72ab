"""The commands: their names, typed arguments and default deadlines.

A command's name on the wire is its class's in snake case, the name of the predecessor's RPC method. Decoding refuses
unknown arguments and wrong types; what depends on the catalogue or the aggregate is checked where it is decided.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, UnsetType

from aggregates.effects import Access, Database, User

Name = Annotated[str, Meta(min_length=1, max_length=255)]
Word = Annotated[str, Meta(min_length=1, max_length=255)]
Limit = Annotated[int, Meta(ge=-1)] | None | UnsetType
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
    """A command to an instance. Each class has an `example`: arguments that are good for an instance made by the
    example of create_instance, on any cloud with the flavors `small` and `large`.

    Whoever goes through all commands takes it from there, so that a command added later is in it by itself. `variants`
    are further arguments, which lead another way through the chart and are good for the simulated cloud.
    """

    kind: ClassVar[str] = "instance"
    example: ClassVar[Mapping[str, Any]]
    variants: ClassVar[tuple[Mapping[str, Any], ...]] = ()


class CreateInstance(InstanceCommand, frozen=True, kw_only=True):
    """Make an instance. Arguments after `keep_on_failure` are honoured only where the cloud's catalogue says so.

    `flavor` is an id or name; `volume_size` GiB; `overrides` datastore parameters; passwords are references that
    the query `secrets.put` gives. `nics` names the tenant's network, at most one; `locality` whether later replicas
    lie on the same host or never do. `region`: where the instance lies for life, the cloud's own region by default;
    flavors, datastores, zones and volume types are those of the region.
    """

    limit: ClassVar[timedelta] = timedelta(minutes=60)
    creates: ClassVar[bool] = True
    example: ClassVar[Mapping[str, Any]] = {
        "name": "orders",
        "flavor": "small",
        "datastore": "postgresql",
        "volume_size": 1,
    }
    variants: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {
            **example,
            "volume_type": "remote",
            "image_id": "image-1",
            "nics": ["tenant-2"],
            "locality": "anti-affinity",
            "access": {"public": True, "allowed_cidrs": ["192.0.2.0/24"]},
        },
    )

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
    nics: tuple[Word, ...] = ()
    slave_of_id: Any = None
    cluster_config: Any = None
    modules: Any = None
    locality: Literal["affinity", "anti-affinity", ""] | None = None
    access: Access | None = None
    region: Annotated[str, Meta(max_length=255)] | None = None


class DeleteInstance(InstanceCommand, frozen=True, kw_only=True):
    """Remove the instance and all it holds; allowed in the middle of another operation, which it cancels."""

    limit: ClassVar[timedelta] = timedelta(hours=24)
    example: ClassVar[Mapping[str, Any]] = {}


class Restart(InstanceCommand, frozen=True, kw_only=True):
    """Restart the database software."""

    example: ClassVar[Mapping[str, Any]] = {}


class Reboot(InstanceCommand, frozen=True, kw_only=True):
    """Stop the database, reboot the server, start the database."""

    example: ClassVar[Mapping[str, Any]] = {"hard": True}

    hard: bool = False


class ResizeVolume(InstanceCommand, frozen=True, kw_only=True):
    """Extend the volume to `new_size` GiB; it can only grow."""

    example: ClassVar[Mapping[str, Any]] = {"new_size": 2}

    new_size: Size


class ResizeFlavor(InstanceCommand, frozen=True, kw_only=True):
    """Give the instance another flavor (id or name)."""

    example: ClassVar[Mapping[str, Any]] = {"flavor": "large"}

    flavor: Word


class Migrate(InstanceCommand, frozen=True, kw_only=True):
    """Move the server to another host: the one named, or one that the cloud chooses."""

    example: ClassVar[Mapping[str, Any]] = {}

    host: Word | None = None


class Rebuild(InstanceCommand, frozen=True, kw_only=True):
    """Make the server anew from an image; databases, users and data stay.

    Without `image_id` it is the image that the instance was made from. `image_id` is taken only where the cloud
    honours it. A database that is in ERROR is not asked to stop: its guest may be what is broken.

    `snapshot`: the volume as it was is kept as a snapshot until the database is healthy again; taken only where the
    cloud honours it. One that a failed rebuild has left is kept instead, and no other made.
    """

    example: ClassVar[Mapping[str, Any]] = {}
    variants: ClassVar[tuple[Mapping[str, Any], ...]] = ({"snapshot": True},)

    image_id: Word | None = None
    snapshot: bool = False


class UpdateAccess(InstanceCommand, frozen=True, kw_only=True):
    """Change who can reach the database; taken only where the cloud honours `access`. What is left out stays.

    `public`: by a floating address. `allowed_cidrs`: the networks that are let in, all of them.
    """

    example: ClassVar[Mapping[str, Any]] = {"public": True, "allowed_cidrs": ["10.0.0.0/8"]}

    public: bool | None = None
    allowed_cidrs: tuple[Word, ...] | None = None


class StopInstance(InstanceCommand, frozen=True, kw_only=True):
    """Stop the database and its server; the data stay."""

    example: ClassVar[Mapping[str, Any]] = {}


class StartInstance(InstanceCommand, frozen=True, kw_only=True):
    """Start a stopped instance."""

    example: ClassVar[Mapping[str, Any]] = {}


class OperationCommand(InstanceCommand, frozen=True, kw_only=True):
    """A command about the operation that runs on the instance; it begins none. `reason` is kept with who sent it."""

    operation_id: UUID
    reason: Annotated[str, Meta(max_length=1000)] | None = None


_RUNNING = "00000000-0000-0000-0000-000000000000"  # an example cannot know what runs


class CancelOperation(OperationCommand, frozen=True, kw_only=True):
    """End the operation at its next safe point and undo it; refused where there is no way back."""

    example: ClassVar[Mapping[str, Any]] = {"operation_id": _RUNNING, "reason": "asked for by mistake"}


class RetryOperation(OperationCommand, frozen=True, kw_only=True):
    """Try again now what a parked operation owes, or what waits for its next try; tries are counted anew."""

    example: ClassVar[Mapping[str, Any]] = {"operation_id": _RUNNING}


class SkipStep(OperationCommand, frozen=True, kw_only=True):
    """Have a parked operation go on as if what it owes was paid.

    Without `facts` only where the absence of something is owed, which then is left. Elsewhere make it true by hand,
    and give the facts that the effect would have yielded, `{}` where it yields none.
    """

    example: ClassVar[Mapping[str, Any]] = {"operation_id": _RUNNING, "reason": "removed by hand"}

    facts: dict[str, Any] | None = None


class AbandonOperation(OperationCommand, frozen=True, kw_only=True):
    """End a parked operation where it is: the instance is in ERROR, and what is left of it is listed."""

    example: ClassVar[Mapping[str, Any]] = {"operation_id": _RUNNING}


class QuotaCommand(Command, frozen=True, kw_only=True):
    """A command to a project's quota. Those that reserve and release the engine itself sends."""

    kind: ClassVar[str] = "quota"


class ReserveQuota(QuotaCommand, frozen=True, kw_only=True):
    """Hold this much for the instance, in place of what is held for it now; refused when it does not fit.

    `as_of`: the instance's version when it asked, so that what comes late replaces nothing newer.
    """

    creates: ClassVar[bool] = True

    instance_id: UUID
    ram: Annotated[int, Meta(ge=0)]
    volumes: Annotated[int, Meta(ge=0)]
    as_of: Annotated[int, Meta(ge=0)] = 0


class ReleaseQuota(QuotaCommand, frozen=True, kw_only=True):
    """Hold nothing for the instance any more."""

    creates: ClassVar[bool] = True

    instance_id: UUID


class ReserveBackup(QuotaCommand, frozen=True, kw_only=True):
    """Count the backup; refused when there are as many as there may be."""

    creates: ClassVar[bool] = True

    backup_id: UUID


class ReleaseBackup(QuotaCommand, frozen=True, kw_only=True):
    """Count the backup no more."""

    creates: ClassVar[bool] = True

    backup_id: UUID


class SetQuota(QuotaCommand, frozen=True, kw_only=True):
    """Set limits for the project: -1 is none, null the installation's default again, what is left out stays.

    `ram` in MiB, `volumes` in GiB. What is held already is not taken back.
    """

    creates: ClassVar[bool] = True

    instances: Limit = UNSET
    ram: Limit = UNSET
    volumes: Limit = UNSET
    backups: Limit = UNSET


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
        Rebuild,
        UpdateAccess,
        StopInstance,
        StartInstance,
        CancelOperation,
        RetryOperation,
        SkipStep,
        AbandonOperation,
        ReserveQuota,
        ReleaseQuota,
        ReserveBackup,
        ReleaseBackup,
        SetQuota,
    )
}

# Those that begin an operation of an instance, and those about the one that runs, by name.
OPERATIONS: dict[str, type[InstanceCommand]] = {}
INTERVENTIONS: dict[str, type[OperationCommand]] = {}

for _command in COMMANDS.values():
    if issubclass(_command, OperationCommand):
        INTERVENTIONS[_command.wire_name()] = _command
    elif issubclass(_command, InstanceCommand):
        OPERATIONS[_command.wire_name()] = _command


def example(command: type[InstanceCommand]) -> InstanceCommand:
    """The command with the arguments of its example."""
    return msgspec.convert(command.example, command)


def variants(command: type[InstanceCommand]) -> tuple[InstanceCommand, ...]:
    """The command with each of its further arguments."""
    return tuple(msgspec.convert(each, command) for each in command.variants)


for _command in (*OPERATIONS.values(), *INTERVENTIONS.values()):
    if "example" not in vars(_command):
        raise TypeError(f"{_command.__name__} has no example of its arguments")
    example(_command)
    variants(_command)
