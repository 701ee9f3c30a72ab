"""The machine's volume: found among its disks, formatted once, mounted, and grown.

It formats nothing but a blank disk, and takes none by order or name: a volume is known by its serial, which begins
like an OpenStack id, and later by the label that it was given here. It is run, by root, whenever a disk comes or
grows, and when the agent asks for it, which has no right to mount anything; it can ask for `--release` as well.
"""

from __future__ import annotations

import argparse
import os
import pwd
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import psutil

from engine.guest import image as images
from engine.guest import mount
from engine.guest.datastores.base import DatastoreError
from engine.guest.mount import HELD, MOUNT, RELEASE

LABEL = "holdfast"
_SERIAL = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]")  # the first 20 characters of a volume's id
_BLANK = 4 << 20  # bytes at the begin that must be zero before a disk is formatted
_OPTIONS = "nodev,nosuid,noatime"
_RELEASED = "released"  # which disk was let go of
_BUSY = 10.0  # seconds


class Disk(msgspec.Struct, frozen=True, kw_only=True):
    """A disk as `lsblk` tells of it."""

    path: str
    type: str
    serial: str | None = None
    fstype: str | None = None
    label: str | None = None
    mountpoints: list[str | None] = []
    children: list[Any] = []


class _Listed(msgspec.Struct, frozen=True):
    blockdevices: list[Disk]


def main(argv: list[str] | None = None) -> int:
    """Have the volume mounted, in its full size. Yields the exit status: 0 also while there is no volume yet."""
    parser = argparse.ArgumentParser(prog="engine.guest.disk", description="Mount the machine's volume, and grow it.")
    parser.add_argument("--image", type=Path, default=images.IMAGE, help="what the image says")
    parser.add_argument("--release", action="store_true", help="unmount it, until it is attached anew or asked for")
    options = parser.parse_args(argv)
    try:
        image = images.read(options.image)
        if options.release:
            return release(image)
        asked = _take_request(image, MOUNT)
        device = image.device or choose(disks(), image.mount)
        if device is None:
            print("no volume is attached yet", file=sys.stderr)
            return 0
        if not asked and _let_go_of(Path(device), image):
            print(f"{device} was let go of: it is mounted when it is attached anew, or asked for", file=sys.stderr)
            return 0
        bring_up(Path(device), image)
        (_answers(image) / _RELEASED).unlink(missing_ok=True)
    except (OSError, KeyError, subprocess.SubprocessError, msgspec.MsgspecError, DatastoreError) as error:
        words = getattr(error, "stderr", None) or ""
        print(f"the volume cannot be mounted: {error} {words}".strip(), file=sys.stderr)
        return 1
    return 0


def disks() -> list[Disk]:
    """Every disk of this machine."""
    told = _run("lsblk", "--json", "--output", "PATH,TYPE,SERIAL,FSTYPE,LABEL,MOUNTPOINTS")
    return msgspec.json.decode(told, type=_Listed).blockdevices


def choose(found: Sequence[Disk], place: Path) -> str | None:
    """The path of the one disk that is the volume; None while there is none. Raises `DatastoreError` for several."""
    free = [
        disk
        for disk in found
        if disk.type == "disk" and not disk.children and set(disk.mountpoints) <= {None, str(place)}
    ]
    ours = [disk for disk in free if disk.label == LABEL] or [
        disk for disk in free if disk.serial is not None and _SERIAL.match(disk.serial)
    ]
    if len(ours) > 1:
        named = ", ".join(f"{disk.path} ({disk.serial})" for disk in ours)
        raise DatastoreError(
            "volume_ambiguous", f"several disks may be the volume: {named}; name its device in {images.IMAGE}"
        )
    return ours[0].path if ours else None


def bring_up(device: Path, image: images.Image) -> None:
    """The device is mounted, has a file system of its own size, and belongs to the agent's user."""
    mounted = image.mount.is_mount()
    if not mounted:
        _format_if_blank(device)
        if _has_grown(device):
            _run("e2fsck", "-f", "-p", str(device), accept=(0, 1))  # else resize2fs refuses
            _run("resize2fs", str(device))
        image.mount.mkdir(parents=True, exist_ok=True)
        _run("mount", "--types", "ext4", "--options", _OPTIONS, str(device), str(image.mount))
    elif _has_grown(device):
        _run("resize2fs", str(device))
    image.kept.mkdir(exist_ok=True)
    owner = pwd.getpwnam(image.user)
    for directory in (image.mount, image.kept):
        os.chown(directory, owner.pw_uid, owner.pw_gid)
        directory.chmod(0o700)


