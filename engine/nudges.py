"""Nudges: a worker that has committed tells the others, so that they need not look for it all the time.

At most once, and nothing depends on them: whoever waits for something in the log looks again by itself after a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from uuid import UUID

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from aggregates.base import Event
from aggregates.record import CommandAccepted, CommandRejected
from engine.messages import LOG_SUBJECT
from engine.store import EventStore

GATHER = 0.005  # seconds in which commits are gathered into one nudge


class Nudge(msgspec.Struct, frozen=True):
    """There is more in the log. `decided`: the records of commands that the workers sent themselves."""

    decided: tuple[UUID, ...] = ()


class Nudges:
    """Tells the others of commits of this store, and calls `heard` with what they tell."""

    def __init__(self, client: Client, store: EventStore, heard: Callable[[Nudge], None], *, internal: str) -> None:
        self._client = client
        self._heard = heard
        self._internal = internal
        self._decode = msgspec.json.Decoder(Nudge).decode
        self._decided: list[UUID] = []
        self._committed = asyncio.Event()
        store.listen(self._on_commit)

    def _on_commit(self, events: Sequence[Event]) -> None:
        if events:
            self._decided.extend(_internal(events, self._internal))
            self._committed.set()

    async def run(self) -> None:
        """Tell and listen until cancelled."""
        subscription = await self._client.subscribe(LOG_SUBJECT, cb=self._on_nudge)
        try:
            while True:
                await self._committed.wait()
                await asyncio.sleep(GATHER)
                self._committed.clear()
                decided, self._decided = self._decided, []
                try:
                    await self._client.publish(LOG_SUBJECT, msgspec.json.encode(Nudge(tuple(decided))))
                except nats.errors.Error:
                    continue  # the broker is away; the others look by themselves
        finally:
            if self._client.is_connected:
                await subscription.unsubscribe()

    async def _on_nudge(self, message: Msg) -> None:
        try:
            self._heard(self._decode(message.data))
        except msgspec.MsgspecError:
            return


def _internal(events: Iterable[Event], actor: str) -> Iterable[UUID]:
    for event in events:
        if isinstance(event, CommandAccepted | CommandRejected) and event.actor == actor:
            yield event.originator_id
