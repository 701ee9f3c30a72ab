"""Cinder: the volume of an instance. Nothing keeps two of one name from being made; the surplus is removed later."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from openstack.block_storage.v3._proxy import Proxy as Cinder
from openstack.block_storage.v3.message import Message
from openstack.block_storage.v3.volume import Volume

from aggregates import effects
from engine.clouds import port
from engine.clouds.openstack import config as configured
from engine.clouds.openstack import marks
from engine.clouds.openstack.calls import Service
from engine.clouds.openstack.snapshots import Snapshots
from engine.clouds.openstack.waiting import Watch, told
from engine.clouds.port import Facts, FinalError, PayError, TransientError

_AT_REST = frozenset({"available", "in-use"})
_BROKEN = "error"


class Volumes:
    """The volumes. `holds(server_id)`: whether there is that server."""

    def __init__(
        self,
        cinder: Service[Cinder],
        config: configured.Volumes,
        holds: Callable[[str], Awaitable[bool]],
        snapshots: Snapshots,
        *,
        patience: float,
    ) -> None:
        self._cinder = cinder
        self._snapshots = snapshots
        self._holds = holds
        self._config = config
        self._watch: Watch[Volume] = Watch("volume", self.get, self._changed, patience=patience)

    def close(self) -> None:
        """Stop waiting."""
        self._watch.close()

    async def get(self, volume_id: str) -> Volume | None:
        """The volume, if it is there."""
        return await self._cinder.present("get_volume", lambda cinder: cinder.get_volume(volume_id))

    async def ensure(self, effect: effects.EnsureVolume) -> Facts:
        """There is the volume, and it is ready."""
        found = await self._named(effect.name)
        mine = marks.ours(
            "volume", effect.name, found, lambda each: marks.in_metadata(effect.instance_id, each.metadata)
        )
        volume = next((each for each in mine if each.status != "deleting"), None)
        if volume is None:
            volume = await self._make(effect)
        elif volume.size < effect.size:
            raise FinalError("conflict", f"volume {effect.name} has {volume.size} GiB already, not {effect.size}")
        # From its answer on Cinder lists the volume by its name, so whatever goes wrong now, it is found.
        port.knows(volume_id=volume.id)
        ready = await self._at_rest(volume)
        return {"volume_id": ready.id}

    async def _make(self, effect: effects.EnsureVolume) -> Volume:
        wanted: dict[str, Any] = {
            "name": effect.name,
            "size": effect.size,
            "metadata": marks.metadata(effect.instance_id, effect.project),
            "volume_type": effect.volume_type or self._config.default_type,
            "availability_zone": self._config.availability_zone or effect.availability_zone,
        }
        wanted = {key: value for key, value in wanted.items() if value is not None}
        return await self._cinder.change("create_volume", lambda cinder: cinder.create_volume(**wanted))

    async def extend(self, effect: effects.ExtendVolume) -> Facts:
        """The volume has the size, in use or not."""
        volume = await self.at_rest(effect.volume_id)
        if volume.size < effect.size:
            await self._cinder.change("extend_volume", lambda cinder: cinder.extend_volume(volume.id, effect.size))
            with told():
                now = await self.at_rest(volume.id)
            if now.size < effect.size:
                raise TransientError(
                    "cloud_error", f"volume {volume.id} still has {now.size} GiB{await self._why(volume.id)}"
                )
        return {}

    async def absent(self, effect: effects.VolumeAbsent) -> Facts:
        """There is no such volume."""
        for volume_id in await self._ids(effect, effect.volume_id):
            await self.remove(volume_id)
        return {}

    async def surplus_absent(self, effect: effects.SurplusAbsent) -> list[str]:
        """The volumes of the name that were not the one to keep, and are gone now."""
        surplus = [each for each in await self._ids(effect, None) if each not in effect.keep]
        for volume_id in surplus:
            await self.remove(volume_id)
        return surplus

    async def remove(self, volume_id: str) -> None:
        """There is no such volume any more. Raises `TransientError` while a server has it."""
        volume = await self.get(volume_id)
        if volume is None:
            return
        if volume.status == "error_deleting":
            broken = await self._broken(volume)
            raise FinalError(
                broken.code,
                f"{broken.message}; Cinder takes no other try before an administrator has reset it: "
                f"openstack volume set --state error {volume_id}",
            )
        if volume.status != "deleting":
            volume = await self._watch.until(volume, lambda each: _is_over(each) or each.status == "deleting")
            for each in volume.attachments:
                await self._let_go(volume_id, each["server_id"], each["attachment_id"])
            await self._delete(volume_id)
        left = await self._watch.until_gone(volume_id, lambda each: each.status.startswith(_BROKEN))
        if left is not None:
            raise await self._broken(left)

    async def _delete(self, volume_id: str) -> None:
        try:
            await self._cinder.remove("delete_volume", lambda cinder: cinder.delete_volume(volume_id))
        except FinalError:
            await self._snapshots.refuse_kept(volume_id)
            raise

    async def _let_go(self, volume_id: str, server_id: str, attachment_id: str) -> None:
        """A server that was deleted while its host was down may have left its attachment behind."""
        if await self._holds(server_id):
            raise TransientError("in_use", f"server {server_id} has volume {volume_id}; delete the server first")
        await self._cinder.remove("delete_attachment", lambda cinder: cinder.delete_attachment(attachment_id))

    async def at_rest(self, volume_id: str) -> Volume:
        """The volume once nothing is done with it. Raises `FinalError` when it is broken, or is not there."""
        return await self._at_rest(await self._there(volume_id))

    async def _there(self, volume_id: str) -> Volume:
        return await self._cinder.look("get_volume", lambda cinder: cinder.get_volume(volume_id))

    async def _at_rest(self, volume: Volume) -> Volume:
        now = await self._watch.until(volume, _is_over)
        if now.status not in _AT_REST:
            raise await self._broken(now)
        return now

    async def _broken(self, volume: Volume) -> FinalError:
        return FinalError("cloud_error", f"volume {volume.id} is in status {volume.status}{await self._why(volume.id)}")

    async def _why(self, volume_id: str) -> str:
        """What Cinder tells users of its last failure with the volume."""
        try:
            told: list[Message] = await self._cinder.look(
                "list_messages", lambda cinder: [m for m in cinder.messages() if m.resource_uuid == volume_id]
            )
        except PayError:
            return ""
        latest = max(told, key=lambda message: message.created_at, default=None)
        return "" if latest is None else f": {latest.user_message} ({latest.request_id})"

    async def _named(self, name: str) -> list[Volume]:
        return await self._cinder.look("list_volumes", lambda cinder: list(cinder.volumes(name=name)))

    async def _ids(self, effect: effects.VolumeAbsent | effects.SurplusAbsent, recorded: str | None) -> list[str]:
        """Ours of this name, and what is recorded, which a list may not show."""
        found = await self._named(effect.name)
        ids = {each.id: None for each in found if marks.in_metadata(effect.instance_id, each.metadata)}
        return list(ids if recorded is None else ids | {recorded: None})

    async def _changed(self, since: str | None, seen: Mapping[str, Volume]) -> Mapping[str, Volume]:
        if since is None:
            everything = await self._cinder.look("list_volumes", lambda cinder: list(cinder.volumes()))
            return {each.id: each for each in everything}
        changed = await self._cinder.look(
            "list_volumes", lambda cinder: list(cinder.volumes(updated_at=f"gte:{since}"))
        )
        now = dict(seen) | {each.id: each for each in changed}
        going = {each.id for each in now.values() if each.status == "deleting"}
        if going & seen.keys():
            # Cinder shows no volume that is gone: of those that are going, the ones which it shows no more are.
            still = await self._cinder.look(
                "list_volumes", lambda cinder: {each.id for each in cinder.volumes(status="deleting")}
            )
            now = {key: each for key, each in now.items() if key not in going or key in still}
        return now


def _is_over(volume: Volume) -> bool:
    """Whether the cloud has ended its work on it, well or not."""
    return volume.status in _AT_REST or volume.status.startswith(_BROKEN)
