"""Every call to the cloud: in a thread, with a deadline, permitted, its error sorted.

No more than `calls_at_once` are open; one that is given up keeps its thread until it ends. When a service says that it
is asked too often, everybody's calls to it wait until they may go on: those of this worker for sure, those of the
others as they hear of it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Protocol, TypeVar

from openstack.connection import Connection

from engine import crash_points
from engine.clock import monotonic
from engine.clouds.openstack.answers import sort_answer
from engine.clouds.openstack.config import Timing
from engine.clouds.openstack.connection import whereabouts
from engine.clouds.port import FinalError, TransientError, check_may_change, check_permit, only_waits
from engine.clouds.traffic import Counts

P = TypeVar("P")
T = TypeVar("T")

PATIENCE = 2.0  # seconds to wait for a service that is busy and does not say for how long
SPREAD = 0.25  # of the wait: so that those who waited do not all come back at once


class _NotSentError(Exception):
    """There was no token to send the call with, or no service to send it to."""


class Pauses(Protocol):
    """What workers tell each other of services that take no calls for a while. At most once."""

    def tell(self, service: str, seconds: float) -> None:
        """The others should send nothing to the service for so long."""
        ...

    def listen(self, service: str, heard: Callable[[float], None]) -> None:
        """Have it called with the seconds that any worker tells of the service."""
        ...


class Calls:
    """The calls of one adapter to all services. `pauses`: None where there are no others to hear of any."""

    def __init__(self, connection: Connection, *, at_once: int, timing: Timing, pauses: Pauses | None = None) -> None:
        self.timing = timing
        self.pauses = pauses
        self.cloud = whereabouts(connection)
        self.traffic: dict[str, Counts] = {}
        self._connection = connection
        self._slots = asyncio.Semaphore(at_once)
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="openstack")

    def close(self) -> None:
        """Wait for no call that is still open: each has its deadline."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._connection.close()

    async def send(
        self, name: str, proxy: Callable[[Connection], P], call: Callable[[P], T], *, of: str, changes: bool
    ) -> T:
        """The answer of a call through the proxy. Raises what it sorts the error as, or what the permit says.

        `of`: the service, as operators call it.
        """
        await self._slots.acquire()
        try:
            check_permit()
            crash_points.reach("call", name)
            future = self._threads.submit(self._made, proxy, call)
        except BaseException:
            self._slots.release()
            raise
        self._release_after(future)
        try:
            async with asyncio.timeout(self.timing.call):
                answer = await asyncio.wrap_future(future)
        except Exception as error:
            crash_points.reach("answer", name)
            sent = not isinstance(error, _NotSentError)
            cause = error if sent or not isinstance(error.__cause__, Exception) else error.__cause__
            sorted_error = sort_answer(f"{of} {name}", cause, changes=changes and sent)
            self._counts(of).note(sorted_error.code)
            raise sorted_error from error
        self._counts(of).note(None)
        crash_points.reach("answer", name)
        return answer

    def _counts(self, of: str) -> Counts:
        return self.traffic.setdefault(of, Counts())

    def _made(self, proxy: Callable[[Connection], P], call: Callable[[P], T]) -> T:
        try:
            # No request while the token that there is holds, and once the service's versions are known.
            self._connection.session.get_token()
            through = proxy(self._connection)
        except Exception as error:
            raise _NotSentError from error
        return call(through)

    def _release_after(self, future: Future[T]) -> None:
        """The slot is free when the thread is."""
        loop = asyncio.get_running_loop()

        def release(_: Future[T]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._slots.release)

        future.add_done_callback(release)


class Service(Generic[P]):
    """The calls to one service, through openstacksdk's proxy of it. `name`: what operators call it."""

    def __init__(self, name: str, calls: Calls, proxy: Callable[[Connection], P]) -> None:
        self._name = name
        self._calls = calls
        self._proxy = proxy
        self._closed_until = 0.0
        self._pauses = calls.pauses
        self._known_as = f"{name} of {calls.cloud}"
        if self._pauses is not None:
            self._pauses.listen(self._known_as, self._heard)

    async def look(self, name: str, call: Callable[[P], T]) -> T:
        """A call that only looks."""
        return await self._patiently(name, call, changes=False)

    async def change(self, name: str, call: Callable[[P], T]) -> T:
        """A call that makes or changes something, in one request. Raises `FinalError` where only looks are allowed."""
        check_may_change()
        return await self._patiently(name, call, changes=True)

    async def present(self, name: str, call: Callable[[P], T]) -> T | None:
        """What a look by id finds, if it is there."""
        try:
            return await self.look(name, call)
        except FinalError as error:
            if error.code == "not_found":
                return None
            raise

    async def remove(self, name: str, call: Callable[[P], None]) -> None:
        """A change after which something is gone, whoever removed it."""
        try:
            await self.change(name, call)
        except FinalError as error:
            if error.code != "not_found":
                raise

    async def _patiently(self, name: str, call: Callable[[P], T], *, changes: bool) -> T:
        """The answer. A call that is refused as one too many was not carried out, and is repeated."""
        until = monotonic() + self._calls.timing.busy
        while True:
            await self._opened()
            try:
                return await self._calls.send(name, self._proxy, call, of=self._name, changes=changes)
            except TransientError as error:
                if error.code != "cloud_busy":
                    raise
                self._close(error.retry_after or PATIENCE)
                if self._closed_until > until:
                    raise

    def _close(self, seconds: float) -> None:
        """It has told us so. What ends about when a pause ends that is known already is not told again."""
        until = monotonic() + seconds
        if self._pauses is not None and until - self._closed_until > seconds * SPREAD:
            self._pauses.tell(self._known_as, seconds)
        self._closed_until = max(self._closed_until, until)

    def _heard(self, seconds: float) -> None:
        """Another was told so; no word of another's holds us for longer than we would be patient by ourselves."""
        self._closed_until = max(self._closed_until, monotonic() + min(seconds, self._calls.timing.busy))

    async def _opened(self) -> None:
        while (remaining := self._closed_until - monotonic()) > 0:
            with only_waits():
                await asyncio.sleep(remaining * (1 + random.uniform(0, SPREAD)))  # noqa: S311 - only spreads
