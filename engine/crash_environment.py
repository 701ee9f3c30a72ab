"""Has a process die, or a call of it fail, at the crash point that its environment names: for the crash matrix.

Does nothing, and costs nothing, unless `HOLDFAST_CRASH_AT` or `HOLDFAST_CRASH_RECORD` is set. It dies by SIGKILL, so
that nothing is tidied up; it is no way to stop a process that is in use.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from contextvars import ContextVar
from pathlib import Path

from engine import crash_points
from engine.clouds.port import FinalError

# `point:subject:occurrence`, or `@<file>` with one such line after the word `kill`, and lines `fail <owing state>`.
AT = "HOLDFAST_CRASH_AT"
# A file to which a line `point:subject:occurrence` is added for each point that is passed.
RECORD = "HOLDFAST_CRASH_RECORD"


def listen() -> None:
    """Do from now on what the environment says, in whatever this context starts."""
    at, record = os.environ.get(AT), os.environ.get(RECORD)
    if at or record:
        crash_points.listener.set(_Listener(at or "", Path(record) if record else None))


class _Listener:
    """Counts the points passed since its orders were last changed, and carries the orders out."""

    def __init__(self, at: str, record: Path | None) -> None:
        self._file = Path(at[1:]) if at.startswith("@") else None
        self._record = record
        self._read = b""
        self._kill = at
        self._failing: frozenset[str] = frozenset()
        self._passed: Counter[tuple[str, str]] = Counter()
        # The owing state for which this context pays.
        self._owing: ContextVar[str] = ContextVar("owing", default="")

    def __call__(self, point: str, subject: str) -> None:
        """Die here, fail here, or go on."""
        if self._file is not None:
            self._take_orders(self._file)
        if point == "before_effect":
            self._owing.set(subject)
        self._passed[point, subject] += 1
        here = f"{point}:{subject}:{self._passed[point, subject]}"
        if self._record is not None:
            with self._record.open("a") as record:
                record.write(f"{here}\n")
        if here == self._kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if point == "call" and self._owing.get() in self._failing:
            raise FinalError("guest_error", f"{subject} is refused in {self._owing.get()}, as the environment says")

    def _take_orders(self, file: Path) -> None:
        read = file.read_bytes() if file.exists() else b""
        if read == self._read:
            return
        self._read = read
        self._passed.clear()
        orders = [line.split(maxsplit=1) for line in read.decode().splitlines() if line]
        self._kill = next((rest for word, rest in orders if word == "kill"), "")
        self._failing = frozenset(rest for word, rest in orders if word == "fail")
