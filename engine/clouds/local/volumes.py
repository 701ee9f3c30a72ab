"""Volumes: directories of limited size, each at most one server's. They only grow.

Where loop devices can be mounted the limit is a file system's, else it is only recorded here, and enforced by the
guest agent. A volume stays as it was made, whatever the setting is later.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from uuid import uuid4

import msgspec

from aggregates.effects import EnsureVolume, ExtendVolume, VolumeAbsent
from engine.clouds.local import loopback, records
from engine.clouds.local.claims import Claim, Claims
from engine.clouds.local.locks import Lock
from engine.clouds.local.records import Volume
from engine.clouds.port import FinalError, TransientError, check_may_change


class Volumes:
    """The volumes of one local cloud. Every call that changes one is made under the lock of its name."""

    def __init__(self, directory: Path, claims: Claims, owner: tuple[int, int] | None) -> None:
        self._directory = directory
        self._claims = claims
        self._owner = owner
        self.mounting = False

    def prepare(self) -> None:
        """Make the directory; guests pass through it."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self._directory.chmod(0o711)

    def file_system(self, volume_id: str) -> Path:
        """Where the volume's content lies."""
        return self._directory / volume_id / "fs"

    def find(self, volume_id: str) -> Volume | None:
        """The volume of this id."""
        return records.read(self._record(volume_id), Volume)

    def get(self, volume_id: str) -> Volume:
        """The volume of this id. Raises `FinalError`."""
        volume = self.find(volume_id)
        if volume is None:
            raise FinalError("not_found", f"there is no volume {volume_id}")
        return volume

    def all(self) -> list[Volume]:
        """Every volume."""
        found = (self.find(path.name) for path in self._directory.iterdir())
        return [volume for volume in found if volume is not None]

    def unfinished(self) -> list[str]:
        """Ids of the volumes whose making or removal was interrupted."""
        return [path.name for path in self._directory.iterdir() if not self._record(path.name).exists()]

    def ensure(self, wanted: EnsureVolume, lock: Lock) -> Volume:
        """The volume of this name; made if there is none."""
        if wanted.volume_type not in (None, "local"):
            raise FinalError("invalid_argument", f"there is no volume type {wanted.volume_type}; there is: local")
        volume_id = self._claims.take(Claim.VOLUME, wanted.name, str(uuid4()))
        volume = self.find(volume_id)
        if volume is not None and volume.size < wanted.size:
            raise FinalError(
                "conflict", f"volume {wanted.name} has {volume.size} GiB already, not {wanted.size}; extend it"
            )
        if volume is None:
            volume = Volume(
                id=volume_id,
                name=wanted.name,
                project=wanted.project,
                size=wanted.size,
                mounted=self.mounting or self._image(volume_id).exists(),
                owner=self._owner,
            )
            self._make(volume, lock)
            records.write(self._record(volume_id), volume)
        self.bring_up(volume, lock)
        return volume

    def bring_up(self, volume: Volume, lock: Lock) -> None:
        """Mount the volume if it should be and is not, as after a reboot of the machine."""
        if volume.mounted and not self.file_system(volume.id).is_mount():
            loopback.mount(self._image(volume.id), self.file_system(volume.id), volume.owner, lock)

    def extend(self, wanted: ExtendVolume, lock: Lock) -> None:
        """The volume has at least this size."""
        volume = self.get(wanted.volume_id)
        if volume.size >= wanted.size:
            return
        check_may_change()
        self.bring_up(volume, lock)
        if volume.mounted:
            loopback.extend(self._image(volume.id), wanted.size, lock)
        records.write(self._record(volume.id), msgspec.structs.replace(volume, size=wanted.size))

    def remove(self, unwanted: VolumeAbsent, lock: Lock) -> None:
        """No volume of this name or id is left. Raises `TransientError` while a server has it."""
        ids = {unwanted.volume_id, self._claims.holder(Claim.VOLUME, unwanted.name)} - {None, ""}
        for volume_id in map(str, ids):
            holder = self._claims.holder(Claim.ATTACHMENT, volume_id)
            if holder is not None:
                raise TransientError("in_use", f"server {holder} has volume {volume_id}; delete the server first")
            if self._claims.name(Claim.VOLUME, volume_id) is not None:
                check_may_change()
            self._unmake(volume_id, lock)
            self._claims.release(Claim.VOLUME, volume_id)

    def _make(self, volume: Volume, lock: Lock) -> None:
        directory = self._directory / volume.id
        directory.mkdir(exist_ok=True)
        directory.chmod(0o711)
        records.sync_directory(self._directory)
        if volume.mounted:
            loopback.make(self._image(volume.id), volume.size, volume.owner, lock)
            loopback.mount(self._image(volume.id), self.file_system(volume.id), volume.owner, lock)
            return
        point = self.file_system(volume.id)
        point.mkdir(exist_ok=True, mode=0o700)
        if volume.owner is not None:
            os.chown(point, *volume.owner)

    def _unmake(self, volume_id: str, lock: Lock) -> None:
        directory = self._directory / volume_id
        if not directory.exists():
            return
        if self._image(volume_id).exists() or self.file_system(volume_id).is_mount():
            loopback.unmount(self._image(volume_id), self.file_system(volume_id), lock)
        records.remove(self._record(volume_id))
        shutil.rmtree(directory)
        records.sync_directory(self._directory)

    def _record(self, volume_id: str) -> Path:
        return self._directory / volume_id / "volume.json"

    def _image(self, volume_id: str) -> Path:
        return self._directory / volume_id / "image"
