"""Running the parts of a process together: when one ends, all end; none is left behind.

Unlike a task group it cancels again what did not end: `asyncio.wait_for` of Python 3.11, which nats-py uses, loses a
cancellation that arrives together with its result.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

CANCEL_AGAIN = 0.5  # seconds


async def run_together(**parts: Coroutine[Any, Any, Any]) -> None:
    """Run until one part ends or this is cancelled. Raises the error of the first part that ended with one."""
    tasks = [asyncio.create_task(part, name=name) for name, part in parts.items()]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end(*tasks)
    for task in tasks:
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel the tasks and wait until they have ended, even if this is cancelled itself meanwhile."""
    cancelled: asyncio.CancelledError | None = None
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        try:
            await asyncio.wait(pending, timeout=CANCEL_AGAIN)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
