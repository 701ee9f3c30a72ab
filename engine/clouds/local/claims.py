"""The fences of the local cloud: of all who claim a name, exactly one gets it, in this process or in any other.

A claim says whose a name is, and not that its owner has been made: whoever is interrupted after claiming finds the
claim again and goes on under the same id.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from urllib.parse import quote, unquote

from engine.clouds.local.records import sync_directory


class Claim(StrEnum):
    """What can be claimed, and for whom."""

    PORT = "port"  # a port's name, for the port
    VOLUME = "volume"  # a volume's name, for the volume
    SERVER = "server"  # a server's name, for the server
    ADDRESS = "address"  # a loopback address, for a port
    NIC = "nic"  # a port, for a server
    ATTACHMENT = "attachment"  # a volume, for a server


class Claims:
    """Claims as symbolic links: making one is atomic, exclusive, and writes its owner in the same step."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def prepare(self) -> None:
        """Make the directories."""
        for kind in Claim:
            (self._directory / kind).mkdir(parents=True, exist_ok=True, mode=0o700)

    def take(self, kind: Claim, name: str, owner: str) -> str:
        """Claim a name. Returns who has it: `owner`, or whoever was first."""
        path = self._path(kind, name)
        while True:
            try:
                path.symlink_to(owner)
            except FileExistsError:
                holder = self.holder(kind, name)
                if holder is not None:
                    return holder
            else:
                sync_directory(path.parent)
                return owner

    def holder(self, kind: Claim, name: str) -> str | None:
        """Who has the name, or None."""
        try:
            return str(self._path(kind, name).readlink())
        except FileNotFoundError:
            return None

    def name(self, kind: Claim, owner: str) -> str | None:
        """A name that the owner has, or None."""
        return next((unquote(path.name) for path in self._all(kind) if _target(path) == owner), None)

    def release(self, kind: Claim, owner: str, *, but: str | None = None) -> None:
        """Give up every name of this kind that the owner has, except the one named `but`."""
        for path in self._all(kind):
            if path.name != (quote(but, safe="") if but is not None else None) and _target(path) == owner:
                path.unlink(missing_ok=True)
                sync_directory(path.parent)

    def count(self) -> int:
        """How many claims there are."""
        return sum(len(self._all(kind)) for kind in Claim)

    def _path(self, kind: Claim, name: str) -> Path:
        return self._directory / kind / quote(name, safe="")

    def _all(self, kind: Claim) -> list[Path]:
        return list((self._directory / kind).iterdir())


def _target(path: Path) -> str | None:
    try:
        return str(path.readlink())
    except FileNotFoundError:
        return None
