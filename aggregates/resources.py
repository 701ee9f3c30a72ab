"""What a cloud holds, as a look at all of it shows it, whose it is by its name, and how it differs. Data alone."""

from __future__ import annotations

from enum import StrEnum
from uuid import UUID

import msgspec

PREFIX = "holdfast-"
DELETING = "deleting"  # the status of what is on its way out


class ResourceKind(StrEnum):
    """The kinds of resources, in the order in which they can be removed: a server has the others."""

    SERVER = "server"
    PORT = "port"
    VOLUME = "volume"


class Resource(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that a cloud holds. `instance_id`: the instance whose it is by its name, or by a tag of ours.

    `status`: in the cloud's own words, but `deleting` for what is on its way out. `size`: of a volume, in GiB.
    `server_id`: the server that has the volume or the port. What the cloud does not tell is None.
    """

    kind: ResourceKind
    id: str
    name: str
    status: str = ""
    instance_id: UUID | None = None
    project: str | None = None
    size: int | None = None
    flavor_id: str | None = None
    host: str | None = None
    server_id: str | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"


class DriftKind(StrEnum):
    """In what a resource differs from what is recorded of it."""

    GONE = "gone"
    STATUS = "status"
    FLAVOR = "flavor"
    HOST = "host"
    SIZE = "size"
    DETACHED = "detached"


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """A recorded resource is not, in the cloud, what it is believed to be; somebody else has changed it, or lost it.

    `believed` and `seen` as the cloud words them: a status, a flavor's id, a host, GiB, the id of the server that has
    the volume; None for nothing.
    """

    resource: ResourceKind
    id: str
    what: DriftKind
    believed: str | None = None
    seen: str | None = None

    @property
    def about(self) -> tuple[ResourceKind, DriftKind]:
        """What it is about: of one thing there is one drift at a time."""
        return (self.resource, self.what)

    def __str__(self) -> str:
        if self.what is DriftKind.GONE:
            return f"{self.resource} {self.id} is not there"
        if self.what is DriftKind.DETACHED:
            return f"{self.resource} {self.id} is attached to {self.seen or 'no server'}, not to {self.believed}"
        instead = "" if self.believed is None else f", not {self.believed}"
        return f"{self.resource} {self.id} has {self.what} {self.seen}{instead}"


def resource_name(instance_id: UUID) -> str:
    """The name of an instance's server, port and volume in the cloud."""
    return f"{PREFIX}{instance_id}"


def instance_named(name: str) -> UUID | None:
    """The instance whose resources have this name; None for any other name."""
    try:
        instance_id = UUID(name.removeprefix(PREFIX))
    except ValueError:
        return None
    return instance_id if resource_name(instance_id) == name else None
