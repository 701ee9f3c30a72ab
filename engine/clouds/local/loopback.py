"""Volumes with a hard limit: an image file with a file system of its own, mounted by a loop device.

A full image is a full disk to the database. The image is sparse, so the disk below may fill up first.
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from engine.clouds.local import records, tools
from engine.clouds.local.locks import Lock
from engine.clouds.port import FinalError, PayError, TransientError

_GIB = 1024**3
_MIB = 1024**2
_TOOLS = ("mkfs.ext4", "resize2fs", "losetup", "mount", "umount")
_BUSY = 5.0  # seconds that an unmount may find the file system in use, before it is made lazy


def image_size(size: int) -> int:
    """Bytes of the image of a volume of so many GiB.

    The journal takes 16 MiB and ext4's tables 23 MiB and 1 %; with 80 MiB and 1/64 more than the nominal size, all of
    that size can be used, and the 32 MiB are left with which a guest agent's own limit is met first.
    """
    return size * _GIB + size * _GIB // 64 + 80 * _MIB


def make(image: Path, size: int, owner: tuple[int, int] | None, lock: Lock) -> None:
    """There is an image with an empty file system."""
    if image.exists():
        return
    fresh = image.with_name("image.new")
    fresh.unlink(missing_ok=True)  # half made by whoever was killed
    with fresh.open("xb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.truncate(image_size(size))
    uid, gid = owner or (os.geteuid(), os.getegid())
    options = f"lazy_itable_init=0,lazy_journal_init=0,root_owner={uid}:{gid}"
    form = ("-b", "4096", "-m", "0", "-i", "65536", "-J", "size=16")
    tools.run("mkfs.ext4", "-q", "-F", *form, "-E", options, str(fresh), lock=lock, timeout=120)
    fresh.replace(image)
    records.sync_directory(image.parent)


def mount(image: Path, point: Path, owner: tuple[int, int] | None, lock: Lock) -> None:
    """The image is mounted, empty of anything but the database's files."""
    point.mkdir(exist_ok=True, mode=0o700)
    if not point.is_mount():
        tools.run("mount", "-t", "ext4", "-o", "loop,nodev,nosuid,noatime", str(image), str(point), lock=lock)
    with suppress(FileNotFoundError):
        (point / "lost+found").rmdir()
    if owner is not None:
        os.chown(point, *owner)
    point.chmod(0o700)


def extend(image: Path, size: int, lock: Lock) -> None:
    """The image and its mounted file system have at least this size (GiB)."""
    if image.stat().st_size < image_size(size):
        os.truncate(image, image_size(size))
    _grow(image, lock)


def unmount(image: Path, point: Path, lock: Lock) -> None:
    """The image is mounted nowhere and no loop device has it."""
    end = time.monotonic() + _BUSY
    while point.is_mount():
        lazy = ("-l",) if time.monotonic() > end else ()
        try:
            tools.run("umount", *lazy, str(point), lock=lock)
        except TransientError:
            if lazy:
                raise
            time.sleep(0.1)
    if image.exists():
        for device in devices(image, lock):
            tools.run("losetup", "--detach", device, lock=lock)


def devices(image: Path, lock: Lock) -> list[str]:
    """The loop devices that have this image."""
    found = tools.run("losetup", "--noheadings", "--output", "NAME", "--associated", str(image), lock=lock)
    return found.split()


class Abilities(msgspec.Struct, frozen=True, kw_only=True):
    """Why images cannot be mounted here, or cannot grow while they are mounted; None where they can."""

    mounts: str | None
    grows: str | None


def probe(directory: Path, lock: Lock) -> Abilities:
    """Find out with a small image."""
    if os.geteuid() != 0:
        return Abilities(mounts="it needs root", grows="it needs root")
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        reason = f"it needs {', '.join(missing)}"
        return Abilities(mounts=reason, grows=reason)
    image, point = directory / "probe.image", directory / "probe"
    unmount(image, point, lock)
    try:
        return _try(image, point, lock)
    finally:
        unmount(image, point, lock)
        image.unlink(missing_ok=True)
        point.rmdir()


def _try(image: Path, point: Path, lock: Lock) -> Abilities:
    point.mkdir(exist_ok=True)
    try:
        image.write_bytes(b"")
        os.truncate(image, 8 * _MIB)
        tools.run("mkfs.ext4", "-q", "-F", "-O", "^has_journal", str(image), lock=lock)
        tools.run("mount", "-t", "ext4", "-o", "loop", str(image), str(point), lock=lock)
    except (OSError, TransientError) as error:
        return Abilities(mounts=str(error), grows=str(error))
    try:
        os.truncate(image, 16 * _MIB)
        _grow(image, lock)
    except (OSError, PayError) as error:
        return Abilities(mounts=None, grows=str(error))
    return Abilities(mounts=None, grows=None)


def _grow(image: Path, lock: Lock) -> None:
    for device in devices(image, lock):
        tools.run("losetup", "--set-capacity", device, lock=lock)
        try:
            tools.run("resize2fs", device, lock=lock, timeout=120)
        except TransientError as error:
            if "Permission denied to resize" not in error.message:
                raise
            raise FinalError(
                "unsupported", f"{error.message}; a mounted file system grows only with the capability CAP_SYS_RESOURCE"
            ) from error
