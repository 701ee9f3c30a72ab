"""The read models as readers ask them: one record, pages of records, and changes as they come.

Guarantees that `items` passes each record of a list once as long as the list stands still. Answers are plain data,
as new as the projections: a command just accepted may not be in them yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from engine.client.connection import Connection
from engine.client.errors import TimedOut
from engine.clock import monotonic
from engine.messages import query_subject


class Queries:
    """Questions about one project's read models: commands, instances, operations, history, heartbeats, fleet."""

    def __init__(self, connection: Connection, project: str) -> None:
        self._connection = connection
        self._project = project

    async def ask(self, model: str, verb: str, timeout: float | None = None, **arguments: Any) -> Any:
        """Any question; arguments that are None are left out."""
        payload = {name: value for name, value in arguments.items() if value is not None}
        return await self._connection.request(query_subject(self._project, model, verb), payload, timeout)

    async def get(self, model: str, **key: Any) -> dict[str, Any]:
        """One record. Raises `QueryFailed` with `not_found`."""
        return dict(await self.ask(model, "get", **key))

    async def page(
        self,
        model: str,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 - the wire's name
        sort: str | None = None,
        marker: str | None = None,
        limit: int | None = None,
    ) -> tuple[list[dict[str, Any]], str | None]:
        """One page and the marker of the next, None after the last."""
        answer = await self.ask(model, "list", filter=filter, sort=sort, marker=marker, limit=limit)
        return list(answer["items"]), answer.get("next_marker")

    async def items(
        self,
        model: str,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 - the wire's name
        sort: str | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[dict[str, Any]]:
        """All records of a list; `limit` is the size of a page."""
        marker: str | None = None
        while True:
            found, marker = await self.page(model, filter=filter, sort=sort, marker=marker, limit=limit)
            for item in found:
                yield item
            if marker is None:
                return

    async def watch(
        self, model: str, *, every: float = 5.0, timeout: float | None = None, **key: Any
    ) -> AsyncIterator[dict[str, Any]]:
        """The answer of `watch`, again at each change: looked for at each event and every so many seconds."""
        deadline = float("inf") if timeout is None else monotonic() + timeout
        last = await self.ask(model, "watch", **key)
        yield last
        changed = asyncio.Event()
        async with self._connection.follow(str(last["subject"]), changed.set):
            while monotonic() < deadline:
                changed.clear()
                answer = await self.ask(model, "watch", **key)
                # The position moves with everybody's events.
                if answer | {"position": 0} != last | {"position": 0}:
                    last = answer
                    yield answer
                try:
                    async with asyncio.timeout(min(every, max(0.0, deadline - monotonic()))):
                        await changed.wait()
                except TimeoutError:
                    continue
        raise TimedOut(f"watching {model} ended after {timeout} s, as asked")
