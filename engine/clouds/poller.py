"""Waiting for many resources with one list call: however many are waited for, the calls per second stay the same.

Each waiter hears of the first look that satisfies it. A look that fails is taken again while anybody waits; how long to
wait is the waiter's own matter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Generic, TypeVar

from engine.clock import monotonic
from engine.clouds.port import FinalError, PayError, only_waits, permit, waiting

T = TypeVar("T")

SHORTEST = 0.2  # seconds between two looks while somebody has just begun to wait
LONGEST = 2.0
_SHARE = 0.1  # of the time that the latest waiter has waited: who waits for long needs no close look


class Poller(Generic[T]):
    """`look` lists what may be waited for, by id."""

    def __init__(self, look: Callable[[], Awaitable[Mapping[str, T]]]) -> None:
        self._look = look
        self._waiting: dict[_Waiter[T], None] = {}
        self._begun = 0.0
        self._task: asyncio.Task[None] | None = None

    async def wait(self, resource_id: str, reached: Callable[[T | None], bool]) -> T | None:
        """The resource (None: there is none) at the first look where `reached` says yes. What it raises, is raised.

        Looks from now on count, none that has begun already.
        """
        waiter = _Waiter(resource_id, reached, asyncio.get_running_loop().create_future())
        self._begun = monotonic()
        self._waiting[waiter] = None
        if self._task is None:
            self._task = asyncio.create_task(self._poll(), name="cloud-poller")
        try:
            with only_waits():
                return await waiter.future
        finally:
            self._waiting.pop(waiter, None)

    async def _poll(self) -> None:
        # It serves waiters of several owners, and only looks; what it waits for itself is no waiter's.
        permit.set(None)
        waiting.set(None)
        try:
            while self._waiting:
                patience = min(max(SHORTEST, (monotonic() - self._begun) * _SHARE), LONGEST)
                await asyncio.sleep(patience)
                asked = list(self._waiting)
                if not asked:
                    return
                try:
                    found = await self._look()
                except FinalError:
                    raise
                except PayError as error:
                    await asyncio.sleep(error.retry_after)
                    continue
                for waiter in asked:
                    waiter.hear(found.get(waiter.resource_id))
                # Those that heard leave in their own turn; until then they are not to be asked again.
                for waiter in asked:
                    if waiter.future.done():
                        self._waiting.pop(waiter, None)
        except BaseException as error:
            for waiter in self._waiting:
                waiter.fail(error)
            if not isinstance(error, Exception):
                raise
        finally:
            self._task = None

    def close(self) -> None:
        """Stop looking; who still waits is cancelled."""
        if self._task is not None:
            self._task.cancel()


class _Waiter(Generic[T]):
    def __init__(self, resource_id: str, reached: Callable[[T | None], bool], future: asyncio.Future[T | None]) -> None:
        self.resource_id = resource_id
        self.reached = reached
        self.future = future

    def hear(self, found: T | None) -> None:
        if self.future.done():
            return
        try:
            if self.reached(found):
                self.future.set_result(found)
        except PayError as error:
            self.future.set_exception(error)

    def fail(self, error: BaseException) -> None:
        if self.future.done():
            return
        if isinstance(error, asyncio.CancelledError):
            self.future.cancel()
        else:
            self.future.set_exception(error)
