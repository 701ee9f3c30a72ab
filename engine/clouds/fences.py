"""What fences a cloud resource against being made twice, where the cloud lets us choose what is exclusive.

A port is fenced by its MAC address, a server by its port, a floating address by the port that it leads to, a rule by
what it says. Volumes, security groups and server groups have nothing of the kind.
"""

from __future__ import annotations

import hashlib
from uuid import UUID


def port_mac(instance_id: UUID) -> str:
    """The MAC address of an instance's port: locally administered, and the same whoever asks."""
    digest = hashlib.sha256(instance_id.bytes).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))
