"""A disk that fills up and has room again: a small file system of its own where one may be mounted, else a limit.

Without the right to mount, this process may for a while write no file beyond the size that the fullest one has.
"""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIZE = 16 * 1024 * 1024


class SmallDisk:
    """A directory on it."""

    def __init__(self, directory: Path, *, mounted: bool) -> None:
        self.directory = directory
        self.mounted = mounted
        self._filler = directory / "filler"
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self) -> None:
        """No byte more can be written."""
        if not self.mounted:
            longest = max(each.stat().st_size for each in self.directory.iterdir())
            resource.setrlimit(resource.RLIMIT_FSIZE, (longest, self._limits[1]))
            return
        with self._filler.open("wb", buffering=0) as filler:
            for size in (65536, 4096, 1):
                try:
                    while True:
                        filler.write(b"x" * size)
                except OSError:
                    continue

    def make_room(self) -> None:
        """There is room again."""
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)
        self._filler.unlink(missing_ok=True)


@contextmanager
def small_disk(directory: Path) -> Iterator[SmallDisk]:
    """A small disk mounted there, gone at the end."""
    directory.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(directory)], capture_output=True, check=False
    )
    disk = SmallDisk(directory, mounted=mount.returncode == 0)
    try:
        yield disk
    finally:
        disk.make_room()
        if mount.returncode == 0:
            subprocess.run(["umount", "--lazy", str(directory)], check=False)
