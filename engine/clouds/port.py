"""The port behind which a cloud lies: what the settler asks of it, and how its errors are sorted.

Every method ensures: it looks first, makes only what is missing, and called again it leaves what one call leaves. It
makes at most one mutating call for each resource. How long a call may take is each adapter's own matter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, Protocol

import msgspec

from aggregates.catalogue import Catalogue
from aggregates.effects import CloudEffect, ResourceAbsent
from aggregates.resources import Resource
from engine.clock import monotonic
from engine.clouds.traffic import Counts

Facts = Mapping[str, Any]


class PayError(Exception):
    """An effect could not be paid. `code` is stable; `message` is the cause's own words.

    `retry_after`: seconds within which trying again is useless or does harm; the settler waits at least as long.
    """

    def __init__(self, code: str, message: str, *, retry_after: float = 0.0) -> None:
        # What others say may hold bytes that are no text; an event must be able to keep it.
        message = message.encode(errors="replace").decode()
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.retry_after = retry_after


class TransientError(PayError):
    """It may pass: try again later. An unknown outcome counts as this, since every effect looks before it acts."""


class UnknownOutcomeError(TransientError):
    """A call that makes or changes something went out and its answer is missing, or what it began has not been seen to
    end: it may have been carried out, or may yet be, until the cloud's `latest_effect` after it began.
    """


class TooEarlyError(TransientError):
    """It was not tried, since a call made before may still act. No deadline makes a failure of that."""


class FinalError(PayError):
    """It will not pass by itself: the chart's `failed` transition, or parking."""


permit: ContextVar[Callable[[], None] | None] = ContextVar("permit", default=None)


def check_permit() -> None:
    """Every adapter asks before each call to the outside. Raises what the payer's owner set, when it may not act."""
    check = permit.get()
    if check is not None:
        check()


# Until when, by the loop's time, a call made before for the same may still be carried out.
others_act_until: ContextVar[float] = ContextVar("others_act_until", default=0.0)


def check_alone() -> None:
    """Every adapter asks before a call of which nothing keeps a second one from being carried out as well.

    Raises `TooEarlyError` while one made before may act.
    """
    remaining = others_act_until.get() - monotonic()
    if remaining > 0:
        raise TooEarlyError(
            "call_in_flight",
            "a call made before may still be carried out; it is not repeated before that is over",
            retry_after=remaining,
        )


# Whether this payment may only look: no try is left, and a call whose outcome nobody knows may have brought about what
# is owed.
only_looks: ContextVar[bool] = ContextVar("only_looks", default=False)


def check_may_change() -> None:
    """Every adapter asks before it changes anything. Raises `FinalError` when this payment may only look."""
    if only_looks.get():
        raise FinalError("not_carried_out", "it has not come about")


class Waiting:
    """What one payment tells of itself while it goes on: that it only waits now, so that it may be given up.

    `known`: the facts that it would yield, as far as it knows them: giving it up loses no trace of what it made.
    """

    def __init__(self) -> None:
        self.known: dict[str, Any] = {}
        self._begun = asyncio.Event()

    @property
    def now(self) -> bool:
        """Whether it only waits."""
        return self._begun.is_set()

    async def begun(self) -> None:
        """Return as soon as it only waits."""
        await self._begun.wait()

    @contextmanager
    def told(self) -> Iterator[None]:
        """It only waits in here."""
        self._begun.set()
        try:
            yield
        finally:
            self._begun.clear()


def refuse_stranger(effect: ResourceAbsent, name: str | None) -> None:
    """Every adapter asks before it removes by id alone. Raises `FinalError` when the resource has another name."""
    if name != effect.name:
        raise FinalError(
            "conflict",
            f"{effect.kind} {effect.resource_id} is named {name}, not {effect.name}: it is not removed; "
            "give it its name back, or remove it yourself",
        )


waiting: ContextVar[Waiting | None] = ContextVar("waiting", default=None)


def knows(**facts: Any) -> None:
    """Whoever pays says what it has made before it waits for it, so that the id is recorded if it is given up."""
    told = waiting.get()
    if told is not None:
        told.known.update(facts)


@contextmanager
def only_waits() -> Iterator[None]:
    """Whoever pays says so around what may be given up at any moment: nothing is called in it, and nothing is lost by
    its end.
    """
    told = waiting.get()
    if told is None:
        yield
        return
    with told.told():
        yield


class Inventory(msgspec.Struct, frozen=True, kw_only=True):
    """What a cloud holds in the `regions` that have said it, None being its own. `silent`: the others, and why."""

    resources: Sequence[Resource]
    regions: frozenset[str | None] = frozenset({None})
    silent: Mapping[str, str] = {}


class Cloud(Protocol):
    """A cloud. `pay` dispatches on the effect's type and yields the facts that the effect's docstring names.

    `latest_effect`: how long after its begin a call whose answer is missing may still be carried out, or be missing
    from a list; nothing when calls end with the process that made them.
    """

    latest_effect: timedelta

    @property
    def traffic(self) -> Mapping[str, Counts]:
        """How its services, by the names that operators call them, have answered this process since it began."""
        ...

    async def start(self) -> None:
        """Connect, and take up what the cloud itself must keep running."""
        ...

    async def close(self) -> None:
        """Let go of connections; servers go on running."""
        ...

    async def catalogue(self) -> Catalogue:
        """What this cloud offers."""
        ...

    async def inventory(self) -> Inventory:
        """All that it holds of what effects make, in a few calls whatever its number, also what others have made.

        Lists, which may be older than what was just done. Raises `TransientError` or `FinalError` when it says nothing.
        """
        ...

    async def pay(self, effect: CloudEffect, key: str) -> Facts:
        """Make the effect true. Raises `TransientError` or `FinalError`. May be cancelled while it only waits."""
        ...
