"""The port behind which a cloud lies: what the settler asks of it, and how its errors are sorted.

Every method ensures: it looks first, makes only what is missing, and called again it leaves what one call leaves. A
method makes at most one mutating call. Nothing here says how long a call may take: each adapter bounds its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from aggregates.catalogue import Catalogue
from aggregates.effects import CloudEffect

Facts = Mapping[str, Any]


class PayError(Exception):
    """An effect could not be paid. `code` is stable; `message` is the cause's own words."""

    def __init__(self, code: str, message: str) -> None:
        # What others say may hold bytes that are no text; an event must be able to keep it.
        message = message.encode(errors="replace").decode()
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class TransientError(PayError):
    """It may pass: try again later. An unknown outcome counts as this, since every effect looks before it acts."""


class FinalError(PayError):
    """It will not pass by itself: the chart's `failed` transition, or parking."""


class Cloud(Protocol):
    """A cloud. `pay` dispatches on the effect's type and yields the facts that the effect's docstring names."""

    async def start(self) -> None:
        """Connect, and take up what the cloud itself must keep running."""
        ...

    async def close(self) -> None:
        """Let go of connections; servers go on running."""
        ...

    async def catalogue(self) -> Catalogue:
        """What this cloud offers."""
        ...

    async def pay(self, effect: CloudEffect, key: str) -> Facts:
        """Make the effect true. Raises `TransientError` or `FinalError`. May be cancelled while it only waits."""
        ...
