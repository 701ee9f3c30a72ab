"""What the image of a machine says to its agent: where its volume is, and how it is found. One JSON file, no secret.

Everything of an instance that must outlive its server lies on the volume, the agent's own files too: a server that is
made anew from another image finds its key, its journal and its database there.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

IMAGE = Path("/etc/holdfast/image.json")


class Image(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of `image.json`.

    `mount`: where the volume is mounted. `device`: its block device, for a hypervisor that always gives it the same
    name; None: the one disk with the serial of a volume that is not in use. `address`: where databases listen; None:
    the address of the instance's port. `user`: whose the volume is, and as whom agent and database run.
    """

    mount: Path = Path("/var/lib/holdfast")
    device: Path | None = None
    address: str | None = None
    user: str = "holdfast"

    @property
    def agent(self) -> Path:
        """The agent's own directory."""
        return self.mount / "agent"


def read(path: Path) -> Image:
    """Raises `OSError`, or `msgspec.MsgspecError`, which names the field."""
    return msgspec.json.decode(path.read_bytes(), type=Image, dec_hook=lambda kind, value: kind(value))
