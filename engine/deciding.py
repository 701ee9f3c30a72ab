"""Deciding: what becomes of a batch of commands, and the one transaction in which it is written down.

Records, the aggregates' events and the positions reached are committed together or not at all. It decides commands one
after the other, and each aggregate stays in turn until the commit is there, so a batch is as slow as its slowest load.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from typing import Any, TypeVar
from uuid import UUID

from eventsourcing.persistence import Tracking

from aggregates.base import Context, Refusal
from aggregates.catalogue import Catalogue
from aggregates.instance import Instance
from aggregates.lifecycled import Lifecycled
from aggregates.quota import Quota
from aggregates.record import CommandAccepted, CommandRejected, record_id
from engine import crash_points
from engine.clock import Now
from engine.hot import HotAggregates, Turn
from engine.intake import Received
from engine.mapper import UnknownEventError
from engine.messages import Decision
from engine.partitions import Ownership, fences
from engine.store import EventStore

MOST_PUT_OFF = 900  # times; about a quarter of an hour where nothing else is to be done

AGGREGATES: dict[str, Any] = {"instance": Instance, "quota": Quota}


class Batch:
    """One batch on its way from read to committed. Aggregates stay in turn until the commit is there."""

    def __init__(
        self, store: EventStore, hot: HotAggregates, ownership: Ownership, catalogue: Catalogue, now: Now
    ) -> None:
        self._held = ownership.held
        self._store = store
        self._hot = hot
        self._catalogue = catalogue
        self._now = now
        self._turns: dict[UUID, Turn] = {}
        self._records: dict[UUID, CommandAccepted | CommandRejected] = {}
        self._keys: dict[int, UUID] = {}  # of the records, by the message's sequence
        self._known: set[UUID] = set()
        self._absent: set[UUID] = set()
        self.at: int | None = None  # which message is being decided

    async def decide(
        self,
        batch: Sequence[Received],
        position_name: Callable[[int], str],
        bury: Callable[..., Any],
        put_off: Callable[..., Any],
    ) -> list[Decision | None]:
        """Decide and commit all; None for what was put off. Raises `Conflict` with nothing committed when a position
        was lost.
        """
        await self._look_up(batch)
        async with AsyncExitStack() as stack:
            decisions: list[Decision | None] = []
            for self.at, received in enumerate(batch):
                if received.dead and received.refusal is not None:
                    await bury(received, received.refusal)
                decisions.append(await self._decide_unless_unknown(received, stack))
            self.at = None
            later = [each for each, decision in zip(batch, decisions, strict=True) if decision is None]
            if later:
                await put_off(later, others=len(later) < len(batch))
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
                fences=fences(self._held, reached),
            )
            crash_points.reach("inbox_after_commit")
        return decisions

    async def _look_up(self, batch: Sequence[Received]) -> None:
        """Which records and aggregates there are, in one read. What this worker's inbox does not make, nobody makes."""
        for each in batch:
            if each.command_id is not None:
                self._keys[each.sequence] = record_id(each.subject.project, each.command_id)
        records = set(self._keys.values())
        named = {r.wish.aggregate_id for r in batch if r.wish is not None}
        cold = {aggregate_id for aggregate_id in named if aggregate_id not in self._hot}
        self._known = await self._store.existing(records | cold)
        self._absent = cold - self._known

    async def _decide_unless_unknown(self, received: Received, stack: AsyncExitStack) -> Decision | None:
        try:
            return await self._decide(received, stack)
        except UnknownEventError:
            if received.put_off >= MOST_PUT_OFF:
                raise  # nobody who knows more has come: it is refused, and kept as a dead letter
            return None

    async def _decide(self, received: Received, stack: AsyncExitStack) -> Decision:
        if received.command_id is None:
            return unrecorded(received, received.refusal or Refusal("malformed", "the message is no command"))
        key = self._keys[received.sequence]
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
        if received.refusal is not None or received.wish is None:
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
            with _breaking():
                turn.aggregate = AGGREGATES[kind].create(aggregate_id, command, context)
            return int(turn.aggregate.version)
        if turn.aggregate.kind != kind:
            raise missing
        _check_version(turn.aggregate, envelope.expected_version)
        with _breaking():
            turn.aggregate.execute(command, context)
        return int(turn.aggregate.version)

    async def _turn(self, aggregate_id: UUID, stack: AsyncExitStack) -> Turn:
        turn = self._turns.get(aggregate_id)
        if turn is None:
            turn = self._turns[aggregate_id] = await stack.enter_async_context(
                self._hot.turn(aggregate_id, absent=aggregate_id in self._absent)
            )
        return turn


class DecisionBrokeError(Exception):
    """A decision ended by what is no refusal: a defect, which is the cause of this."""


@contextmanager
def _breaking() -> Iterator[None]:
    """A decision is pure: whatever it raises but a refusal is a defect, and never the broker's or the store's doing."""
    try:
        yield
    except Refusal:
        raise
    except Exception as defect:
        raise DecisionBrokeError from defect


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


def unrecorded(received: Received, refusal: Refusal) -> Decision:
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
