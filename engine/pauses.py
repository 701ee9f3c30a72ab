"""Pauses: a worker that a cloud's service has told to wait tells the others, so that they need not be told as well.

At most once, and nothing depends on them: who misses one is told by the service itself. Of a broker that is away
nothing is kept for later, when it would be wrong.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated

import msgspec
import nats.errors
from msgspec import Meta
from nats.aio.client import Client
from nats.aio.msg import Msg

from engine.messages import PAUSE_SUBJECT

Heard = Callable[[float], None]


class Pause(msgspec.Struct, frozen=True):
    """A service takes no calls for so many seconds. `service`: its name and the cloud's whose it is."""

    service: str
    seconds: Annotated[float, Meta(ge=0)]


class Pauses:
    """Tells the other workers on this broker, and calls who listens for a service with what they tell of it."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._listeners: dict[str, list[Heard]] = {}
        self._untold: dict[str, float] = {}
        self._more = asyncio.Event()
        self._decode = msgspec.json.Decoder(Pause).decode

    def tell(self, service: str, seconds: float) -> None:
        """The others should send nothing to the service for so long."""
        self._untold[service] = seconds
        self._more.set()

    def listen(self, service: str, heard: Heard) -> None:
        """Have it called with the seconds that any worker tells of the service, this one included."""
        self._listeners.setdefault(service, []).append(heard)

    async def run(self) -> None:
        """Tell and listen until cancelled."""
        subscription = await self._client.subscribe(PAUSE_SUBJECT, cb=self._on_pause)
        try:
            while True:
                await self._more.wait()
                self._more.clear()
                untold, self._untold = self._untold, {}
                await self._publish(untold)
        finally:
            if self._client.is_connected:
                await subscription.unsubscribe()

    async def _publish(self, untold: dict[str, float]) -> None:
        for service, seconds in untold.items():
            if not self._client.is_connected:
                return  # the client would keep it until the broker is back
            try:
                await self._client.publish(PAUSE_SUBJECT, msgspec.json.encode(Pause(service, seconds)))
            except nats.errors.Error:
                return

    async def _on_pause(self, message: Msg) -> None:
        try:
            pause = self._decode(message.data)
        except msgspec.MsgspecError:
            return
        for heard in self._listeners.get(pause.service, ()):
            heard(pause.seconds)
