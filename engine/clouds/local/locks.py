"""One operation at a time on what bears one name, over all processes that share the local cloud's directory.

The system frees a lock when the last process that holds it has died. A program started with the lock's descriptor
keeps it too, so that what a killed process left running is waited for and not raced. Locks are not reentrant.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import time
from pathlib import Path

from engine.clouds.port import TransientError

_POLL = 0.02
_BUCKETS = 1024  # names share this many files, so that the files need no removal, which would race


class Lock:
    """A lock held; whoever holds it releases it, from any thread."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def release(self) -> None:
        """Let the next one in."""
        os.close(self.descriptor)


class Locks:
    """The locks of one local cloud."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def prepare(self) -> None:
        """Make the directory."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def attempt(self, name: str) -> Lock | None:
        """Take the lock of this name, or None if it is held."""
        bucket = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % _BUCKETS
        descriptor = os.open(self._directory / f"{bucket:04}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        return Lock(descriptor)

    async def take(self, name: str, timeout: float) -> Lock:
        """Wait for the lock of this name. May be cancelled. Raises `TransientError` when time is up."""
        end = time.monotonic() + timeout
        while (lock := self.attempt(name)) is None:
            if time.monotonic() > end:
                raise TransientError(
                    "timeout", f"another operation on {name} still runs after {timeout:.0f} s; try again later"
                )
            await asyncio.sleep(_POLL)
        return lock
