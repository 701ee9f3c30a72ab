"""Cinder: the snapshot of a volume, also while a server has that. Nothing keeps two of one name from being made.

Those of the name that bear our mark are removed together; those that somebody else has made of the volume never are.
"""

from __future__ import annotations

from collections.abc import Mapping

from openstack.block_storage.v3._proxy import Proxy as Cinder
from openstack.block_storage.v3.snapshot import Snapshot

from aggregates import effects
from engine.clouds import port
from engine.clouds.openstack import marks
from engine.clouds.openstack.calls import Service
from engine.clouds.openstack.waiting import Watch
from engine.clouds.port import Facts, FinalError

_READY = "available"
_BROKEN = "error"


class Snapshots:
    """The snapshots."""

    def __init__(self, cinder: Service[Cinder], *, patience: float) -> None:
        self._cinder = cinder
        self._watch: Watch[Snapshot] = Watch("snapshot", self.get, self._changed, patience=patience)

    def close(self) -> None:
        """Stop waiting."""
        self._watch.close()

    async def get(self, snapshot_id: str) -> Snapshot | None:
        """The snapshot, if it is there."""
        return await self._cinder.present("get_snapshot", lambda cinder: cinder.get_snapshot(snapshot_id))

    async def ensure(self, effect: effects.EnsureSnapshot) -> Facts:
        """There is the snapshot, and it is ready."""
        found = await self._named(effect.name)
        mine = marks.ours(
            "snapshot", effect.name, found, lambda each: marks.in_metadata(effect.instance_id, each.metadata)
        )
        snapshot = next((each for each in mine if each.status != "deleting"), None)
        if snapshot is None:
            # `force`: of a volume that a server has, too; later versions of Cinder do not ask for it, and take it.
            snapshot = await self._cinder.change(
                "create_snapshot",
                lambda cinder: cinder.create_snapshot(
                    name=effect.name,
                    volume_id=effect.volume_id,
                    force=True,
                    metadata=marks.metadata(effect.instance_id, effect.project),
                ),
            )
        elif snapshot.volume_id != effect.volume_id:
            raise FinalError(
                "conflict", f"snapshot {snapshot.id} is of volume {snapshot.volume_id}, not of {effect.volume_id}"
            )
        port.knows(snapshot_id=snapshot.id)
        ready = await self._watch.until(snapshot, _is_over)
        if ready.status != _READY:
            raise _broken(ready)
        return {"snapshot_id": ready.id}

    async def absent(self, effect: effects.SnapshotAbsent) -> Facts:
        """There is no such snapshot."""
        for snapshot_id in dict.fromkeys([*await self._ours(effect), effect.snapshot_id]):
            if snapshot_id is not None:
                await self.remove(snapshot_id)
        return {}

    async def surplus_absent(self, effect: effects.SurplusAbsent) -> list[str]:
        """The snapshots of the name that were not the one to keep, and are gone now."""
        surplus = [each for each in await self._ours(effect) if each not in effect.keep]
        for snapshot_id in surplus:
            await self.remove(snapshot_id)
        return surplus

    async def _ours(self, effect: effects.SnapshotAbsent | effects.SurplusAbsent) -> list[str]:
        found = await self._named(effect.name)
        return [each.id for each in found if marks.in_metadata(effect.instance_id, each.metadata)]

    async def remove(self, snapshot_id: str) -> None:
        """There is no such snapshot any more."""
        snapshot = await self.get(snapshot_id)
        if snapshot is None:
            return
        if snapshot.status == "error_deleting":
            raise FinalError(
                "cloud_error",
                f"snapshot {snapshot_id} is in status {snapshot.status}; Cinder takes no other try before an "
                f"administrator has reset it: openstack volume snapshot set --state error {snapshot_id}",
            )
        if snapshot.status != "deleting":
            await self._watch.until(snapshot, lambda each: _is_over(each) or each.status == "deleting")
            await self._cinder.remove("delete_snapshot", lambda cinder: cinder.delete_snapshot(snapshot_id))
        left = await self._watch.until_gone(snapshot_id, lambda each: each.status.startswith(_BROKEN))
        if left is not None:
            raise _broken(left)

    async def refuse_kept(self, volume_id: str) -> None:
        """Raises `FinalError` that names the snapshots for whose sake Cinder deletes no volume."""
        found = await self._cinder.look("list_snapshots", lambda cinder: list(cinder.snapshots(volume_id=volume_id)))
        if found:
            kept = ", ".join(f"{each.id} ({each.name or 'without a name'})" for each in found)
            raise FinalError(
                "has_snapshots",
                f"volume {volume_id} has snapshots that Holdfast has not made: {kept}; the cloud deletes no volume "
                "before its snapshots are deleted",
            )

    async def _named(self, name: str) -> list[Snapshot]:
        return await self._cinder.look("list_snapshots", lambda cinder: list(cinder.snapshots(name=name)))

    async def _changed(self, since: str | None, seen: Mapping[str, Snapshot]) -> Mapping[str, Snapshot]:  # noqa: ARG002
        """All of them: of snapshots Cinder does not list what has changed since a moment, and there are few."""
        every = await self._cinder.look("list_snapshots", lambda cinder: list(cinder.snapshots()))
        return {each.id: each for each in every}


def _is_over(snapshot: Snapshot) -> bool:
    """Whether the cloud has ended its work on it, well or not."""
    return str(snapshot.status) == _READY or str(snapshot.status).startswith(_BROKEN)


def _broken(snapshot: Snapshot) -> FinalError:
    return FinalError("cloud_error", f"snapshot {snapshot.id} is in status {snapshot.status}")
