"""The inbox: every command of its partitions is decided in order, once, and leaves one record.

Records, the aggregates' events and the positions reached go to the store in one transaction; what was read and not
committed is read again. It trusts no acknowledgement and no reply: publishers ask for the record. It decides commands
that arrive in one batch one after the other, so a batch is as slow as its slowest load.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any, TypeVar
from uuid import UUID

import msgspec
import nats.errors
import structlog
from eventsourcing.persistence import Tracking
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import APIError

from aggregates.base import Context, Lifecycled, Refusal
from aggregates.catalogue import Catalogue
from aggregates.instance import Instance
from aggregates.quota import Quota
from aggregates.record import CommandAccepted, CommandRejected, record_id
from engine import crash_points
from engine.broker import COMMAND_STREAM, STORED_COMMANDS
from engine.clock import Now, monotonic, utc_now
from engine.hot import HotAggregates, Turn
from engine.intake import Received, receive, redacted
from engine.mapper import UnknownEventError
from engine.messages import PARTITIONS, REPLY_TO, DeadLetter, Decision, dead_letter_subject
from engine.replies import Answerable
from engine.store import Conflict, EventStore

log = structlog.get_logger(__name__)

BATCH = 256
IDLE = 2.0  # seconds that one fetch waits for the first message; a consumer lost with its broker is missed then
PURGE_EVERY = 30.0
GRACE = 600.0  # seconds that decided messages stay in the stream, for people who look

AGGREGATES: dict[str, Any] = {"instance": Instance, "quota": Quota}


class Inbox:
    """Reads the command stream of one broker into one store."""

    def __init__(
        self,
        client: Client,
        store: EventStore,
        hot: HotAggregates,
        catalogue: Callable[[], Catalogue],
        now: Now = utc_now,
    ) -> None:
        self._client = client
        self._stream: JetStreamContext = client.jetstream()
        self._store = store
        self._hot = hot
        self._catalogue = catalogue
        self._now = now
        self._may_answer = Answerable(client)
        self._incarnation = ""
        self._positions: dict[int, int] = {}
        self._decided: deque[tuple[float, int]] = deque()

    async def run(self) -> None:
        """Decide commands until cancelled; a lost broker or consumer is taken up again."""
        pause = 0.1
        while True:
            try:
                await self._follow()
            except (nats.errors.Error, APIError, OSError, TimeoutError) as lost:
                log.warning("inbox_interrupted", error=repr(lost), retry_in=pause)
            except Conflict as lost:
                log.warning("inbox_lost_a_position", error=str(lost))
            else:
                pause = 0.1
                continue
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5.0)

    # --- reading --------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Read on from the recorded positions, until the consumer must be made anew."""
        await self._load_positions()
        start = min(self._positions.values()) + 1
        config = ConsumerConfig(
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=start,
            ack_policy=AckPolicy.NONE,
            filter_subject=f"{STORED_COMMANDS}.>",
            inactive_threshold=60.0,
            mem_storage=True,
        )
        created = await self._stream.add_consumer(COMMAND_STREAM, config=config)
        subscription = await self._stream.pull_subscribe_bind(consumer=created.name, stream=COMMAND_STREAM)
        log.info("inbox_reading", stream=COMMAND_STREAM, from_sequence=start)
        expected = 1
        purged = monotonic()
        try:
            while True:
                messages = await self._fetch(subscription)
                if messages and messages[0].metadata.sequence.consumer != expected:
                    log.warning("inbox_gap", expected=expected, got=messages[0].metadata.sequence.consumer)
                    return
                expected += len(messages)
                if messages and messages[-1].metadata.sequence.consumer != expected - 1:
                    return
                if messages:
                    await self._receive_batch(messages)
                if monotonic() - purged > PURGE_EVERY:
                    purged = monotonic()
                    await self._purge()
                if not messages and await self._made_anew():
                    return
        finally:
            if self._client.is_connected:
                await subscription.unsubscribe()

    async def _fetch(self, subscription: JetStreamContext.PullSubscription) -> list[Msg]:
        try:
            return await subscription.fetch(BATCH, timeout=IDLE)
        except (TimeoutError, nats.errors.TimeoutError):
            return []

    async def _made_anew(self) -> bool:
        info = await self._stream.stream_info(COMMAND_STREAM)
        return str(info.created) != self._incarnation

    async def _load_positions(self) -> None:
        """Where each partition stands. They belong to one making of the stream: one made anew is read from 1."""
        info = await self._stream.stream_info(COMMAND_STREAM)
        self._incarnation = str(info.created)
        for partition in range(PARTITIONS):
            self._positions[partition] = await self._store.position(self._position_name(partition)) or 0

    def _position_name(self, partition: int) -> str:
        return f"commands/{self._incarnation}/{partition}"

    async def _purge(self) -> None:
        """Remove from the stream what was decided a while ago, and move idle partitions' positions along."""
        moment = monotonic()
        behind = None
        while self._decided and self._decided[0][0] < moment - GRACE:
            behind = self._decided.popleft()[1]
        if behind is None:
            return
        idle = [p for p, position in self._positions.items() if position < behind]
        await self._store.commit([], positions=[Tracking(self._position_name(p), behind) for p in idle])
        for partition in idle:
            self._positions[partition] = behind
        await self._stream.purge_stream(COMMAND_STREAM, seq=behind + 1)

    # --- deciding -------------------------------------------------------------------------------------------------

    async def _receive_batch(self, messages: Sequence[Msg]) -> None:
        received = [
            receive(m.metadata.sequence.stream, m.subject, m.data, (m.headers or {}).get(REPLY_TO)) for m in messages
        ]
        fresh = [r for r in received if r.sequence > self._positions[r.partition]]
        if fresh:
            await self._decide_batch(fresh)

    async def _decide_batch(self, fresh: Sequence[Received]) -> None:
        """Decide and commit. One that breaks the decider is refused, the batch around it is decided."""
        batch = _Batch(self._store, self._hot, self._catalogue(), self._now)
        try:
            decisions = await batch.decide(fresh, self._position_name, self._bury)
        except (Conflict, nats.errors.Error, APIError, OSError):
            raise
        except Exception as error:
            if len(fresh) > 1:
                for each in fresh:
                    await self._decide_batch([each])
                return
            if fresh[0].refusal is not None:
                raise
            log.exception("decider_broke", subject=str(fresh[0].subject)[:200], sequence=fresh[0].sequence)
            fresh[0].dead, fresh[0].wish = True, None
            fresh[0].refusal = _internal(error)
            await self._decide_batch(fresh)
            return
        for each in fresh:
            self._positions[each.partition] = max(self._positions[each.partition], each.sequence)
        self._decided.append((monotonic(), fresh[-1].sequence))
        for each, decision in zip(fresh, decisions, strict=True):
            if each.reply_to and self._may_answer(each.reply_to):
                crash_points.reach("inbox_before_reply")
                await self._client.publish(each.reply_to, msgspec.json.encode(decision))
            if each.dead or (each.refusal is not None and each.refusal.code == "secret_in_clear"):
                await self._erase(each)

    async def _erase(self, received: Received) -> None:
        """Overwrite a message that holds, or may hold, a secret in clear. Its record or dead letter stays."""
        try:
            await self._stream.delete_msg(COMMAND_STREAM, received.sequence)
        except APIError as error:
            log.info("not_erased", sequence=received.sequence, error=str(error))

    async def _bury(self, received: Received, refusal: Refusal) -> None:
        """Keep a message that is no command as a dead letter; made again after a crash, the broker drops it."""
        subject = received.subject
        letter = DeadLetter(
            code=refusal.code,
            reason=refusal.message,
            subject=str(subject),
            sequence=received.sequence,
            size=len(received.body),
            content=received.content,
            body=redacted(received.body),
            received_at=self._now(),
        )
        await self._stream.publish(
            dead_letter_subject(subject.project, refusal.code),
            msgspec.json.encode(letter),
            headers={"Nats-Msg-Id": f"{self._incarnation}:{received.sequence}"},
            timeout=10,
        )
        log.warning("dead_letter", code=refusal.code, subject=str(subject)[:200], sequence=received.sequence)


