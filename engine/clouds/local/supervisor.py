"""Keeps servers as they are meant to be: a guest agent that has died is started again, as a hypervisor would.

It looks every second, so an agent may be dead for that long; one that keeps dying is started ever more rarely, at
least twice a minute.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import msgspec
import structlog

from engine.clouds.port import PayError

_INTERVAL = 1.0
_STEADY = 10.0  # seconds that an agent has to live for its death to count as the first
_LONGEST = 30.0

log = structlog.get_logger()


class _Tries(msgspec.Struct):
    """When a server was last brought up, and how long to wait before it is again."""

    last: float
    wait: float


class Supervisor:
    """`unsettled` lists the ids of the servers that are not as they should be; `settle` sees to one of them."""

    def __init__(self, unsettled: Callable[[], Awaitable[list[str]]], settle: Callable[[str], Awaitable[bool]]) -> None:
        self._unsettled = unsettled
        self._settle = settle
        self._tries: dict[str, _Tries] = {}

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                await self.look()
            except (PayError, OSError, msgspec.MsgspecError) as error:
                log.warning("local_cloud_supervision_failed", error=str(error))
            await asyncio.sleep(_INTERVAL)

    async def look(self) -> None:
        """See once to every server."""
        wanting = await self._unsettled()
        now = time.monotonic()
        for server_id in wanting:
            tries = self._tries.get(server_id)
            if tries is not None and now - tries.last < tries.wait:
                continue
            try:
                done = await self._settle(server_id)
            except (PayError, OSError, msgspec.MsgspecError) as error:
                log.warning("server_not_brought_up", server_id=server_id, error=str(error))
                done = True
            if done:
                self._tries[server_id] = self._next(tries, now)
        steady = [i for i, t in self._tries.items() if i not in wanting and now - t.last > t.wait + _STEADY]
        for server_id in steady:
            del self._tries[server_id]

    def _next(self, before: _Tries | None, now: float) -> _Tries:
        if before is None or now - before.last > before.wait + _STEADY:
            return _Tries(last=now, wait=_INTERVAL)
        return _Tries(last=now, wait=min(before.wait * 2, _LONGEST))
