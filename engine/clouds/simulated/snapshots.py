"""Paying for snapshots of volumes. Nothing fences one: those of one name are made in turn, and removed together."""

from __future__ import annotations

from aggregates import effects
from engine.clouds.port import Facts, FinalError, knows
from engine.clouds.simulated.calls import Calls, unrecorded
from engine.clouds.simulated.resources import Snapshot


class Snapshots:
    """Ensures."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def ensure(self, effect: effects.EnsureSnapshot, key: str) -> Facts:
        """There is the snapshot, and it is ready."""
        async with self._calls.turn("snapshot", effect.name):
            found: list[Snapshot] = await self._calls.look("list_snapshots", name=effect.name)
            snapshot = next((each for each in found if each.status != "deleting"), None)
            made = snapshot is None
            if snapshot is None:
                snapshot = await self._calls.change(
                    key, "create_snapshot", name=effect.name, volume_id=effect.volume_id
                )
            elif snapshot.volume_id != effect.volume_id:
                raise FinalError(
                    "conflict", f"snapshot {snapshot.id} is of volume {snapshot.volume_id}, not {effect.volume_id}"
                )
            knows(snapshot_id=snapshot.id)
            with unrecorded(made):
                ready = await self._calls.until(
                    "snapshot", self._calls.snapshots, snapshot, snapshot.id, lambda each: each.status == "available"
                )
        return {"snapshot_id": ready.id}

    async def absent(self, effect: effects.SnapshotAbsent, key: str) -> Facts:
        """There is no such snapshot."""
        for snapshot_id in await self._calls.ids("list_snapshots", effect.name, effect.snapshot_id):
            await self.remove(snapshot_id, key)
        return {}

    async def remove(self, snapshot_id: str, key: str) -> None:
        """The snapshot is gone."""
        snapshot: Snapshot | None = await self._calls.present("get_snapshot", snapshot_id)
        if snapshot is None:
            return
        if snapshot.status != "deleting":
            await self._calls.remove(key, "delete_snapshot", snapshot_id)
        await self._calls.until_gone("snapshot", self._calls.snapshots, snapshot_id)

    async def refuse_kept(self, volume_id: str) -> None:
        """Raises `FinalError` that names the snapshots for whose sake a volume cannot be deleted."""
        every: list[Snapshot] = await self._calls.look("list_snapshots")
        kept = [f"{each.id} ({each.name})" for each in every if each.volume_id == volume_id]
        if kept:
            raise FinalError(
                "has_snapshots",
                f"volume {volume_id} has snapshots that Holdfast has not made: {', '.join(kept)}; the cloud deletes no "
                "volume before its snapshots are deleted",
            )