class _Batch:
    """One batch on its way from read to committed. Aggregates stay in turn until the commit is there."""

    def __init__(self, store: EventStore, hot: HotAggregates, catalogue: Catalogue, now: Now) -> None:
        self._store = store
        self._hot = hot
        self._catalogue = catalogue
        self._now = now
        self._turns: dict[UUID, Turn] = {}
        self._records: dict[UUID, CommandAccepted | CommandRejected] = {}
        self._known: set[UUID] = set()

    async def decide(
        self, batch: Sequence[Received], position_name: Callable[[int], str], bury: Callable[..., Any]
    ) -> list[Decision]:
        """Decide and commit all. Raises `Conflict` with nothing committed when a position was lost."""
        self._known = await self._store.existing(
            {record_id(r.subject.project, r.command_id) for r in batch if r.command_id is not None}
        )
        async with AsyncExitStack() as stack:
            decisions = []
            for received in batch:
                if received.dead and received.refusal is not None:
                    await bury(received, received.refusal)
                decisions.append(await self._decide(received, stack))
            reached = {r.partition: r.sequence for r in batch}
            events: list[Any] = list(self._records.values())
            owing = []
            for turn in self._turns.values():
                more, changes = turn.collect()
                events.extend(more)
                owing.extend(changes)
            crash_points.reach("inbox_before_commit")
            await self._store.commit(
                events,
                positions=[Tracking(position_name(p), sequence) for p, sequence in reached.items()],
                owing=owing,
            )
            crash_points.reach("inbox_after_commit")
        return decisions

    async def _decide(self, received: Received, stack: AsyncExitStack) -> Decision:
        if received.command_id is None:
            return _unrecorded(received, received.refusal or Refusal("malformed", "the message is no command"))
        key = record_id(received.subject.project, received.command_id)
        earlier = self._records.get(key)
        if earlier is None and key in self._known:
            earlier = await self._store.decision(received.subject.project, received.command_id)
        if earlier is not None:
            return _answer_again(received, earlier)
        record = await self._decide_first(received, key, stack)
        self._records[key] = record
        return answer(record)

    async def _decide_first(
        self, received: Received, key: UUID, stack: AsyncExitStack
    ) -> CommandAccepted | CommandRejected:
        facts: dict[str, Any] = {
            "originator_id": key,
            "originator_version": 1,
            "timestamp": self._now(),
            "project": received.subject.project,
            "command_id": received.command_id,
            "command": received.subject.command,
            "aggregate_kind": received.subject.kind,
            "aggregate_id": received.subject.aggregate_id,
            "actor": received.actor,
            "content": received.content,
            "sequence": received.sequence,
        }
        try:
            version = await self._apply(received, stack)
        except Refusal as refusal:
            return _record(CommandRejected, **facts, code=refusal.code, reason=refusal.message)
        return _record(CommandAccepted, **facts, version=version)

    async def _apply(self, received: Received, stack: AsyncExitStack) -> int:
        """Have the aggregate decide; its version then. Raises `Refusal`."""
        if received.wish is None:
            raise received.refusal or Refusal("malformed", "the message is no command")
        command, envelope, aggregate_id = received.wish.command, received.wish.envelope, received.wish.aggregate_id
        now = self._now()
        if envelope.deadline is not None and envelope.deadline <= now:
            raise Refusal("expired", f"the deadline {envelope.deadline.isoformat()} had passed when it was decided")
        context = Context(
            at=now,
            command_id=envelope.command_id,
            actor=envelope.actor,
            project=received.subject.project,
            partition=received.partition,
            catalogue=self._catalogue,
            deadline=envelope.deadline,
        )
        turn = await self._turn(aggregate_id, stack)
        kind = received.subject.kind
        missing = Refusal("not_found", f"no {kind} {aggregate_id} in project {context.project}")
        if turn.aggregate is None:
            if not command.creates:
                raise missing
            turn.aggregate = AGGREGATES[kind].create(aggregate_id, command, context)
            return int(turn.aggregate.version)
        if turn.aggregate.kind != kind:
            raise missing
        _check_version(turn.aggregate, envelope.expected_version)
        turn.aggregate.execute(command, context)
        return int(turn.aggregate.version)

    async def _turn(self, aggregate_id: UUID, stack: AsyncExitStack) -> Turn:
        turn = self._turns.get(aggregate_id)
        if turn is None:
            turn = self._turns[aggregate_id] = await stack.enter_async_context(self._hot.turn(aggregate_id))
        return turn


