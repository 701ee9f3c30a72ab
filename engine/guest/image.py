"""What the image of a machine says to its agent: where its volume is, and how it is found. One JSON file, no secret.

Everything of an instance that must outlive its server lies on the volume: a server that is made anew from another image
finds its database there, its key, and what the agent has left of its own files.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from engine.guest.mount import REQUESTS

IMAGE = Path("/etc/holdfast/image.json")


class Image(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of `image.json`.

    `mount`: where the volume is mounted. `home`: the agent's own directory, on the machine's own disk. `requests`:
    where the agent asks root's part to mount the volume and to let go of it; None: it is a directory, which stays.
    `device`: its block device, for a hypervisor that always gives it the same name; None: the one disk with the serial
    of a volume that is not in use. `address`: where databases listen; None: the address of the instance's port. `user`:
    whose the volume is, and as whom agent and database run.
    """

    mount: Path = Path("/var/lib/holdfast")
    home: Path = Path("/var/lib/holdfast-agent")
    requests: Path | None = REQUESTS
    device: Path | None = None
    address: str | None = None
    user: str = "holdfast"

    @property
    def kept(self) -> Path:
        """What the agent leaves on the volume."""
        return self.mount / "agent"


def read(path: Path) -> Image:
    """Raises `OSError`, or `msgspec.MsgspecError`, which names the field."""
    return msgspec.json.decode(path.read_bytes(), type=Image, dec_hook=lambda kind, value: kind(value))
