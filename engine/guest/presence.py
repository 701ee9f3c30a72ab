"""Whether this agent was at work without a break: a time stamp in a file, renewed while it is.

The clock is the system's since its boot, which goes on while the machine sleeps and which nobody sets. A machine that
was stopped and copied elsewhere, or booted anew, has been away for ever.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import msgspec

_BOOT = Path("/proc/sys/kernel/random/boot_id")


class _Stamp(msgspec.Struct, frozen=True):
    boot: str
    at: float


class Presence:
    """The stamp of one agent."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "present.json"

    def renew(self) -> float:
        """Say that the agent is at work. Yields for how many seconds it had not said so; infinite if ever it has."""
        before, now = self._read(), _Stamp(_BOOT.read_text().strip(), time.clock_gettime(time.CLOCK_BOOTTIME))
        fresh = self._path.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(now))  # a stamp lost with the machine is of a boot that is over
        fresh.replace(self._path)
        return now.at - before.at if before is not None and before.boot == now.boot else math.inf

    def _read(self) -> _Stamp | None:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=_Stamp)
        except (FileNotFoundError, msgspec.DecodeError):
            return None