R = TypeVar("R", CommandAccepted, CommandRejected)


def _record(event: type[R], **facts: Any) -> R:
    return event(**facts)


def _check_version(aggregate: Any, expected: int | None) -> None:
    if expected is None or not isinstance(aggregate, Lifecycled) or aggregate.entered == expected:
        return
    raise Refusal(
        "conflict",
        f"the {aggregate.kind} is at version {aggregate.entered}, not {expected}: look at it again, then decide",
    )


def answer(record: CommandAccepted | CommandRejected, *, duplicate: bool = False) -> Decision:
    """What a record says to the publisher."""
    rejected = isinstance(record, CommandRejected)
    return Decision(
        command_id=record.command_id,
        accepted=not rejected,
        kind=record.aggregate_kind,
        aggregate_id=record.aggregate_id,
        version=None if isinstance(record, CommandRejected) else record.version,
        code=record.code if isinstance(record, CommandRejected) else None,
        reason=record.reason if isinstance(record, CommandRejected) else None,
        duplicate=duplicate,
    )


def _internal(error: Exception) -> Refusal:
    if isinstance(error, UnknownEventError):
        return Refusal("unknown_event", str(error))
    return Refusal("internal_error", "the command could not be decided because of a defect; the operator's log has it")


def _unrecorded(received: Received, refusal: Refusal) -> Decision:
    """The answer about a message without a command id: there is nothing to record it under."""
    return Decision(
        command_id=None,
        accepted=False,
        kind=received.subject.kind,
        aggregate_id=received.subject.aggregate_id,
        code=refusal.code,
        reason=refusal.message,
    )


def _answer_again(received: Received, record: CommandAccepted | CommandRejected) -> Decision:
    if record.content == received.content:
        return answer(record, duplicate=True)
    return Decision(
        command_id=record.command_id,
        accepted=False,
        kind=received.subject.kind,
        aggregate_id=received.subject.aggregate_id,
        code="duplicate_command",
        reason="another command was decided under this command id; give each command an id of its own",
        duplicate=True,
    )
