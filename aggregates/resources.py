"""What a cloud holds, as a look at all of it shows it, whose it is by its name, and how it differs. Data alone."""

from __future__ import annotations

from enum import StrEnum
from uuid import UUID

import msgspec

DELETING = "deleting"  # the status of what is on its way out


class ResourceKind(StrEnum):
    """The kinds of resources, in the order in which they can be removed: what has others comes before them."""

    SERVER = "server"
    FLOATING_ADDRESS = "floating_address"
    PORT = "port"
    MANAGEMENT_PORT = "management_port"
    SNAPSHOT = "snapshot"
    VOLUME = "volume"
    SECURITY_GROUP = "security_group"
    SERVER_GROUP = "server_group"

    @property
    def spoken(self) -> str:
        """The kind as people read it."""
        return self.value.replace("_", " ")


PREFIX = "holdfast-"
# Of those whose name is another's, too, or could be.
_PREFIXES = {ResourceKind.MANAGEMENT_PORT: "holdfast-mgmt-", ResourceKind.SECURITY_GROUP: "holdfast-sg-"}


class Resource(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that a cloud holds. `instance_id`: the instance whose it is by its name, or by a tag of ours.

    `status`: in the cloud's own words, but `deleting` for what is on its way out. `size`: of a volume, in GiB.
    `server_id`: the server that has the volume or the port. `port_id`: the port that the floating address leads to.
    `region`: where it is, of a cloud that has several. What the cloud does not tell is None.
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
    port_id: str | None = None
    region: str | None = None

    def __str__(self) -> str:
        return f"{self.kind.spoken} {self.id}"


class DriftKind(StrEnum):
    """In what a resource differs from what is recorded of it."""

    GONE = "gone"
    STATUS = "status"
    FLAVOR = "flavor"
    HOST = "host"
    SIZE = "size"
    DETACHED = "detached"
    PORT = "port"


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """A recorded resource is not, in the cloud, what it is believed to be; somebody else has changed it, or lost it.

    `believed` and `seen` as the cloud words them: a status, a flavor's id, a host, GiB, the id of the server that has
    the volume, or of the port that the address leads to; None for nothing.
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
            return f"{self.resource.spoken} {self.id} is not there"
        if self.what is DriftKind.DETACHED:
            return f"{self.resource.spoken} {self.id} is attached to {self.seen or 'no server'}, not to {self.believed}"
        if self.what is DriftKind.PORT:
            return f"{self.resource.spoken} {self.id} leads to {self.seen or 'no port'}, not to {self.believed}"
        instead = "" if self.believed is None else f", not {self.believed}"
        return f"{self.resource.spoken} {self.id} has {self.what} {self.seen}{instead}"


def resource_name(instance_id: UUID, kind: ResourceKind = ResourceKind.SERVER) -> str:
    """The name of an instance's resource of the kind in the cloud."""
    return f"{_PREFIXES.get(kind, PREFIX)}{instance_id}"


def instance_named(name: str, kind: ResourceKind = ResourceKind.SERVER) -> UUID | None:
    """The instance whose resource of the kind has this name; None for any other name."""
    try:
        instance_id = UUID(name.removeprefix(_PREFIXES.get(kind, PREFIX)))
    except ValueError:
        return None
    return instance_id if resource_name(instance_id, kind) == name else None


def port_kind(name: str) -> ResourceKind:
    """Which of an instance's two ports has this name."""
    management = name.startswith(_PREFIXES[ResourceKind.MANAGEMENT_PORT])
    return ResourceKind.MANAGEMENT_PORT if management else ResourceKind.PORT
