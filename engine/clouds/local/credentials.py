"""What the local cloud asks of whoever issues the guests' broker credentials."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol
from uuid import UUID


class GuestCredentials(Protocol):
    """Issues and revokes the broker credentials of guest agents. Both calls may be repeated."""

    async def ensure(self, instance_id: UUID) -> Path | None:
        """The file of the guest's seed, whose user the broker accepts; None with a broker that asks for none."""
        ...

    async def revoke(self, instance_id: UUID) -> None:
        """The broker refuses the guest's user."""
        ...
