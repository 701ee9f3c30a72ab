"""What can go wrong with one call to the simulated cloud, as tests plan it or a seeded schedule draws it.

A fault says whether the call is carried out, when, and what its caller hears. It never changes what the cloud's own
rules are: fences hold whatever happens to an answer.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

import msgspec

ANY = "*"


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One call, as it goes over the wire. `request_id`: the effect's idempotency key. `caller`: which process asks."""

    name: str
    args: dict[str, Any] = {}
    request_id: str = ""
    caller: str = ""


class Kind(StrEnum):
    """What becomes of the call."""

    REFUSED = "refused"  # not carried out; answered `status`
    RESET_BEFORE = "reset_before"  # not carried out; the connection breaks
    LOST = "lost"  # not carried out; never answered
    UNANSWERED = "unanswered"  # carried out; never answered
    BROKEN = "broken"  # carried out; answered `status`
    RESET_AFTER = "reset_after"  # carried out; the connection breaks
    LATE = "late"  # carried out and answered after `seconds`
    STALE = "stale"  # a list shows what was there `seconds` ago


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """A fault of one call."""

    kind: Kind
    status: int = 500
    retry_after: float | None = None
    seconds: float = 0.0


LATEST = 60.0  # seconds after which a late call is carried out
STALEST = 20.0  # seconds by which a stale list is old

FAULTS: Mapping[str, Fault] = {
    "fails_before_it_acts": Fault(kind=Kind.REFUSED, status=500),
    "conflict": Fault(kind=Kind.REFUSED, status=409),
    "over_limit": Fault(kind=Kind.REFUSED, status=413, retry_after=2.0),
    "too_many_requests": Fault(kind=Kind.REFUSED, status=429, retry_after=2.0),
    "unavailable": Fault(kind=Kind.REFUSED, status=503),
    "never_arrives": Fault(kind=Kind.LOST),
    "reset_before_it_acts": Fault(kind=Kind.RESET_BEFORE),
    "acts_and_never_answers": Fault(kind=Kind.UNANSWERED),
    "acts_and_answers_500": Fault(kind=Kind.BROKEN, status=500),
    "acts_and_answers_503": Fault(kind=Kind.BROKEN, status=503),
    "reset_after_it_acted": Fault(kind=Kind.RESET_AFTER),
    "takes_60_seconds": Fault(kind=Kind.LATE, seconds=LATEST),
    "stale_data": Fault(kind=Kind.STALE, seconds=STALEST),
}

Draw = Callable[[Call], Fault | None]


class Faults:
    """The faults to come. `draw` is asked about each call for which none is planned; `injected` counts."""

    def __init__(self, draw: Draw | None = None) -> None:
        self.draw = draw
        self.injected: Counter[tuple[str, Kind]] = Counter()
        self._planned: defaultdict[str, deque[Fault]] = defaultdict(deque)

    def plan(self, call: str, fault: Fault, times: int = 1) -> None:
        """The next so many calls of this name (`*`: of any) meet the fault."""
        self._planned[call].extend([fault] * times)

    def due(self, call: Call) -> Fault | None:
        """The fault that this call meets."""
        if not self._planned and self.draw is None:
            return None
        fault = self._take(call)
        if fault is not None:
            self.injected[call.name, fault.kind] += 1
        return fault

    def _take(self, call: Call) -> Fault | None:
        for name in (call.name, ANY):
            if name in self._planned:
                planned = self._planned[name]
                fault = planned.popleft()
                if not planned:
                    del self._planned[name]
                return fault
        return None if self.draw is None else self.draw(call)
