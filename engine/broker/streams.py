"""The streams that the engine keeps on the broker, and the partition in which a command lies there.

Guarantees that a command which the broker acknowledged is kept until the engine purges it. It does not notice a stream
that was deleted and made anew: readers compare when it was created; nor can it make a foreign broker durable:
`require_durable` asks.
"""

from __future__ import annotations

import asyncio
from typing import Any

import nats.errors
import structlog
from nats.js import JetStreamContext
from nats.js.api import (
    DiscardPolicy,
    PersistMode,
    RetentionPolicy,
    StorageType,
    StreamConfig,
    StreamInfo,
    SubjectTransform,
)
from nats.js.errors import APIError, BadRequestError, NotFoundError, ServiceUnavailableError

from engine.broker.connection import BrokerError
from engine.clock import monotonic
from engine.messages import PARTITIONS, PREFIX, command_filter

COMMAND_STREAM = "HOLDFAST_COMMANDS"
EVENT_STREAM = "HOLDFAST_EVENTS"
DEAD_LETTER_STREAM = "HOLDFAST_DEAD"
STORED_COMMANDS = f"{PREFIX}.cmdp"  # followed by partition, project, kind, id, command

MIB = 1024 * 1024
MAX_MESSAGE = MIB  # headers and body; above `messages.MAX_BODY`, so that too large a command becomes a dead letter
DEDUPLICATION = 120.0  # seconds for which the broker knows a message's id

_STREAM_EXISTS = 10058
_CALL = 5.0  # seconds for one call to JetStream
_AVAILABLE_WITHIN = 30.0  # seconds for JetStream to come up after the server answers

log = structlog.get_logger(__name__)


def partition_of(aggregate_id: str) -> int:
    """The partition into which the broker puts commands for this id, written as it stands in the subject: FNV-1a."""
    digest = 2166136261
    for byte in aggregate_id.encode():
        digest = ((digest ^ byte) * 16777619) & 0xFFFFFFFF
    return digest % PARTITIONS


async def ensure_streams(
    js: JetStreamContext,
    *,
    replicas: int = 1,
    command_bytes: int = 1024 * MIB,
    event_bytes: int = 1024 * MIB,
    dead_letter_bytes: int = 256 * MIB,
) -> None:
    """Make the three streams, or bring those there are to this configuration without touching their messages."""
    for wanted in (
        _commands(command_bytes, replicas),
        _copies(EVENT_STREAM, "evt", event_bytes, replicas),
        _copies(DEAD_LETTER_STREAM, "dlq", dead_letter_bytes, replicas),
    ):
        await _ensure(js, wanted)


def _commands(max_bytes: int, replicas: int) -> StreamConfig:
    """A full stream refuses the next command, so that its publisher knows: nothing is ever dropped to make room."""
    return StreamConfig(
        name=COMMAND_STREAM,
        subjects=[command_filter()],
        subject_transform=SubjectTransform(
            src=command_filter(),
            dest=f"{STORED_COMMANDS}.{{{{partition({PARTITIONS},3)}}}}."
            "{{wildcard(1)}}.{{wildcard(2)}}.{{wildcard(3)}}.{{wildcard(4)}}",
        ),
        discard=DiscardPolicy.NEW,
        **_common(max_bytes, replicas),
    )


def _copies(name: str, branch: str, max_bytes: int, replicas: int) -> StreamConfig:
    """Drops the oldest when full: what lies here is a copy, and a flood of it must stop neither outbox nor inbox.

    Events can be had from the event store again; a dead letter was never a command, and is counted besides. Events come
    in atomic batches, each of which the broker syncs once; one too old for them takes no notice of the wish.
    """
    return StreamConfig(
        name=name,
        subjects=[f"{PREFIX}.{branch}.>"],
        discard=DiscardPolicy.OLD,
        allow_atomic=True,
        **_common(max_bytes, replicas),
    )


def _common(max_bytes: int, replicas: int) -> dict[str, Any]:
    return {
        "retention": RetentionPolicy.LIMITS,
        "storage": StorageType.FILE,
        "max_age": 0.0,
        "max_msgs": -1,
        "max_bytes": max_bytes,
        "max_msg_size": MAX_MESSAGE,
        "duplicate_window": DEDUPLICATION,
        "num_replicas": replicas,
    }


