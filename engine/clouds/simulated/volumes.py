"""Paying for what the volume service holds, and for what servers have of it."""

from __future__ import annotations

from aggregates import effects
from aggregates.effects import CloudEffect
from engine.clouds.port import Facts, FinalError, knows
from engine.clouds.simulated.calls import Calls, refuse_in_use, unrecorded
from engine.clouds.simulated.resources import Volume
from engine.clouds.simulated.snapshots import Snapshots

# Where what nothing fences is listed by its name, and how it is deleted; volumes are gone only after a while.
_UNFENCED = (
    ("list_server_groups", "server_group"),
    ("list_floating_addresses", "floating_address"),
)


class Volumes:
    """Ensures. Nothing fences a volume, so those of one name are made in turn, and the surplus is removed later."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self.snapshots = Snapshots(calls)

    async def pay(self, effect: CloudEffect, key: str) -> Facts:
        """Make the effect true. Raises `TransientError` or `FinalError`."""
        match effect:
            case effects.EnsureVolume():
                async with self._calls.turn("volume", effect.name):
                    return await self._ensure(effect, key)
            case effects.VolumeAbsent():
                for volume_id in await self._calls.ids("list_volumes", effect.name, effect.volume_id):
                    await self.remove(volume_id, key)
            case effects.SurplusAbsent():
                return await self._surplus_absent(effect, key)
            case effects.EnsureSnapshot():
                return await self.snapshots.ensure(effect, key)
            case effects.SnapshotAbsent():
                return await self.snapshots.absent(effect, key)
            case effects.ExtendVolume():
                volume: Volume = await self._calls.look("get_volume", id=effect.volume_id)
                if volume.size < effect.size:
                    await self._calls.change(key, "extend_volume", id=volume.id, size=effect.size)
            case effects.EnsureAttachment():
                await self._attach(effect, key)
            case effects.DetachVolume():
                await self._detach(effect, key)
            case _:
                raise FinalError("unsupported", f"the volume service does not know {effect.type_name}")
        return {}

    async def _ensure(self, effect: effects.EnsureVolume, key: str) -> Facts:
        found: list[Volume] = await self._calls.look("list_volumes", name=effect.name)
        volume = next((each for each in found if each.status != "deleting"), None)
        made = volume is None
        if volume is None:
            volume = await self._calls.change(
                key,
                "create_volume",
                name=effect.name,
                size=effect.size,
                volume_type=effect.volume_type,
                availability_zone=effect.availability_zone,
            )
        elif volume.size < effect.size:
            raise FinalError("conflict", f"volume {effect.name} has {volume.size} GiB already, not {effect.size}")
        knows(volume_id=volume.id)
        with unrecorded(made):
            ready = await self._ready(volume)
        return {"volume_id": ready.id}

    async def _attach(self, effect: effects.EnsureAttachment, key: str) -> None:
        volume = await self._ready(await self._calls.look("get_volume", id=effect.volume_id))
        if volume.server_id not in (None, effect.server_id):
            raise FinalError("conflict", f"volume {volume.id} is attached to server {volume.server_id}")
        if volume.server_id is None:
            await self._calls.change(key, "attach_volume", server_id=effect.server_id, volume_id=volume.id)

    async def _detach(self, effect: effects.DetachVolume, key: str) -> None:
        volume: Volume = await self._calls.look("get_volume", id=effect.volume_id)
        if volume.server_id not in (None, effect.server_id):
            raise FinalError("conflict", f"volume {volume.id} is attached to server {volume.server_id}")
        if volume.server_id is not None and volume.status != "detaching":
            await self._calls.change_alone(key, "detach_volume", server_id=effect.server_id, volume_id=volume.id)
        with unrecorded(True):  # it was told, and may be doing it still
            await self._calls.until(
                "volume", self._calls.volumes, volume, volume.id, lambda each: each.status == "available"
            )

    async def _ready(self, volume: Volume) -> Volume:
        """The volume once the cloud does nothing with it."""
        return await self._calls.until(
            "volume", self._calls.volumes, volume, volume.id, lambda each: each.status in ("available", "in-use")
        )

    async def _surplus_absent(self, effect: effects.SurplusAbsent, key: str) -> Facts:
        removed = await self._surplus("list_snapshots", effect.name, effect.keep)
        for snapshot_id in removed:
            await self.snapshots.remove(snapshot_id, key)
        for volume_id in await self._surplus("list_volumes", effect.name, effect.keep):
            await self.remove(volume_id, key)
            removed.append(volume_id)
        groups = ("list_security_groups", "security_group", effect.security_group_name)
        for listing, what, name in (groups, *((*each, effect.name) for each in _UNFENCED)):
            for surplus in await self._surplus(listing, name, effect.keep):
                await self._calls.remove_present(key, what, surplus)
                removed.append(surplus)
        return {"removed": removed}

    async def _surplus(self, listing: str, name: str, keep: tuple[str, ...]) -> list[str]:
        return [each for each in await self._calls.ids(listing, name, None) if each not in keep]

    async def remove(self, volume_id: str, key: str) -> None:
        """The volume is gone. Raises `TransientError` while a server has it."""
        volume: Volume | None = await self._calls.present("get_volume", volume_id)
        if volume is None:
            return
        refuse_in_use("volume", volume_id, volume.server_id)
        if volume.status != "deleting":
            try:
                await self._calls.remove(key, "delete_volume", volume_id)
            except FinalError:
                await self.snapshots.refuse_kept(volume_id)
                raise
        await self._calls.until_gone("volume", self._calls.volumes, volume_id)
