"""The volume service, as Cinder has it. Nothing keeps two volumes, or two snapshots, from having one name."""

from __future__ import annotations

from typing import Any

import msgspec

from engine.clouds.errors import CloudAnswerError
from engine.clouds.simulated.ground import Ground
from engine.clouds.simulated.resources import Shelf, Snapshot, Volume


class BlockStorage:
    """The volumes and their snapshots."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self.volumes: Shelf[Volume] = Shelf("volume")
        self.snapshots: Shelf[Snapshot] = Shelf("snapshot")

    def list_volumes(self, name: str | None = None) -> list[Volume]:
        """The volumes of this name, or all, oldest first."""
        return self.volumes.named(name, self._ground.age)

    def get_volume(self, id: str) -> Volume:  # noqa: A002 - the clouds' own word
        """The volume."""
        return self.volumes.found(id)

    def create_volume(
        self, name: str, size: int, volume_type: str | None = None, availability_zone: str | None = None
    ) -> Volume:
        """Make a volume, which is `available` after a while."""
        if volume_type is not None and volume_type not in self._ground.catalogue.volume_types:
            raise CloudAnswerError(400, f"there is no volume type {volume_type}")
        check_zone(self._ground, availability_zone)
        made = Volume(id=self._ground.new_id(), name=name, size=size, volume_type=volume_type, status="creating")
        self.volumes.put(made)
        self._ground.note("create", "volume", made)
        self._ground.later(lambda: self.change(made.id, status="available"))
        return self.volumes.get(made.id) or made

    def extend_volume(self, id: str, size: int) -> None:  # noqa: A002
        """Make a volume larger. 400: it would shrink, or its type cannot while a server has it."""
        volume = self.volumes.found(id)
        if size <= volume.size:
            raise CloudAnswerError(400, f"volume {id} has {volume.size} GiB; it can only grow")
        if volume.status != "available" and volume.volume_type in self._ground.catalogue.extended_offline:
            raise CloudAnswerError(400, f"volume {id} is {volume.status}; it must be available to be extended")
        self.change(id, size=size)
        self._ground.note("extend", "volume", volume)

    def delete_volume(self, id: str) -> None:  # noqa: A002
        """Delete a volume that no server has; it is gone after a while."""
        volume = self.volumes.found(id)
        if volume.server_id is not None:
            raise CloudAnswerError(409, f"volume {id} is attached to server {volume.server_id}")
        if any(each.volume_id == id for each in self.snapshots.named(None)):
            raise CloudAnswerError(400, f"Invalid volume: volume {id} must not have snapshots")
        if volume.status == "deleting":
            return
        self.change(id, status="deleting")
        self._ground.note("delete", "volume", volume)
        self._ground.later(lambda: self._drop(id))

    def list_snapshots(self, name: str | None = None) -> list[Snapshot]:
        """The snapshots of this name, or all, oldest first."""
        return self.snapshots.named(name, self._ground.age)

    def get_snapshot(self, id: str) -> Snapshot:  # noqa: A002
        """The snapshot."""
        return self.snapshots.found(id)

    def create_snapshot(self, name: str, volume_id: str) -> Snapshot:
        """Keep the volume as it is, whoever has it; `available` after a while. 400: something is done with it."""
        volume = self.volumes.found(volume_id)
        if volume.status not in ("available", "in-use"):
            raise CloudAnswerError(400, f"Invalid volume: volume {volume_id} is {volume.status}")
        made = Snapshot(id=self._ground.new_id(), name=name, volume_id=volume_id, status="creating")
        self.snapshots.put(made)
        self._ground.note("create", "snapshot", made)
        self._ground.later(lambda: self._change_snapshot(made.id, "available"))
        return self.snapshots.get(made.id) or made

    def delete_snapshot(self, id: str) -> None:  # noqa: A002
        """Delete a snapshot; it is gone after a while."""
        snapshot = self.snapshots.found(id)
        if snapshot.status == "deleting":
            return
        self._change_snapshot(id, "deleting")
        self._ground.note("delete", "snapshot", snapshot)
        self._ground.later(lambda: self._drop_snapshot(id))

    def _change_snapshot(self, snapshot_id: str, status: str) -> None:
        snapshot = self.snapshots.get(snapshot_id)
        if snapshot is not None and snapshot.status != "deleting":
            self.snapshots.put(msgspec.structs.replace(snapshot, status=status))

    def _drop_snapshot(self, snapshot_id: str) -> None:
        snapshot = self.snapshots.get(snapshot_id)
        if snapshot is not None:
            self.snapshots.drop(snapshot)

    def change(self, volume_id: str, **changes: Any) -> None:
        """It is so now, if it is there."""
        volume = self.volumes.get(volume_id)
        if volume is not None:
            self.volumes.put(msgspec.structs.replace(volume, **changes))

    def _drop(self, volume_id: str) -> None:
        volume = self.volumes.get(volume_id)
        if volume is not None:
            self.volumes.drop(volume)


def check_zone(ground: Ground, zone: str | None) -> None:
    """Raises `CloudAnswerError` for an availability zone that there is not."""
    zones = ground.catalogue.availability_zones
    if zone is not None and zone not in zones:
        raise CloudAnswerError(400, f"there is no availability zone {zone}; there are: {', '.join(zones)}")
