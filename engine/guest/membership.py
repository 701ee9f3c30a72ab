"""What an agent durably knows of its replication set: its part in it, whom it follows, who may follow, who may write.

It holds no secret. A stand-alone instance is a member of nothing, of generation 0; whatever came later goes before.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from uuid import UUID

import msgspec

from engine.guest.desired import write_durably
from engine.messages import ReplicationSource

USER_PREFIX = "holdfast_replica_"  # of the accounts and slots that are made for replicas


class Role(StrEnum):
    """An instance's part in its set."""

    NONE = "none"
    SOURCE = "source"
    REPLICA = "replica"


class Fence(StrEnum):
    """Why a source takes no writes of tenants."""

    NONE = "none"
    TOLD = "told"  # by the engine, or in the middle of becoming the source
    ABSENT = "absent"  # by its own agent, which was away for too long to know whether it still is the source


class Membership(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`user`: its account at its source. `replicas`: addresses by account, of those that may follow it.

    The rest is explained in `engine/messages.py`.
    """

    role: Role = Role.NONE
    replication_set: UUID | None = None
    generation: int = 0
    fence: Fence = Fence.NONE
    source: ReplicationSource | None = None
    user: str = ""
    replicas: dict[str, str] = {}
    synchronous: bool = False
    absence_limit: float = 0.0

    @property
    def writable(self) -> bool:
        """Whether tenants may write as far as replication goes."""
        return self.role is not Role.REPLICA and self.fence is Fence.NONE


class MembershipFile:
    """The present `Membership` and its file. It lies on the volume, beside the data that it is about: it holds for
    them on whatever server they are. Not for use by two threads at once."""

    def __init__(self, volume: Path) -> None:
        self._path = volume / "membership.json"
        self._read: Membership | None = None

    @property
    def now(self) -> Membership:
        """The last word. A volume that comes later is looked at then."""
        if self._read is None and self._path.exists():
            self._read = msgspec.json.decode(self._path.read_bytes(), type=Membership)
        return self._read or Membership()

    def take(self, membership: Membership) -> None:
        """Take on another one, durably."""
        if membership != self.now:
            write_durably(self._path, msgspec.json.encode(membership))
            self._read = membership

    def change(self, **values: object) -> None:
        """Take on other values, durably."""
        self.take(msgspec.structs.replace(self.now, **values))


def account(instance_id: UUID | str) -> str:
    """The name of a replica's account at its source, of its slot, and by which the source knows it."""
    return USER_PREFIX + UUID(str(instance_id)).hex
