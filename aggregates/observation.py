"""What a look at the cloud shows of an instance: what is surplus, and what is not as the instance believes it to be.

Pure: compares what was seen with what the instance knows. A look is a list, and may be older than what was just done:
only what two looks in a row agree about is noted. A stranger's resource is never among what is found.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime

import msgspec

from aggregates.base import Refusal
from aggregates.instance import Instance
from aggregates.instance_events import (
    NOTHING,
    DriftFound,
    DriftGone,
    OrphanAdopted,
    OrphanDisowned,
    SurplusDeleted,
    SurplusFound,
)
from aggregates.resources import DELETING, Drift, DriftKind, Resource, ResourceKind, resource_name

_REMOVED_BY: dict[str, frozenset[ResourceKind]] = {
    "ServerAbsent": frozenset({ResourceKind.SERVER}),
    "FloatingAddressAbsent": frozenset({ResourceKind.FLOATING_ADDRESS}),
    "PortAbsent": frozenset({ResourceKind.PORT, ResourceKind.MANAGEMENT_PORT}),
    "SnapshotAbsent": frozenset({ResourceKind.SNAPSHOT}),
    "VolumeAbsent": frozenset({ResourceKind.VOLUME}),
    "SecurityGroupAbsent": frozenset({ResourceKind.SECURITY_GROUP}),
    "ServerGroupAbsent": frozenset({ResourceKind.SERVER_GROUP}),
    "SurplusAbsent": frozenset(
        {
            ResourceKind.SNAPSHOT,
            ResourceKind.VOLUME,
            ResourceKind.FLOATING_ADDRESS,
            ResourceKind.SECURITY_GROUP,
            ResourceKind.SERVER_GROUP,
        }
    ),
}
_ORDER = tuple(ResourceKind)
# Of these an address is recorded, too, which a look does not show.
_ADDRESSED = frozenset({ResourceKind.PORT, ResourceKind.FLOATING_ADDRESS})


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What one look has shown of an instance, in the state entered at this version."""

    entered: int
    surplus: tuple[Resource, ...] = ()
    drift: tuple[Drift, ...] = ()

    @property
    def agrees(self) -> bool:
        """Whether all is as the instance believes."""
        return not self.surplus and not self.drift


def look(instance: Instance, seen: Sequence[Resource]) -> Look | None:
    """What was seen, compared. None while an operation runs: it changes these things itself."""
    if instance.operation is not None:
        return None
    return Look(entered=instance.entered, surplus=surplus(instance, seen), drift=drift(instance, seen))


def note(instance: Instance, before: Look | None, now: Look, *, at: datetime) -> None:
    """Record what both looks agree about and what has changed by it; nothing that is on record already."""
    if before is None or before.entered != now.entered:
        return
    for resource in now.surplus:
        if resource.id in {each.id for each in before.surplus}:
            note_surplus(instance, resource, at=at)
    for each in now.drift:
        if each in before.drift and each not in instance.drift:
            instance.trigger_event(DriftFound, timestamp=at, drift=each)
    shown = {each.about for each in (*before.drift, *now.drift)}
    for each in instance.drift:
        if each.about not in shown:
            instance.trigger_event(DriftGone, timestamp=at, drift=each)


# --- surplus ------------------------------------------------------------------------------------------------------


def surplus(instance: Instance, seen: Iterable[Resource]) -> tuple[Resource, ...]:
    """Of what was seen, what bears the instance's name and can never be recorded as its own, the servers first.

    That is all of an instance which is FAILED or DELETED, else every other resource of a kind whose recorded one is
    there. While an operation runs nothing counts: it may yet record what was seen, or removes it itself. What is left
    because somebody had its removal skipped stays.
    """
    if instance.operation is not None:
        return ()
    left = frozenset[ResourceKind]().union(*(_REMOVED_BY.get(effect, ()) for effect in instance.skipped))
    named = [
        each
        for each in seen
        if each.name == resource_name(instance.id, each.kind) and each.kind not in left and _is_where(instance, each)
    ]
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


# --- orphans ------------------------------------------------------------------------------------------------------


def orphans(instance: Instance, seen: Sequence[Resource]) -> tuple[Resource, ...]:
    """Of what was seen as the instance's by name or mark, what is not its own and is not removed as surplus."""
    if instance.operation is not None:
        return ()
    removed = {each.id for each in (*instance.surplus, *surplus(instance, seen))}
    return tuple(each for each in seen if each.id not in removed and not _is_own(instance, each))


