"""The two clocks of the engine: wall time for facts, monotonic time for waiting.

Facts take `utc_now` or what is injected in its place; waiting uses the running loop's own time, so that a loop with
virtual time moves all of it. Wall time may jump: nothing may be waited for by it alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

Now = Callable[[], datetime]


def utc_now() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)  # noqa: TID251 - the one place


def monotonic() -> float:
    """The running loop's time, in seconds from an arbitrary beginning."""
    return asyncio.get_running_loop().time()
