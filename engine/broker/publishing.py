"""Publishing many messages into one stream: in order, all acknowledged, at the least cost that the broker allows.

Returns only once the broker has every message. Whoever is interrupted publishes the same messages again: the broker
drops those that it has, by their ids and within its window, so that each is there at least once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NoReturn
from uuid import uuid4

import msgspec
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.errors import APIError, NoStreamResponseError

from engine.messages import MSG_ID

log = structlog.get_logger(__name__)

ATOMIC_FROM = 16  # messages: fewer are stored sooner one by one, each with a sync, than the broker sets a batch up
ATOMIC_AT_MOST = 1000  # messages that the broker takes in one batch
ACKNOWLEDGED_WITHIN = 10.0  # seconds

_BATCH_ID, _BATCH_SEQUENCE, _BATCH_COMMIT = "Nats-Batch-Id", "Nats-Batch-Sequence", "Nats-Batch-Commit"
_HAS_IT_ALREADY = 10201  # one of the batch's message ids was seen: a part of it was published before


class Message(msgspec.Struct, frozen=True):
    """What is published. The broker drops a message whose id it has."""

    subject: str
    body: bytes
    id: str


class Publisher:
    """Publishes over one connection. Not for several tasks at once: they would share the order."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._inbox = client.new_inbox()
        self._acknowledgements: Subscription | None = None
        self._turn = 0
        self._missing = 0
        self._acknowledged: asyncio.Future[Msg | None] | None = None
        self._atomic = True

    async def publish(self, messages: Sequence[Message]) -> None:
        """Publish in this order. Raises what nats-py raises when the broker is away, or `APIError` if it refuses."""
        try:
            for start in range(0, len(messages), ATOMIC_AT_MOST):
                batch = messages[start : start + ATOMIC_AT_MOST]
                if len(batch) < ATOMIC_FROM or not self._atomic or not await self._publish_at_once(batch):
                    await self._publish_one_by_one(batch)
        except Exception:
            self._atomic = True  # the broker that comes back may be a newer one
            raise

    async def _publish_at_once(self, batch: Sequence[Message]) -> bool:
        """As an atomic batch, which the broker syncs once; False if it did not take it."""
        batch_id = uuid4().hex
        for ordinal, message in enumerate(batch[:-1], start=1):
            headers = {MSG_ID: message.id, _BATCH_ID: batch_id, _BATCH_SEQUENCE: str(ordinal)}
            await self._client.publish(message.subject, message.body, headers=headers)
        headers = {MSG_ID: batch[-1].id, _BATCH_ID: batch_id, _BATCH_SEQUENCE: str(len(batch)), _BATCH_COMMIT: "1"}
        last = await self._client.request(
            batch[-1].subject, batch[-1].body, timeout=ACKNOWLEDGED_WITHIN, headers=headers
        )
        answer = msgspec.json.decode(last.data, type=dict[str, Any])
        if "error" not in answer and answer.get("count") == len(batch):
            return True
        if answer.get("error", {}).get("err_code") != _HAS_IT_ALREADY:
            # An older broker, or a stream that was not made by us, stores the messages one by one, or none of them.
            self._atomic = False
            log.info("no_atomic_batches", answer=answer)
        return False

    async def _publish_one_by_one(self, batch: Sequence[Message]) -> None:
        """All on their way at once; one connection keeps the order."""
        if self._acknowledgements is None:
            self._acknowledgements = await self._client.subscribe(f"{self._inbox}.*", cb=self._on_acknowledgement)
        self._turn += 1
        self._missing = len(batch)
        self._acknowledged = asyncio.get_running_loop().create_future()
        reply = f"{self._inbox}.{self._turn}"
        for message in batch:
            await self._client.publish(message.subject, message.body, reply=reply, headers={MSG_ID: message.id})
        async with asyncio.timeout(ACKNOWLEDGED_WITHIN):
            refusal = await self._acknowledged
        if refusal is not None:
            _raise(refusal)

    async def _on_acknowledgement(self, message: Msg) -> None:
        acknowledged = self._acknowledged
        if acknowledged is None or acknowledged.done() or message.subject != f"{self._inbox}.{self._turn}":
            return
        self._missing -= 1
        if not message.data.startswith(b'{"stream":'):
            acknowledged.set_result(message)
        elif self._missing == 0:
            acknowledged.set_result(None)


def _raise(refusal: Msg) -> NoReturn:
    if not refusal.data:
        raise NoStreamResponseError
    answer = msgspec.json.decode(refusal.data, type=dict[str, Any])
    APIError.from_error(answer.get("error", {"code": 500, "description": str(answer)}))
    raise AssertionError("from_error raises")
