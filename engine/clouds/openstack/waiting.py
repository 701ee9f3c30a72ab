"""Waiting for the cloud's work on servers and volumes: one list of what has changed serves everybody who waits.

A list only says when to look; what counts is the resource itself, asked for by its id.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Generic, Protocol, TypeVar

from engine.clouds.poller import Poller
from engine.clouds.port import TransientError, UnknownOutcomeError

WHOLE = 10  # every so many lists is one of everything: what a list of changes does not show is seen then at the latest


class Resource(Protocol):
    """What can be waited for: when it was made and last changed, by the cloud's clock."""

    @property
    def id(self) -> str:
        """Its id."""
        ...

    @property
    def created_at(self) -> str | None:
        """When it was made."""
        ...

    @property
    def updated_at(self) -> str | None:
        """When it was changed."""
        ...


R = TypeVar("R", bound=Resource)
Changed = Callable[[str | None, Mapping[str, R]], Awaitable[Mapping[str, R]]]


class Watch(Generic[R]):
    """The resources of one kind. `changed`, given a moment by the cloud's clock and what was last seen of all that is
    waited for, tells of these whatever has changed since, and leaves out what it knows to be gone; without a moment it
    lists everything. `get` looks at one.
    """

    def __init__(
        self,
        kind: str,
        get: Callable[[str], Awaitable[R | None]],
        changed: Changed[R],
        *,
        patience: float,
    ) -> None:
        self._kind = kind
        self._get = get
        self._changed = changed
        self._patience = patience
        self._poller: Poller[R] = Poller(self._look)
        self._seen: dict[str, R] = {}
        self._waiting: dict[str, int] = {}
        self._looks = 0

    def close(self) -> None:
        """Stop looking; who still waits is cancelled."""
        self._poller.close()

    async def until(self, now: R, reached: Callable[[R], bool]) -> R:
        """The resource once it is so; at once when it is so now. Raises when it has gone, or is late."""
        found: R | None = now
        async with self._patiently(f"{self._kind} {now.id} was not ready"):
            while found is not None and not reached(found):
                await self._news(found, lambda seen: seen is None or reached(seen))
                found = await self._get(now.id)
        if found is None:
            raise TransientError("not_found", f"{self._kind} {now.id} has gone while it was waited for")
        return found

    async def until_gone(self, resource_id: str, failed: Callable[[R], bool]) -> R | None:
        """None when there is no such resource; the resource when its removal has failed. Raises when neither comes."""
        async with self._patiently(f"{self._kind} {resource_id} was not gone"):
            while (found := await self._get(resource_id)) is not None and not failed(found):
                await self._news(found, lambda seen: seen is None or failed(seen))
        return found

    async def _news(self, found: R, over: Callable[[R | None], bool]) -> None:
        self._seen[found.id] = found
        self._waiting[found.id] = self._waiting.get(found.id, 0) + 1
        try:
            await self._poller.wait(found.id, over)
        finally:
            self._waiting[found.id] -= 1
            if not self._waiting[found.id]:
                del self._waiting[found.id]
                self._seen.pop(found.id, None)

    async def _look(self) -> Mapping[str, R]:
        self._looks += 1
        whole = self._looks % WHOLE == 0
        since = None if whole else _since(self._seen.values())
        found = await self._changed(since, dict(self._seen))
        self._seen |= {key: each for key, each in found.items() if key in self._waiting}
        return found

    @asynccontextmanager
    async def _patiently(self, otherwise: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._patience):
                yield
        except TimeoutError:
            raise TransientError("cloud_timeout", f"{otherwise} within {self._patience:.0f} s") from None


def _since(seen: Iterable[Resource]) -> str | None:
    """The earliest of their last changes: all that happens to them from now on is later, by the cloud's own clock."""
    moments = [each.updated_at or each.created_at for each in seen]
    return None if not all(moments) else min((moment for moment in moments if moment is not None), default=None)


@contextmanager
def told() -> Iterator[None]:
    """The cloud was told to do what is waited for in here: unless it has ended, it may be doing it still."""
    try:
        yield
    except TransientError as error:
        raise UnknownOutcomeError(error.code, error.message, retry_after=error.retry_after) from error