def release(image: images.Image) -> int:
    """It is mounted no more, or it is said who holds it. Yields the exit status."""
    answers = _answers(image)
    answers.mkdir(mode=0o755, parents=True, exist_ok=True)
    held = answers / HELD
    held.unlink(missing_ok=True)
    try:
        if image.mount.is_mount():
            # Noted before, so that no event of the disk has it mounted between the two.
            (answers / _RELEASED).write_text(_identity(image.mount.stat().st_dev))
            _unmount(image.mount)
    except (OSError, subprocess.SubprocessError) as error:
        (answers / _RELEASED).unlink(missing_ok=True)
        words = (getattr(error, "stderr", None) or str(error)).strip()
        held.write_text(f"{words}; held by {', '.join(_holders(image.mount)) or 'nobody that can be seen'}\n")
        print(f"the volume cannot be let go of: {held.read_text()}", file=sys.stderr)
        return 1
    finally:
        _take_request(image, RELEASE)  # last: the agent looks when it has gone
    return 0


def _unmount(place: Path) -> None:
    """Whoever just looks at all mounts may hold it for a moment."""
    deadline = time.monotonic() + _BUSY
    while True:
        try:
            _run("umount", str(place))
        except subprocess.CalledProcessError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return


def _holders(place: Path) -> list[str]:
    """Who has a file of the volume open, or works in it."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            links = [Path(f"/proc/{process.pid}/{name}") for name in ("cwd", "root", "exe")]
            for link in (*links, *Path(f"/proc/{process.pid}/fd").iterdir()):
                with suppress(OSError):
                    if link.readlink().is_relative_to(place):
                        found.append(f"{process.name()} (process {process.pid})")
                        break
    return found


def _answers(image: images.Image) -> Path:
    return mount.answers(image.requests or mount.REQUESTS)


def _take_request(image: images.Image, what: str) -> bool:
    """Whether the agent asked; it has asked no longer. What it put there is not looked into."""
    if image.requests is None:
        return False
    try:
        (image.requests / what).unlink()
    except FileNotFoundError:
        return False
    return True


def _let_go_of(device: Path, image: images.Image) -> bool:
    """Whether it is the disk that was let go of, and has not been attached anew since."""
    try:
        released = (_answers(image) / _RELEASED).read_text()
    except FileNotFoundError:
        return False
    return released == _identity(device.stat().st_rdev)


def _identity(number: int) -> str:
    """Which disk it is: of one attached anew the kernel's sequence number is another."""
    place = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    return (place / "diskseq").read_text().strip()


def _format_if_blank(device: Path) -> None:
    kind = _run("blkid", "--probe", "--match-tag", "TYPE", "--output", "value", str(device), accept=(0, 2)).strip()
    label = _run("blkid", "--probe", "--match-tag", "LABEL", "--output", "value", str(device), accept=(0, 2)).strip()
    if (kind, label) == ("ext4", LABEL):
        return
    with device.open("rb") as content:
        blank = not any(content.read(_BLANK))
    if kind or not blank:
        raise DatastoreError(
            "volume_foreign",
            f"{device} holds {kind or 'something'} that was not made here; it is left as it is: attach the instance's "
            "own volume, or wipe this one by hand",
        )
    _run("mkfs.ext4", "-q", "-L", LABEL, "-m", "0", "-E", "lazy_itable_init=1,root_owner=0:0", str(device))


def _has_grown(device: Path) -> bool:
    """Whether the disk has room for more than its file system takes."""
    told = dict(line.split(":", 1) for line in _run("dumpe2fs", "-h", str(device)).splitlines() if ":" in line)
    blocks, size = int(told["Block count"]), int(told["Block size"])
    with device.open("rb") as content:
        return content.seek(0, os.SEEK_END) // size > blocks


def _run(*command: str, accept: Sequence[int] = (0,)) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=False, env={"PATH": os.defpath + ":/usr/sbin:/sbin"}
    )
    if done.returncode not in accept:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
