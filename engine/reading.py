"""Reading a pull consumer ahead: messages are asked for before they are wanted, and handed out as many as there are.

In order and without a gap, or `ConsumerLostError` says that the consumer must be made anew. One message alone is handed
out at once; while the reader is busy with some, the next ones arrive. What was handed out is nobody's business here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

PULL = 256  # messages of one request
AHEAD = 2 * PULL  # messages asked for, or here and not handed out, at most
EXPIRES = 2.0  # seconds that the broker keeps a request
SILENCE = EXPIRES + 0.5  # seconds without a word, not even that a request has expired: the consumer is lost

_EXPIRED = "408"


class ConsumerLostError(Exception):
    """The consumer, or messages of it, are lost: make it anew."""


class Delivered(msgspec.Struct, frozen=True):
    """A message with its number in the stream."""

    sequence: int
    subject: str
    data: bytes
    headers: dict[str, str]


class _Request:
    """One request under way: how many messages it still takes."""

    __slots__ = ("left", "reply")

    def __init__(self, reply: str) -> None:
        self.reply = reply
        self.left = PULL


class Reader:
    """Reads one consumer, which has delivered nothing yet and acknowledges nothing. For one task at a time."""

    def __init__(self, client: Client, stream: str, consumer: str) -> None:
        self._client = client
        self._next_subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._inbox = client.new_inbox()
        self._subscription: Subscription | None = None
        self._requests: deque[_Request] = deque()
        self._asked = 0
        self._arrived: deque[Delivered] = deque()
        self._numbered = 0  # the consumer's number of the last message
        self._news = asyncio.Event()
        self._woken = False
        self._lost = ""

    async def __aenter__(self) -> Reader:
        """Begin to ask."""
        self._subscription = await self._client.subscribe(f"{self._inbox}.*", cb=self._on_message)
        await self._ask()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Ask no more."""
        if self._subscription is not None and self._client.is_connected:
            await self._subscription.unsubscribe()

    async def next(self, at_most: int) -> list[Delivered]:
        """The next messages, as many as there are; none after a while or `wake`. Raises `ConsumerLostError`."""
        if not self._arrived and not self._woken and not self._lost:
            await self._wait()
        self._woken = False
        if self._lost and not self._arrived:
            raise ConsumerLostError(self._lost)
        taken = [self._arrived.popleft() for _ in range(min(at_most, len(self._arrived)))]
        if not self._lost:
            await self._ask()
        return taken

    def wake(self) -> None:
        """Have `next` return, with what there is."""
        self._woken = True
        self._news.set()

    async def _wait(self) -> None:
        self._news.clear()  # of what was handed out already
        try:
            async with asyncio.timeout(SILENCE):
                await self._news.wait()
        except TimeoutError:
            self._lost = self._lost or f"nothing was heard of it within {SILENCE} s"

    async def _ask(self) -> None:
        """Keep requests under way for as many as may lie here."""
        while sum(each.left for each in self._requests) + len(self._arrived) <= AHEAD - PULL:
            self._asked += 1
            request = _Request(f"{self._inbox}.{self._asked}")
            self._requests.append(request)
            body = b'{"batch":%d,"expires":%d}' % (PULL, int(EXPIRES * 1e9))
            await self._client.publish(self._next_subject, body, reply=request.reply)

    async def _on_message(self, message: Msg) -> None:
        if self._lost:
            return
        if not message.reply:
            self._on_status(message)
        else:
            stream_sequence, number = _numbers(message.reply)
            if number != self._numbered + 1:
                self._lost = f"message {number} came after {self._numbered}"
            else:
                self._numbered = number
                self._count()
                self._arrived.append(Delivered(stream_sequence, message.subject, message.data, message.headers or {}))
        self._news.set()

    def _count(self) -> None:
        """The broker serves requests in the order in which they were made."""
        if self._requests:
            self._requests[0].left -= 1
            if self._requests[0].left == 0:
                self._requests.popleft()

    def _on_status(self, message: Msg) -> None:
        headers = message.headers or {}
        if headers.get("Status") == _EXPIRED:
            self._requests = deque(each for each in self._requests if each.reply != message.subject)
        else:
            self._lost = f"the broker says {headers.get('Status')} {headers.get('Description', '')}".strip()


def _numbers(reply: str) -> tuple[int, int]:
    """The numbers in the stream and of the consumer, from `$JS.ACK.<stream>.<consumer>.<tries>.<stream>.<consumer>...`.

    A broker of a domain puts two names before the stream, and may add a last word.
    """
    words = reply.split(".")
    at = 5 if len(words) == 9 else 7  # noqa: PLR2004 - the short form has nine words
    return int(words[at]), int(words[at + 1])
