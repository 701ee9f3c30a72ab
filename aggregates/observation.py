"""What a look at the cloud shows of an instance: resources of its name that are none of its own.

Pure: compares what was seen with what the instance knows. A look is a list, and may be older than what was just done:
whoever looks acts on what two looks in a row agree about. A stranger's resource is never among what is found.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from aggregates.instance import Instance
from aggregates.instance_events import SurplusDeleted, SurplusFound
from aggregates.resources import DELETING, Resource, ResourceKind

# The states in which an instance has nothing in the cloud.
NOTHING = frozenset({"FAILED", "DELETED"})

_REMOVED_BY = {
    "ServerAbsent": ResourceKind.SERVER,
    "PortAbsent": ResourceKind.PORT,
    "VolumeAbsent": ResourceKind.VOLUME,
    "SurplusAbsent": ResourceKind.VOLUME,
}
_ORDER = tuple(ResourceKind)


def surplus(instance: Instance, seen: Iterable[Resource]) -> tuple[Resource, ...]:
    """Of what was seen, what bears the instance's name and can never be recorded as its own, the servers first.

    That is all of an instance which is FAILED or DELETED, else every other resource of a kind whose recorded one is
    there. While an operation runs nothing counts: it may yet record what was seen, or removes it itself. What is left
    because somebody had its removal skipped stays.
    """
    if instance.operation is not None:
        return ()
    left = {_REMOVED_BY[effect] for effect in instance.skipped if effect in _REMOVED_BY}
    named = [each for each in seen if each.name == instance.resource_name and each.kind not in left]
    known = set() if instance.state in NOTHING else {each for each in named if each.id == instance.recorded(each.kind)}
    there = set(ResourceKind) if instance.state in NOTHING else {each.kind for each in known}
    found = [each for each in named if each.kind in there and each not in known and each.status != DELETING]
    return tuple(sorted(found, key=lambda each: _ORDER.index(each.kind)))


def note_surplus(instance: Instance, found: Resource, *, at: datetime) -> None:
    """Record that there is something to remove; what is on record already is no second event."""
    if found.id not in {each.id for each in instance.surplus}:
        instance.trigger_event(SurplusFound, timestamp=at, found=found)


def note_removed(instance: Instance, removed: Resource, *, at: datetime) -> None:
    """Record that it is gone; what is on record no longer is no second event."""
    if removed.id in {each.id for each in instance.surplus}:
        instance.trigger_event(SurplusDeleted, timestamp=at, removed=removed)
