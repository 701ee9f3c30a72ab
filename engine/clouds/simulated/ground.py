"""What all services of the simulated cloud stand on: its offer, its fences, its time, and their common ledger."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable
from uuid import UUID

from aggregates.catalogue import Catalogue
from engine.clock import monotonic
from engine.clouds.errors import CloudAnswerError
from engine.clouds.simulated.faults import Call
from engine.clouds.simulated.resources import Anything, Entry

# What a cloud holds exclusively, so that a repeated call makes no second: each can be switched off, to show what
# would come of it.
PORT_MAC = "port_mac"  # one port for each MAC address on a network
SERVER_PORT = "server_port"  # one server for each port
VOLUME_ATTACHMENT = "volume_attachment"  # one server for each volume
FLOATING_PORT = "floating_port"  # one floating address for each port
RULE = "rule"  # one rule of a kind in a security group
FENCES = frozenset({PORT_MAC, SERVER_PORT, VOLUME_ATTACHMENT, FLOATING_PORT, RULE})


class Ground:
    """`build_time`: seconds that the cloud works on after it has said yes. `age`: how old lists are, for one call."""

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        build_time: float,
        fences: Iterable[str],
        on_call: Callable[[Entry], None] | None,
        new_id: Callable[[], UUID],
    ) -> None:
        self.catalogue = catalogue
        self.build_time = build_time
        self.ledger: list[Entry] = []
        self.age = 0.0
        self.call = Call(name="")
        self._fences = frozenset(fences)
        self._on_call = on_call
        self._new_id = new_id
        self._works: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def new_id(self) -> str:
        """An id for a resource."""
        return str(self._new_id())

    def refuse(self, fence: str, broken: bool, words: str) -> None:
        """Raises `CloudAnswerError` 409 for what the fence keeps out."""
        if broken and fence in self._fences:
            raise CloudAnswerError(409, words)

    def note(self, action: str, kind: str, of: Anything) -> None:
        """Write down a change that was carried out."""
        entry = Entry(
            action=action,
            kind=kind,
            name=of.name,
            id=of.id,
            at=monotonic(),
            request_id=self.call.request_id,
            caller=self.call.caller,
        )
        self.ledger.append(entry)
        if self._on_call is not None:
            self._on_call(entry)

    def later(self, work: Callable[[], None]) -> None:
        """Do it once the cloud has worked on it."""
        if self.build_time:
            heapq.heappush(self._works, (monotonic() + self.build_time, next(self._numbers), work))
        else:
            work()

    def work_until(self, moment: float) -> None:
        """Do what was to be done by then."""
        while self._works and self._works[0][0] <= moment:
            heapq.heappop(self._works)[2]()
