"""How the adapter of the simulated cloud calls, looks and waits: every call with a deadline, never too many at once.

Whatever a lost answer hides is for who pays to look at. Nothing here knows what an effect is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from engine import crash_points
from engine.clock import monotonic
from engine.clouds.errors import sort_error
from engine.clouds.poller import Poller
from engine.clouds.port import (
    FinalError,
    PayError,
    TransientError,
    UnknownOutcomeError,
    check_alone,
    check_may_change,
    check_permit,
)
from engine.clouds.simulated.api import Api
from engine.clouds.simulated.faults import Call
from engine.clouds.simulated.resources import Server, Snapshot, Volume
from engine.clouds.traffic import Counts
from engine.clouds.turns import Turns

Waited = TypeVar("Waited", Server, Volume, Snapshot)


class Calls:
    """Calls of one adapter to one cloud. `deadline`, `built_within`: seconds that a call, the cloud's work may take."""

    def __init__(
        self,
        api: Api,
        *,
        caller: str,
        latest_effect: timedelta,
        deadline: float,
        built_within: float,
        in_flight: int,
    ) -> None:
        self.latest_effect = latest_effect
        self.deadline = deadline
        self.counts = Counts()
        self._api = api
        self._built_within = built_within
        self._caller = caller
        self._slots = asyncio.Semaphore(in_flight)
        self._making: Turns[tuple[str, str]] = Turns()
        self.servers: Poller[Server] = Poller(self._look_at_servers)
        self.volumes: Poller[Volume] = Poller(self._look_at_volumes)
        self.snapshots: Poller[Snapshot] = Poller(self._look_at_snapshots)

    def close(self) -> None:
        """Stop waiting."""
        self.servers.close()
        self.volumes.close()
        self.snapshots.close()

    async def look(self, call: str, /, **args: Any) -> Any:
        """A call that only looks."""
        return await self._send(Call(name=call, args=args, caller=self._caller), changes=False)

    async def change(self, key: str, call: str, /, **args: Any) -> Any:
        """A call that makes or changes something."""
        check_may_change()
        return await self._send(Call(name=call, args=args, request_id=key, caller=self._caller), changes=True)

    async def change_alone(self, key: str, call: str, /, **args: Any) -> None:
        """A call that nothing fences: carried out late it would undo what came after it.

        So one whose answer is missing is not followed by another before it can act no more.
        """
        check_alone()
        begun = monotonic()
        try:
            await self.change(key, call, **args)
        except UnknownOutcomeError as error:
            passed = monotonic() - begun
            error.retry_after = max(error.retry_after, self.latest_effect.total_seconds() - passed)
            raise

    async def _send(self, call: Call, *, changes: bool) -> Any:
        async with self._slots:
            check_permit()
            crash_points.reach("call", call.name)
            try:
                async with asyncio.timeout(self.deadline):
                    answer = await self._api.call(call)
            except Exception as error:
                crash_points.reach("answer", call.name)
                sorted_error = sort_error(call.name, error, changes=changes)
                self.counts.note(sorted_error.code)
                raise sorted_error from error
            self.counts.note(None)
            crash_points.reach("answer", call.name)
            return answer

    def turn(self, kind: str, name: str) -> AbstractAsyncContextManager[None]:
        """Nothing at the cloud keeps two of one name from being made, so within a process they take turns."""
        return self._making.take((kind, name))

    # --- waiting --------------------------------------------------------------------------------------------------

    async def _look_at_servers(self) -> Mapping[str, Server]:
        return {server.id: server for server in await self.look("list_servers")}

    async def _look_at_volumes(self) -> Mapping[str, Volume]:
        return {volume.id: volume for volume in await self.look("list_volumes")}

    async def _look_at_snapshots(self) -> Mapping[str, Snapshot]:
        return {snapshot.id: snapshot for snapshot in await self.look("list_snapshots")}

    async def until(
        self, what: str, poller: Poller[Waited], now: Waited, resource_id: str, reached: Callable[[Waited], bool]
    ) -> Waited:
        """The resource once it is so; at once when it is so now. Raises when it is gone, broken, or late.

        A list, which may be old, only says when to look; what counts is the resource itself.
        """

        def over(found: Waited | None) -> bool:
            return found is None or found.status.lower() == "error" or reached(found)

        found: Waited | None = now
        async with self._patience(f"{what} {resource_id} was not ready"):
            while not over(found):
                await poller.wait(resource_id, over)
                found = await self.present(f"get_{what}", resource_id)
        if found is None:
            raise TransientError("not_found", f"{what} {resource_id} has gone while it was waited for")
        if found.status.lower() == "error":
            raise FinalError("cloud_error", f"{what} {resource_id} is in status {found.status}")
        return found

    async def until_gone(self, what: str, poller: Poller[Waited], resource_id: str) -> None:
        """Wait until it is not there any more."""
        async with self._patience(f"{what} {resource_id} was not gone"):
            while await self.present(f"get_{what}", resource_id) is not None:
                await poller.wait(resource_id, lambda found: found is None)

    @asynccontextmanager
    async def _patience(self, otherwise: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._built_within):
                yield
        except TimeoutError:
            raise TransientError("cloud_timeout", f"{otherwise} within {self._built_within:.0f} s") from None

    async def idle_server(self, server_id: str, now: Server | None = None) -> Server:
        """The server once the cloud does nothing with it."""
        server = now or await self.look("get_server", id=server_id)
        return await self.until("server", self.servers, server, server_id, lambda found: found.task is None)

    # --- absence --------------------------------------------------------------------------------------------------

    async def ids(self, listing: str, name: str, recorded: str | None) -> Iterable[str]:
        """What is to be gone: all of the name, and what is recorded, which a list may not show."""
        found = {each.id: None for each in await self.look(listing, name=name)}
        return found if recorded is None else found | {recorded: None}

    async def present(self, getting: str, resource_id: str) -> Any | None:
        """The resource, if it is there."""
        try:
            return await self.look(getting, id=resource_id)
        except FinalError as error:
            if error.code == "not_found":
                return None
            raise

    async def remove_present(self, key: str, what: str, resource_id: str) -> None:
        """Delete it, if a look shows it: where only looks are allowed, that shows that it is gone."""
        if await self.present(f"get_{what}", resource_id) is not None:
            await self.remove(key, f"delete_{what}", resource_id)

    async def remove(self, key: str, name: str, resource_id: str) -> None:
        """Delete it, if it is there."""
        try:
            await self.change(key, name, id=resource_id)
        except FinalError as error:
            if error.code != "not_found":
                raise


@contextmanager
def unrecorded(made: bool) -> Iterator[None]:
    """What this payment has made is on nobody's record until it is paid, and a list may not show it yet: an error in
    between leaves the outcome unknown. If it is final, the next payment, which finds what was made, says so.
    """
    try:
        yield
    except PayError as error:
        if not made:
            raise
        raise UnknownOutcomeError(error.code, error.message, retry_after=error.retry_after) from error


def refuse_in_use(kind: str, resource_id: str, holder: str | None) -> None:
    """Raises `TransientError` when a server has it."""
    if holder is not None:
        raise TransientError("in_use", f"server {holder} has {kind} {resource_id}; delete the server first")
