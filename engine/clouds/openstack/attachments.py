"""Nova and Cinder: which server has the volume. Cinder gives it to one at a time."""

from __future__ import annotations

from openstack.block_storage.v3.volume import Volume
from openstack.compute.v2._proxy import Proxy as Nova

from aggregates import effects
from engine.clouds.openstack.calls import Service
from engine.clouds.openstack.servers import Servers
from engine.clouds.openstack.volumes import Volumes
from engine.clouds.openstack.waiting import told
from engine.clouds.port import Facts, FinalError, PayError, TransientError, check_alone


class Attachments:
    """The attachments."""

    def __init__(self, nova: Service[Nova], servers: Servers, volumes: Volumes) -> None:
        self._nova = nova
        self._servers = servers
        self._volumes = volumes

    async def ensure(self, effect: effects.EnsureAttachment) -> Facts:
        """The server has the volume."""
        volume = await self._volumes.at_rest(effect.volume_id)
        if self._is_held(volume, effect.server_id):
            return {}
        refused: PayError | None = None
        try:
            await self._nova.change(
                "attach_volume",
                lambda nova: nova.create_volume_attachment(effect.server_id, volume_id=effect.volume_id),
            )
        except FinalError as error:
            if error.code != "invalid_argument":
                raise
            refused = error  # because a call before is at it, or for good: the volume tells
        with told():
            now = await self._volumes.at_rest(effect.volume_id)
        if self._is_held(now, effect.server_id):
            return {}
        if refused is not None:
            raise refused
        raise await self._why_not(effect, "attach_volume", "was not attached")

    async def absent(self, effect: effects.DetachVolume) -> Facts:
        """The server has not the volume, which is available."""
        volume = await self._volumes.at_rest(effect.volume_id)
        if any(each["server_id"] == effect.server_id for each in volume.attachments):
            check_alone()
            await self._nova.remove(
                "detach_volume", lambda nova: nova.delete_volume_attachment(effect.server_id, effect.volume_id)
            )
            with told():
                volume = await self._volumes.at_rest(effect.volume_id)
            if volume.attachments:
                raise await self._why_not(effect, "detach_volume", "was not detached")
        if volume.attachments:
            holder = volume.attachments[0]["server_id"]
            raise FinalError("conflict", f"volume {volume.id} is attached to server {holder}")
        return {}

    async def _why_not(
        self, effect: effects.EnsureAttachment | effects.DetachVolume, action: str, what: str
    ) -> TransientError:
        why = await self._servers.fault(await self._servers.there(effect.server_id), action)
        return TransientError(why.code, f"volume {effect.volume_id} {what}; {why.message}")

    @staticmethod
    def _is_held(volume: Volume, server_id: str) -> bool:
        holders = [each["server_id"] for each in volume.attachments]
        if holders and server_id not in holders:
            raise FinalError("conflict", f"volume {volume.id} is attached to server {holders[0]}")
        return bool(holders)
