"""How full the volume is: of a mount what the file system says, of a directory the sum of what its files take.

A directory has no limit of its own: the agent's read-only switch is all that enforces one, so a burst within a second
may go past it.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

WARN = 0.95
FULL = 1.0
ROOM_AGAIN = 0.98
# A file system is called full before it is, so that the database can still write its last checkpoint.
_RESERVE = 32 << 20


class Use(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes used and allowed. `limit` is the volume's nominal size when it was measured."""

    used: int
    size: int
    limit: int

    @property
    def warning(self) -> bool:
        """Whether somebody should grow it."""
        return self.used >= WARN * self.size

    def should_be_read_only(self, is_now: bool) -> bool:
        """Whether tenants may still write: a full volume becomes writable again only with some room."""
        return self.used >= (ROOM_AGAIN if is_now else FULL) * self.size


def measure(volume: Path, size: int) -> Use:
    """The use of a volume that is `size` bytes large."""
    if volume.is_mount():
        told = os.statvfs(volume)
        used = (told.f_blocks - told.f_bfree) * told.f_frsize
        return Use(used=used, size=min(size, used + told.f_bavail * told.f_frsize - _RESERVE), limit=size)
    return Use(used=_sum(str(volume)), size=size, limit=size)


def file_system_size(volume: Path) -> int | None:
    """The bytes of the volume's file system, if it has one of its own."""
    if not volume.is_mount():
        return None
    told = os.statvfs(volume)
    return told.f_blocks * told.f_frsize


def _sum(directory: str) -> int:
    used = 0
    pending = [directory]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    try:
                        if entry.is_dir(follow_symlinks=False):
                            pending.append(entry.path)
                        else:
                            used += entry.stat(follow_symlinks=False).st_blocks * 512
                    except FileNotFoundError:
                        continue  # databases remove files all the time
        except FileNotFoundError:
            continue
    return used
