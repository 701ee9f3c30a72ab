"""What is known of the guests on machines: the key that speaks for each instance, and the tokens that may bring one.

It lies in a NATS KV bucket, for all workers, and outlives them; only public halves of keys stand there. Of two changes
at one moment the entry's revision lets one through, and the other is made again on what it left.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from uuid import UUID

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js.api import KeyValueConfig, StorageType
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue

from engine.broker import COMMAND_STREAM
from engine.clouds.port import TransientError

BUCKET = "HOLDFAST_GUESTS"

_CALL = 5.0  # seconds for one call to the broker
_TURNS = 5  # tries to write before somebody else always was quicker
_AWAY = (nats.errors.Error, nats.js.errors.Error, TimeoutError, OSError)


class Guest(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an instance's machine: the public key it speaks by, and the public halves of its tokens.

    `open`: issued, each with the end of its time. `spent`: they let in the present key, or were issued before it.
    """

    key: str | None = None
    open: dict[str, datetime] = {}
    spent: tuple[str, ...] = ()


class Guests:
    """The bucket. Its calls raise `TransientError` while the broker is away."""

    def __init__(self, client: Client) -> None:
        self._stream = client.jetstream(timeout=_CALL)
        self._bucket: KeyValue | None = None

    async def get(self, instance_id: UUID) -> Guest | None:
        """What is known of the instance's machine; None when its credentials do not exist."""
        try:
            bucket = await self._opened()
            return msgspec.json.decode((await bucket.get(str(instance_id))).value or b"{}", type=Guest)
        except KeyNotFoundError:
            return None
        except _AWAY as error:
            raise self._away(error) from error

    async def open(self, instance_id: UUID) -> None:
        """There is a guest."""
        try:
            bucket = await self._opened()
            await bucket.create(str(instance_id), msgspec.json.encode(Guest()))
        except KeyWrongLastSequenceError:
            return  # there is one
        except _AWAY as error:
            raise self._away(error) from error

    async def change(self, instance_id: UUID, change: Callable[[Guest], Guest]) -> Guest | None:
        """The guest as changed; None when there is none. What `change` raises goes through, and nothing is changed."""
        try:
            return await self._change(instance_id, change)
        except KeyNotFoundError:
            return None
        except _AWAY as error:
            raise self._away(error) from error

    async def _change(self, instance_id: UUID, change: Callable[[Guest], Guest]) -> Guest:
        bucket = await self._opened()
        for _ in range(_TURNS):
            entry = await bucket.get(str(instance_id))
            before = msgspec.json.decode(entry.value or b"{}", type=Guest)
            after = change(before)
            if after == before:
                return after
            try:
                await bucket.update(str(instance_id), msgspec.json.encode(after), last=entry.revision)
            except KeyWrongLastSequenceError:
                continue
            return after
        raise TransientError("enrolment_contended", f"others changed instance {instance_id} at the same time")

    async def forget(self, instance_id: UUID) -> None:
        """There is no guest, nor a trace of one."""
        try:
            await self._opened()
            await self._stream.purge_stream(f"KV_{BUCKET}", subject=f"$KV.{BUCKET}.{instance_id}")
        except _AWAY as error:
            raise self._away(error) from error

    async def _opened(self) -> KeyValue:
        if self._bucket is None:
            self._bucket = await self._open()
        return self._bucket

    async def _open(self) -> KeyValue:
        try:
            return await self._stream.key_value(BUCKET)
        except nats.js.errors.NotFoundError:
            commands = await self._stream.stream_info(COMMAND_STREAM)
            config = KeyValueConfig(bucket=BUCKET, storage=StorageType.FILE, replicas=commands.config.num_replicas or 1)
            return await self._stream.create_key_value(config)

    def _away(self, error: Exception) -> TransientError:
        self._bucket = None
        return TransientError("broker_away", f"the guests' credentials cannot be reached: {str(error) or repr(error)}")