def disown(instance: Instance, found: Resource, *, actor: str, at: datetime) -> None:
    """Record that somebody wants the orphan removed; wanted already, it is no second event. Raises `Refusal`."""
    _refuse_while_running(instance, found)
    if _is_own(instance, found):
        raise Refusal(
            "forbidden_state",
            f"{found} is instance {instance.id}'s own, which is {instance.status}; delete the instance to remove it",
        )
    if found.id not in {each.id for each in instance.surplus}:
        instance.trigger_event(OrphanDisowned, timestamp=at, found=found, actor=actor)


def adopt(instance: Instance, found: Resource, seen: Iterable[Resource], *, actor: str, at: datetime) -> None:
    """Record that the orphan is the instance's own. Raises `Refusal`, also when what is recorded was seen.

    What is its own already is no second event.
    """
    _refuse_while_running(instance, found)
    if _is_own(instance, found):
        return
    why_not = _not_to_be_adopted(instance, found, {each.id for each in seen})
    if why_not is not None:
        raise Refusal("forbidden_state", f"{found} cannot be instance {instance.id}'s own: {why_not}")
    instance.trigger_event(OrphanAdopted, timestamp=at, found=found, actor=actor)


def _not_to_be_adopted(instance: Instance, found: Resource, seen: Collection[str]) -> str | None:
    own, name = instance.held(found.kind), resource_name(instance.id, found.kind)
    if instance.state in NOTHING:
        return f"it is {instance.status} and has nothing; remove the orphan"
    if found.kind in _ADDRESSED:
        return f"at which address it is reached would not be known; remove the {found.kind.spoken}"
    if not _is_where(instance, found) or found.name != name:
        return _cannot_be_found(instance, found, name)
    if own in seen:
        return f"{found.kind.spoken} {own} is, and is there; remove one of the two"
    if found.id in {each.id for each in instance.surplus}:
        return "it is being removed"
    return None


def _cannot_be_found(instance: Instance, found: Resource, name: str) -> str:
    if not _is_where(instance, found):
        return f"it is in region {found.region}, and the instance in region {instance.region}; remove it"
    return f"it is named {found.name}; name it {name}, by which it would be found and removed"


def _refuse_while_running(instance: Instance, found: Resource) -> None:
    if instance.operation is not None:
        raise Refusal(
            "conflict",
            f"operation {instance.operation.id} ({instance.operation.command}) is running on instance {instance.id}, "
            f"and may record {found} as its own; wait until it has ended",
        )


def _is_own(instance: Instance, found: Resource) -> bool:
    return instance.state not in NOTHING and found.id == instance.recorded(found.kind)


def _is_where(instance: Instance, found: Resource) -> bool:
    """Whether it is in the instance's region, as far as both are known."""
    return instance.region is None or found.region in (None, instance.region)


# --- drift --------------------------------------------------------------------------------------------------------


def drift(instance: Instance, seen: Iterable[Resource]) -> tuple[Drift, ...]:
    """In what the instance's own resources differ from what it believes of them.

    What is on its way out differs in its status alone. An instance in ERROR believes nothing of its server's status,
    nor of the attachment.
    """
    if instance.operation is not None or instance.state in NOTHING:
        return ()
    by_id = {each.id: each for each in seen if _is_where(instance, each)}
    found: list[Drift] = []
    for kind in ResourceKind:
        own = instance.held(kind)
        if own is None:
            continue
        there = by_id.get(own)
        if there is None:
            found.append(Drift(resource=kind, id=own, what=DriftKind.GONE))
        elif there.status == DELETING:
            found.append(Drift(resource=kind, id=own, what=DriftKind.STATUS, seen=DELETING))
        else:
            found.extend(_differing(instance, there))
    return tuple(found)


def _differing(instance: Instance, there: Resource) -> Iterator[Drift]:
    for what, believed, seen in _compared(instance, there):
        if believed is not None and believed != seen:
            yield Drift(resource=there.kind, id=there.id, what=what, believed=believed, seen=seen)


def _compared(instance: Instance, there: Resource) -> Iterator[tuple[DriftKind, str | None, str | None]]:
    """What is compared, what is believed (None: nothing), and what was seen."""
    match there.kind:
        case ResourceKind.SERVER:
            yield DriftKind.STATUS, {"ACTIVE": "ACTIVE", "SHUTOFF": "SHUTOFF"}.get(instance.state), there.status
            if there.flavor_id is not None:
                yield DriftKind.FLAVOR, instance.flavor.id, there.flavor_id
            if there.host is not None:
                yield DriftKind.HOST, instance.host, there.host
        case ResourceKind.VOLUME:
            if there.size is not None:
                yield DriftKind.SIZE, str(instance.volume_size), str(there.size)
            if instance.state != "ERROR":
                yield DriftKind.DETACHED, instance.held(ResourceKind.SERVER), there.server_id
        case ResourceKind.FLOATING_ADDRESS:
            yield DriftKind.PORT, instance.held(ResourceKind.PORT), there.port_id
