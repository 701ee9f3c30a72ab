"""The inbox: every command of the partitions that it owns is decided in order, once, and leaves one record.

What was read and not committed is read again, from the recorded positions; a message that breaks whoever decides it is
given up after a bounded number of tries. It trusts no acknowledgement and no reply: publishers ask for the record.

A command to an aggregate that a newer version has written to is put off: it goes to the end of the stream, undecided,
for a worker that knows more. Behind it others go on; its order among commands of several publishers may change by that.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec
import nats.errors
import structlog
from eventsourcing.persistence import Tracking
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import APIError, NotFoundError

from aggregates.base import Refusal
from aggregates.catalogue import Catalogue
from engine import crash_points
from engine.broker import COMMAND_STREAM, STORED_COMMANDS
from engine.clock import Now, monotonic, utc_now
from engine.databases import StoreUnavailableError
from engine.dead_letters import letter, told
from engine.deciding import Batch, DecisionBrokeError, unrecorded
from engine.hot import HotAggregates
from engine.intake import Received, receive
from engine.mapper import UnknownEventError
from engine.messages import MSG_ID, PARTITIONS, REPLY_TO, TIMES_PUT_OFF, Decision, dead_letter_subject
from engine.partitions import Listener, Ownership, Sole, fences, range_of
from engine.reading import ConsumerLostError, Delivered, Reader
from engine.recorders import Fence
from engine.replies import Answerable
from engine.store import Conflict, EventStore
from engine.suspects import DEATHS, Suspects

log = structlog.get_logger(__name__)

BATCH = 256
PURGE_EVERY = 30.0
GRACE = 600.0  # seconds that decided messages stay in the stream, for people who look
FULL = 0.5  # of the stream's room, from where on they do not
TRIES = 3  # of a message that breaks the decider, the first one among others
PAUSE = 0.1  # seconds before it is tried again
WARY = 4 * BATCH  # messages after a start: the process before may have died of one of them
PUT_OFF = 1.0  # seconds before a command that was put off is put off again


class Inbox(Listener):
    """Reads the command stream of one broker into one store."""

    def __init__(
        self,
        client: Client,
        store: EventStore,
        hot: HotAggregates,
        catalogue: Callable[[], Catalogue],
        now: Now = utc_now,
        ownership: Ownership | None = None,
    ) -> None:
        self._client = client
        self._ownership = ownership or Sole()
        self._changed = asyncio.Event()
        self._reader: Reader | None = None
        self._stream: JetStreamContext = client.jetstream()
        self._store = store
        self._hot = hot
        self._catalogue = catalogue
        self._now = now
        self._may_answer = Answerable(client)
        self._incarnation = ""
        self._positions: dict[int, int] = {}
        self._decided: deque[tuple[float, int]] = deque()
        self._suspects = Suspects(store)
        self._wary = 0

    async def run(self) -> None:
        """Decide commands until cancelled; a lost broker or consumer is taken up again."""
        self._ownership.listen(self)
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

    def gained(self, ranges: Collection[str]) -> None:
        """Read them too."""
        del ranges
        self._change()

    async def leave(self, ranges: Collection[str]) -> None:
        """Read them no more. What is being decided is committed while they are still ours, or not at all."""
        del ranges
        self._change()

    def lost(self, ranges: Collection[str]) -> None:
        """Read them no more."""
        del ranges
        self._change()

    def _change(self) -> None:
        self._changed.set()
        if self._reader is not None:
            self._reader.wake()

    # --- reading --------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Read on from the recorded positions, until the consumer must be made anew."""
        self._changed.clear()
        owned = self._ownership.partitions()
        if not owned:
            await self._changed.wait()
            return
        await self._load_positions(owned)
        start = await self._first_undecided(owned)
        config = ConsumerConfig(
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=start,
            ack_policy=AckPolicy.NONE,
            **_filter(owned),
            inactive_threshold=60.0,
            mem_storage=True,
        )
        created = await self._stream.add_consumer(COMMAND_STREAM, config=config)
        log.info("inbox_reading", stream=COMMAND_STREAM, from_sequence=start, partitions=len(owned))
        async with Reader(self._client, COMMAND_STREAM, str(created.name)) as reader:
            self._reader = reader
            try:
                await self._read(reader)
            except ConsumerLostError as lost:
                log.warning("inbox_reads_anew", reason=str(lost))
            finally:
                self._reader = None

    async def _read(self, reader: Reader) -> None:
        """Decide what comes, as much at once as has come, until other partitions are to be read."""
        purged = monotonic()
        while not self._changed.is_set():
            messages = await reader.next(BATCH)
            if messages:
                await self._receive_batch(messages)
            if not messages or monotonic() - purged > PURGE_EVERY:
                purged = monotonic()
                if await self._made_anew():
                    return

    async def _made_anew(self) -> bool:
        """Whether the stream was. What was decided in it is removed after a while, or at once when it fills up."""
        info = await self._stream.stream_info(COMMAND_STREAM)
        if str(info.created) != self._incarnation:
            return True
        if 0 < (info.config.max_bytes or -1) * FULL <= info.state.bytes:
            log.warning("commands_fill_up", bytes=info.state.bytes, next="what is decided is removed without its grace")
            await self._purge_partitions()
        else:
            await self._purge()
        return False

    async def _load_positions(self, owned: Sequence[int]) -> None:
        """Where each partition stands. They belong to one making of the stream: one made anew is read from 1."""
        info = await self._stream.stream_info(COMMAND_STREAM)
        self._incarnation = str(info.created)
        self._decided.clear()
        names = {partition: self._position_name(partition) for partition in owned}
        found = await self._store.positions(list(names.values()))
        self._positions = {partition: found.get(name, 0) for partition, name in names.items()}
        self._wary = WARY

    async def _first_undecided(self, owned: Sequence[int]) -> int:
        """Where to begin to read: so far back as there is a message that is not decided.

        The position of a partition in which nothing came for long lies far back, and says nothing about the others.
        """
        least, most = min(self._positions.values()), max(self._positions.values())
        if most - least <= BATCH:
            return least + 1
        end_of_stream = (await self._stream.stream_info(COMMAND_STREAM)).state.last_seq
        return min(await asyncio.gather(*(self._next_in(p, end_of_stream + 1) for p in owned)))

    async def _next_in(self, partition: int, otherwise: int) -> int:
        subject = f"{STORED_COMMANDS}.{partition}.>"
        try:
            found = await self._stream.get_msg(
                COMMAND_STREAM, seq=self._positions[partition] + 1, subject=subject, next=True
            )
        except NotFoundError:
            return otherwise
        return found.seq or self._positions[partition] + 1

    def _position_name(self, partition: int) -> str:
        return f"commands/{self._incarnation}/{partition}"

    async def _purge(self) -> None:
        """Remove from the stream what was decided a while ago, of the partitions that are read here and no other."""
        moment = monotonic()
        behind = None
        while self._decided and self._decided[0][0] < moment - GRACE:
            behind = self._decided.popleft()[1]
        if behind is None:
            return
        if len(self._positions) == PARTITIONS:
            await self._stream.purge_stream(COMMAND_STREAM, seq=behind + 1)
        else:
            await self._purge_partitions(behind)

    async def _purge_partitions(self, behind: int | None = None) -> None:
        for partition, position in self._positions.items():
            end = position if behind is None else min(behind, position)
            await self._stream.purge_stream(COMMAND_STREAM, seq=end + 1, subject=f"{STORED_COMMANDS}.{partition}.>")

    # --- deciding -------------------------------------------------------------------------------------------------

    async def _receive_batch(self, messages: Sequence[Delivered]) -> None:
        received = [
            receive(m.sequence, m.subject, m.data, m.headers.get(REPLY_TO), _times_put_off(m.headers)) for m in messages
        ]
        fresh = [r for r in received if r.sequence > self._positions[r.partition]]
        if not fresh:
            return
        if not all(self._ownership.serves(range_of(r.partition)) for r in fresh):
            self._changed.set()  # none is left out: what follows on it is read anew, by whoever owns it
            return
        if self._wary > 0:
            self._wary -= len(fresh)
            await self._decide_warily(fresh)
        else:
            await self._decide_batch(fresh)

    async def _decide_warily(self, fresh: Sequence[Received]) -> None:
        """Decide what follows on the recorded positions: if a process died in it before, each message alone."""
        heads = {r.partition: r for r in reversed(fresh)}
        deaths = await self._suspects.deaths(self._incarnation, heads.values())
        if not any(deaths.values()):
            await self._suspects.try_(self._incarnation, heads.values(), deaths, self._fences(heads))
            await self._decide_batch(fresh)
            return
        log.warning("deciding_one_by_one", messages=len(fresh), reason="a process ended while it decided them")
        for each in fresh:
            died = await self._suspects.deaths(self._incarnation, [each])
            if died[each.partition] < DEATHS:
                await self._suspects.try_(self._incarnation, [each], died, self._fences(died))
            else:
                each.tries = died[each.partition]
                self._condemn(each, _DEADLY)
            await self._decide_batch([each])

    def _fences(self, partitions: Iterable[int]) -> list[Fence]:
        return fences(self._ownership.held, partitions)

    async def _decide_batch(self, fresh: Sequence[Received]) -> None:
        """Decide and commit. One that breaks the decider is tried again alone and refused, the batch is decided."""
        batch = Batch(self._store, self._hot, self._ownership, self._catalogue(), self._now)
        try:
            decisions = await batch.decide(fresh, self._position_name, self._bury, self._put_off)
        except (Conflict, StoreUnavailableError, nats.errors.Error, APIError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - a defect, kept in a dead letter
            if len(fresh) > 1:
                await self._decide_around(fresh, batch.at)
            else:
                await self._tried(fresh[0], error)
            return
        await self._committed(fresh, decisions)

    async def _decide_around(self, fresh: Sequence[Received], at: int | None) -> None:
        """Decide a batch in parts: what stands before and after the message that broke it, or, if none did, halves."""
        cuts = (len(fresh) // 2,) if at is None else (at, at + 1)
        for first, following in zip((0, *cuts), (*cuts, len(fresh)), strict=True):
            if first < following:
                await self._decide_batch(fresh[first:following])

    async def _tried(self, received: Received, error: Exception) -> None:
        """One message, alone, broke the decider: again after a while, or refused at last."""
        cause = error.__cause__ if isinstance(error, DecisionBrokeError) and error.__cause__ is not None else error
        if received.refusal is not None:
            await self._pass_over(received, cause)
            return
        received.tries += 1
        if received.tries < TRIES:
            await asyncio.sleep(PAUSE)
        else:
            received.traceback = told(cause, received.body)
            log.error(
                "decider_broke",
                subject=str(received.subject)[:200],
                sequence=received.sequence,
                tries=received.tries,
                traceback=received.traceback,
            )
            self._condemn(received, _internal(cause))
        await self._decide_batch([received])

    @staticmethod
    def _condemn(received: Received, refusal: Refusal) -> None:
        received.dead, received.refusal = True, refusal

    async def _pass_over(self, received: Received, error: BaseException) -> None:
        """Not even its refusal can be recorded: it becomes a dead letter without a record, and the inbox goes on."""
        received.traceback = told(error, received.body)
        log.error(
            "passed_over", subject=str(received.subject)[:200], sequence=received.sequence, traceback=received.traceback
        )
        refusal = Refusal("internal_error", "neither the command nor its refusal could be recorded because of a defect")
        await self._bury(received, refusal)
        await self._store.commit(
            [],
            positions=[Tracking(self._position_name(received.partition), received.sequence)],
            fences=self._fences([received.partition]),
        )
        await self._committed([received], [unrecorded(received, refusal)])

    async def _put_off(self, received: Sequence[Received], *, others: bool) -> None:
        """Publish them again, in order. Made again after a crash, the broker drops it; nothing is lost in between."""
        if not others and all(each.put_off for each in received):
            await asyncio.sleep(PUT_OFF)  # nothing else is to be done, and they come back at once
        for each in received:
            headers = {MSG_ID: f"{self._incarnation}:{each.sequence}:put-off", TIMES_PUT_OFF: str(each.put_off + 1)}
            if each.reply_to:
                headers[REPLY_TO] = each.reply_to
            await self._stream.publish(str(each.subject), each.body, headers=headers, timeout=10)

    async def _committed(self, fresh: Sequence[Received], decisions: Sequence[Decision | None]) -> None:
        for each in fresh:
            self._positions[each.partition] = max(self._positions[each.partition], each.sequence)
        self._decided.append((monotonic(), fresh[-1].sequence))
        for each, decision in zip(fresh, decisions, strict=True):
            if decision is None:
                continue
            if each.reply_to and self._may_answer(each.reply_to):
                crash_points.reach("inbox_before_reply")
                await self._client.publish(each.reply_to, msgspec.json.encode(decision))
            if each.refusal is not None and (each.refusal.code == "secret_in_clear" or (each.dead and not each.wish)):
                await self._erase(each)

    async def _erase(self, received: Received) -> None:
        """Overwrite a message that holds, or may hold, a secret in clear. Its record or dead letter stays."""
        try:
            await self._stream.delete_msg(COMMAND_STREAM, received.sequence)
        except APIError as error:
            log.info("not_erased", sequence=received.sequence, error=str(error))

    async def _bury(self, received: Received, refusal: Refusal) -> None:
        """Keep a message as a dead letter; made again after a crash, the broker drops it."""
        subject = received.subject
        await self._stream.publish(
            dead_letter_subject(subject.project, refusal.code),
            msgspec.json.encode(letter(received, refusal, self._now())),
            headers={"Nats-Msg-Id": f"{self._incarnation}:{received.sequence}"},
            timeout=10,
        )
        log.warning("dead_letter", code=refusal.code, subject=str(subject)[:200], sequence=received.sequence)


def _times_put_off(headers: Mapping[str, str]) -> int:
    given = headers.get(TIMES_PUT_OFF, "")
    return int(given) if given.isdecimal() else 0


def _filter(partitions: Sequence[int]) -> dict[str, Any]:
    """What a consumer is to deliver."""
    if len(partitions) == PARTITIONS:
        return {"filter_subject": f"{STORED_COMMANDS}.>"}
    return {"filter_subjects": [f"{STORED_COMMANDS}.{partition}.>" for partition in partitions]}


_DEADLY = Refusal(
    "internal_error", "the process ended each time it was deciding this command; the operator's log has the ends"
)


def _internal(error: BaseException) -> Refusal:
    if isinstance(error, UnknownEventError):
        return Refusal("unknown_event", str(error))
    return Refusal("internal_error", "the command could not be decided because of a defect; the operator's log has it")
