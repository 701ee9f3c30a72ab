"""What the agent must keep true of its database, on disk: after any death, it is the last word written.

It holds sizes, parameters and switches, never a secret, and says nothing of what is the case: that is looked up.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec


class Desired(msgspec.Struct, frozen=True, kw_only=True):
    """`installed`: the data directory is whole. `prepared`: databases and users are made as well, and it is supervised.

    `ram` in MiB, `volume` in bytes; `read_only` because the volume is full.
    """

    running: bool = False
    installed: bool = False
    prepared: bool = False
    ram: int = 0
    overrides: dict[str, str] = {}
    volume: int = 0
    port: int = 0
    read_only: bool = False


class DesiredFile:
    """The present `Desired` and its file. Not for use by two threads at once."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "desired.json"
        self.now = msgspec.json.decode(self._path.read_bytes(), type=Desired) if self._path.exists() else Desired()

    def change(self, **values: object) -> None:
        """Take on other values, durably."""
        changed = msgspec.structs.replace(self.now, **values)
        if changed == self.now:
            return
        write_durably(self._path, msgspec.json.encode(changed))
        self.now = changed


def write_durably(path: Path, content: bytes) -> None:
    """Replace a file in one step, on disk when this returns, readable by its owner alone."""
    fresh = path.with_name(path.name + ".new")
    with open(fresh, "wb", opener=private_opener) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def private_opener(path: str, flags: int) -> int:
    """For `open`: a new file is readable by its owner alone."""
    return os.open(path, flags, 0o600)
