"""What a cloud holds, as a look at all of it shows it, and whose it is by its name. Data alone."""

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
