"""One connection to the broker in memory: the real client on a wire that takes its time and breaks.

What was on its way when it broke is lost, in both directions; what was not sent yet is kept, and subscriptions are made
anew, as the library does it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import TYPE_CHECKING, Any

import nats.errors
from nats.aio.client import Client, ServerVersion
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from tests.simulation.streams import Headers
from tests.simulation.virtual_time import Process, current, virtual

if TYPE_CHECKING:
    from tests.simulation.broker import Broker


class SimulatedClient(Client):
    """The real client on a wire of ours: subscriptions, requests and JetStream's context are the library's own."""

    def __init__(self, broker: Broker, name: str) -> None:
        super().__init__()
        self.name = name
        self.process: Process | None = current.get()
        self._broker = broker
        self._status = Client.CONNECTED
        self._max_pending_size = 2 * 1024 * 1024
        self._epoch = 0
        self._up_free = self._down_free = 0.0
        self._unsent: list[Callable[[], None]] = []
        self._nuid = _Names(broker)  # type: ignore[assignment]
        self._skip_subject_validation = True

    @property
    def connected_server_version(self) -> ServerVersion:
        """The version that the engine is made for."""
        return ServerVersion("2.15.1")

    # --- up -------------------------------------------------------------------------------------------------------

    def _transmit(self, action: Callable[[], None]) -> None:
        if self.process is not None and self.process.dead:
            return
        if self._status != Client.CONNECTED:
            self._unsent.append(action)
            return
        loop = virtual()
        self._up_free = max(self._up_free, loop.time() + self._broker.hop())
        loop.call_at(self._up_free, self._arrived, self._epoch, action, context=Context())

    def _arrived(self, epoch: int, action: Callable[[], None]) -> None:
        if epoch == self._epoch and self._broker.up:
            action()

    async def _send_publish(
        self, subject: str, reply: str, payload: bytes, _size: int, headers: dict[str, Any] | None
    ) -> None:
        if not subject:
            raise nats.errors.BadSubjectError
        sent = None if headers is None else {name: str(value) for name, value in headers.items()}
        self._transmit(lambda: self._broker.published(subject, reply, bytes(payload), sent))

    async def _send_subscribe(self, sub: Subscription) -> None:
        self._transmit(lambda: self._subscribed(sub))

    def _subscribed(self, sub: Subscription) -> None:
        if sub._id in self._subs:
            self._broker.subscribed(self, sub._subject, sub._queue, sub._id)

    async def _send_unsubscribe(self, sid: int, limit: int = 0) -> None:  # noqa: ARG002 - the library's signature
        self._transmit(lambda: self._broker.unsubscribed(self, sid))

    async def flush(self, timeout: float = 10) -> None:
        """There and back."""
        there: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transmit(lambda: self._come_down(lambda: _told(there)))
        try:
            await asyncio.wait_for(there, timeout)
        except TimeoutError:
            raise nats.errors.FlushTimeoutError from None

    async def close(self) -> None:
        """Close it for good."""
        self._broker.drop(self)

    # --- down -----------------------------------------------------------------------------------------------------

    def send_down(self, sid: int, subject: str, reply: str, data: bytes, headers: Headers | None) -> None:
        """The broker sends a message to one of the subscriptions."""
        self._come_down(lambda: self._received(sid, subject, reply, data, headers))

    def _come_down(self, action: Callable[[], Any]) -> None:
        loop = virtual()
        self._down_free = max(self._down_free, loop.time() + self._broker.hop())
        loop.call_at(self._down_free, self._came_down, self._epoch, action, context=Context())

    def _came_down(self, epoch: int, action: Callable[[], Any]) -> None:
        if epoch == self._epoch:
            action()

    def _received(self, sid: int, subject: str, reply: str, data: bytes, headers: Headers | None) -> None:
        sub = self._subs.get(sid)
        if sub is None:
            return
        sub._received += 1
        if 0 < sub._max_msgs <= sub._received:
            self._subs.pop(sid, None)
        sub._pending_size += len(data)
        copied = None if headers is None else dict(headers)
        sub._pending_queue.put_nowait(Msg(self, subject=subject, reply=reply, data=data, headers=copied, _sid=sid))

    # --- lost and found -------------------------------------------------------------------------------------------

    def lost(self) -> None:
        """The connection is broken."""
        if self._status != Client.CONNECTED:
            return
        self._status = Client.RECONNECTING
        self._epoch += 1
        self._try_later()

    def _try_later(self) -> None:
        context = Context()
        context.run(current.set, self.process)  # a paused process does not come back
        virtual().call_later(self._broker.reconnect_pause(), self._try, context=context)

    def _try(self) -> None:
        if self._status != Client.RECONNECTING:
            return
        if not self._broker.up:
            self._try_later()
            return
        self._status = Client.CONNECTED
        for sub in self._subs.values():
            self._broker.subscribed(self, sub._subject, sub._queue, sub._id)
        unsent, self._unsent = self._unsent, []
        for action in unsent:
            self._transmit(action)

    def gone(self) -> None:
        """It will never come back."""
        self._status = Client.CLOSED
        self._epoch += 1
        for sub in self._subs.values():
            sub._stop_processing()
        self._subs.clear()


class _Names:
    """The client's source of unique tokens, without chance."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def next(self) -> bytearray:
        """A token of the length that the library cuts off."""
        return bytearray(self._broker.name("").encode())


def _told(there: asyncio.Future[None]) -> None:
    if not there.done():
        there.set_result(None)
