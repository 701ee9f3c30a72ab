"""Has a process die, or calls of it go wrong, at the crash points that its environment names: for the crash matrix.

Does nothing, and costs nothing, unless `HOLDFAST_CRASH_AT` or `HOLDFAST_CRASH_RECORD` is set. It dies by SIGKILL, so
that nothing is tidied up; it is no way to stop a process that is in use.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path

import msgspec

from engine import crash_points
from engine.clouds.port import FinalError, TransientError, UnknownOutcomeError

# `point:subject:occurrence`, or `@<file>` with orders, one a line, which may change while the process runs.
AT = "HOLDFAST_CRASH_AT"
# A file to which a line `point:subject:occurrence` is added for each point that is passed.
RECORD = "HOLDFAST_CRASH_RECORD"

SOON = 0.05  # seconds until a call is surely on its way
LOOKS = ("get_", "list_", "report")  # the beginnings of the names of calls that change nothing


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """What is to happen: where to die, and in which owing states calls go wrong.

    `fail`: they fail for good, before they act. `stall`: they fail in a way that may pass. `unanswered`: the answer of
    those that change something is lost. Points are counted from the beginning of the `run`, whatever is ordered in it.
    """

    run: str = ""
    kill: str = ""
    fail: frozenset[str] = frozenset()
    stall: frozenset[str] = frozenset()
    unanswered: frozenset[str] = frozenset()

    @classmethod
    def read(cls, text: str) -> Orders:
        """The orders of a text with one in each line: the word and what it is about."""
        orders = [tuple(line.split()) for line in text.splitlines() if line]
        about = {word: frozenset(what for given, what in orders if given == word) for word in cls.__struct_fields__}
        one = {word: next(iter(about[word]), "") for word in ("run", "kill")}
        return msgspec.convert({**about, **one}, cls)

    def __str__(self) -> str:
        lines = []
        for word in self.__struct_fields__:
            value = getattr(self, word)
            about = sorted(value) if isinstance(value, frozenset) else [value]
            lines += [f"{word} {what}\n" for what in about if what]
        return "".join(lines)


class Listener:
    """Carries orders out and counts the points passed. `die` does not return; `die_soon` has it die a moment later.

    `flight:<call>:<occurrence>` is no point that is passed: it dies while that call is on its way or being carried out.
    """

    def __init__(
        self,
        orders: Callable[[], Orders],
        die: Callable[[], None],
        die_soon: Callable[[], None],
        record: Callable[[str], None],
    ) -> None:
        self._orders = orders
        self._die = die
        self._die_soon = die_soon
        self._record = record
        self._run = ""
        self._passed: Counter[tuple[str, str]] = Counter()
        # The owing state for which this context pays.
        self._owing: ContextVar[str] = ContextVar("owing", default="")

    def __call__(self, point: str, subject: str) -> None:
        """Die here, fail here, or go on."""
        orders = self._orders()
        if orders.run != self._run:
            self._run = orders.run
            self._passed.clear()
        if point == "before_effect":
            self._owing.set(subject)
        state = self._owing.get()
        if point in ("call", "answer") and not state:
            return  # it is no operation's
        self._passed[point, subject] += 1
        here = f"{point}:{subject}:{self._passed[point, subject]}"
        self._record(here)
        if here == orders.kill:
            self._die()
        if here.replace("call:", "flight:", 1) == orders.kill:
            self._die_soon()
        if point == "call" and state in orders.fail:
            raise FinalError("guest_error", f"{subject} is refused in {state}, as the environment says")
        if point == "call" and state in orders.stall:
            raise TransientError("guest_unreachable", f"{subject} fails in {state}, as the environment says")
        if point == "answer" and state in orders.unanswered and not subject.startswith(LOOKS):
            raise UnknownOutcomeError("guest_unreachable", f"{subject} has no answer in {state}, as ordered")


def listen() -> None:
    """Do from now on what the environment says, in whatever this context starts."""
    at, record = os.environ.get(AT, ""), os.environ.get(RECORD, "")
    if not at and not record:
        return
    orders = _File(Path(at[1:])) if at.startswith("@") else _always(Orders(kill=at))
    noted = _appending(Path(record)) if record else lambda _: None
    crash_points.listener.set(Listener(orders, _die, _die_soon, noted))


class _File:
    """The orders that a file has now."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = ""
        self._orders = Orders()

    def __call__(self) -> Orders:
        read = self._path.read_text() if self._path.exists() else ""
        if read != self._read:
            self._read, self._orders = read, Orders.read(read)
        return self._orders


def _always(orders: Orders) -> Callable[[], Orders]:
    return lambda: orders


def _appending(path: Path) -> Callable[[str], None]:
    def record(here: str) -> None:
        with path.open("a") as file:
            file.write(f"{here}\n")

    return record


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_soon() -> None:
    threading.Timer(SOON, _die).start()