_FIXED = ("subjects", "subject_transform", "storage", "retention")
_UPDATABLE = (
    "discard",
    "max_age",
    "max_msgs",
    "max_bytes",
    "max_msg_size",
    "duplicate_window",
    "num_replicas",
    "allow_atomic",
)


async def _ensure(js: JetStreamContext, wanted: StreamConfig) -> None:
    deadline = monotonic() + _AVAILABLE_WITHIN
    while True:
        try:
            return await _ensure_once(js, wanted)
        except (ServiceUnavailableError, nats.errors.TimeoutError, nats.errors.NoRespondersError) as e:
            if monotonic() >= deadline or (isinstance(e, APIError) and e.err_code not in (None, 10008)):
                raise _refused(wanted, e) from e
            await asyncio.sleep(0.2)
        except APIError as e:
            raise _refused(wanted, e) from e


async def _ensure_once(js: JetStreamContext, wanted: StreamConfig) -> None:
    name = str(wanted.name)
    try:
        found = (await js.stream_info(name)).config
    except NotFoundError:
        try:
            await js.add_stream(wanted)
        except BadRequestError as e:
            if e.err_code != _STREAM_EXISTS:
                raise
            found = (await js.stream_info(name)).config  # another worker was quicker
        else:
            log.info("stream_made", stream=name, max_bytes=wanted.max_bytes, replicas=wanted.num_replicas)
            return
    for field in _FIXED:
        if getattr(found, field) != getattr(wanted, field):
            raise BrokerError(
                "stream_mismatch",
                f"the stream {name} has {field} {getattr(found, field)!r} and needs {getattr(wanted, field)!r}, which "
                "cannot be changed under its messages; stop the publishers, let the engine decide what lies there, "
                f"delete the stream {name}, and start the engine again: it makes the stream anew",
            )
    # More replicas than asked for are the operator's doing, and never taken away.
    kept = max(found.num_replicas or 1, wanted.num_replicas or 1)
    wanted = wanted.evolve(num_replicas=kept)
    changed = {f: getattr(wanted, f) for f in _UPDATABLE if getattr(found, f) != getattr(wanted, f)}
    if changed:
        await js.update_stream(found.evolve(**changed))
        log.info("stream_updated", stream=name, **{k: str(v) for k, v in changed.items()})


def _refused(wanted: StreamConfig, error: nats.errors.Error) -> BrokerError:
    because = error.description if isinstance(error, APIError) else (str(error) or type(error).__name__)
    return BrokerError(
        "stream_refused",
        f"the broker does not take the stream {wanted.name} with {wanted.max_bytes} bytes and "
        f"{wanted.num_replicas} replicas ({because}); give the broker JetStream with room for it, or ask for less",
    )


async def require_durable(js: JetStreamContext, *, embedded: bool = False, declared: bool = False) -> None:
    """Raise `broker_not_durable` unless an acknowledged command survives the loss of power of one machine.

    `embedded`: the broker is started by us and syncs before it acknowledges. `declared`: the operator vouches for it.
    A client cannot ask a foreign broker when it syncs, hence the word of the operator.
    """
    info: StreamInfo = await js.stream_info(COMMAND_STREAM)
    config = info.config
    if config.storage != StorageType.FILE or config.persist_mode == PersistMode.ASYNC:
        raise BrokerError(
            "broker_not_durable",
            f"the stream {COMMAND_STREAM} acknowledges commands before they are in a file; make it a file stream "
            "with the default persist mode",
        )
    if embedded or declared or (config.num_replicas or 1) >= 3:  # noqa: PLR2004 - a majority outlives one loss
        return
    raise BrokerError(
        "broker_not_durable",
        f"the stream {COMMAND_STREAM} has {config.num_replicas or 1} replica(s) on a broker that may acknowledge "
        "before it syncs: a power cut could lose accepted commands; use three replicas, or set `sync_interval: always` "
        "on the broker and declare it durable",
    )
