"""Waiting in a test for what nothing tells of: it is looked for until it is there, or until the time is over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def eventually(look: Callable[[], Awaitable[T]], within: float = 30, every: float = 0.02) -> T:
    """What the look gives once it is neither None, False nor empty. Raises `TimeoutError`."""
    async with asyncio.timeout(within):
        while True:
            if found := await look():
                return found
            await asyncio.sleep(every)


def soon(look: Callable[[], T], within: float = 60, every: float = 0.1) -> T:
    """The same for what is looked for without a loop."""
    end = time.monotonic() + within
    while not (found := look()):
        if time.monotonic() > end:
            raise TimeoutError(f"not within {within:.0f} s")
        time.sleep(every)
    return found
