"""Ownership: which of several workers decides, pays and watches what. A range of partitions belongs to one at a time.

A worker acts only as long as its own lease stands by its own clock, and whoever dies is followed within seconds. What
keeps a worker that was paused from writing is not the lease but the epoch, which each takeover raises in the event
store; two workers may differ for a moment over who lives, never over who may write.

A worker holds one lease, a key in a NATS KV bucket that lives as long as it is renewed; which ranges it owns stands in
the event store. The calls used of nats-py: `key_value`, `create_key_value`, `KeyValue.create`, `get` and `update`,
`stream_info` with a filter of subjects, `purge_stream` with a subject.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from uuid import UUID, uuid4

import msgspec
import nats.errors
import nats.js.errors
import structlog
from eventsourcing.persistence import PersistenceError
from nats.aio.client import Client
from nats.js.api import KeyValueConfig, StorageType
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue

from engine.broker import COMMAND_STREAM, partition_of
from engine.clock import Now, monotonic, utc_now
from engine.clouds.traffic import Counts
from engine.databases import StoreUnavailableError
from engine.messages import PARTITIONS
from engine.recorders import Fence, RangeRow
from engine.store import EventStore, LostOwnership
from engine.tasks import end, run_together

log = structlog.get_logger(__name__)

WIDTH = 4  # partitions of one range: what changes hands at once
OUTBOX = "outbox"
RANGES = (*(str(number) for number in range(PARTITIONS // WIDTH)), OUTBOX)

BUCKET = "HOLDFAST_WORKERS"
TTL = 3.0  # seconds that a lease lives unless it is renewed
RENEW = 1.0
LOOK = 0.5  # seconds between two looks at who lives and who owns what
CALL = 1.0  # seconds for one call to the broker
HANDOVER = 10.0  # seconds that a range is kept for an effect that cannot be given up

Held = Mapping[str, Fence | None]


def range_of(partition: int) -> str:
    """The range in which a partition lies."""
    return str(partition // WIDTH)


@lru_cache(maxsize=65536)
def range_of_aggregate(aggregate_id: UUID) -> str:
    """The range in which the commands for an aggregate lie."""
    return range_of(partition_of(str(aggregate_id)))


def fences(held: Held, partitions: Iterable[int]) -> list[Fence]:
    """The fences under which to write about the partitions. Raises `LostOwnership` when one of them is not held."""
    return fences_of(held, {range_of(partition) for partition in partitions})


def fences_of(held: Held, ranges: Iterable[str]) -> list[Fence]:
    """The fences of the ranges. Raises `LostOwnership` when one of them is not held."""
    try:
        found = [held[name] for name in ranges]
    except KeyError as missing:
        raise LostOwnership(f"range {missing.args[0]} is not this worker's") from None
    return [fence for fence in found if fence is not None]


class Listener:
    """Whoever works on ranges, and is told by their names when they change hands."""

    def gained(self, ranges: Collection[str]) -> None:
        """They are this worker's from now on: look at what there is."""

    async def leave(self, ranges: Collection[str]) -> None:
        """They will be another's: begin nothing there, and return when what cannot be given up has ended."""

    def lost(self, ranges: Collection[str]) -> None:
        """They are not this worker's any more: stop at once, and forget what was known."""


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A worker as it presents itself.

    `ranges`: what it owns, of the 16 ranges of partitions and the outbox. `running`: operations it works on. `cloud`:
    how each service of the cloud has answered it since it began.
    """

    id: str
    host: str
    pid: int
    since: datetime
    ranges: tuple[str, ...] = ()
    running: int = 0
    cloud: Mapping[str, Counts] = {}


class Ownership:
    """What is owned now. `held` is replaced and never changed: whoever keeps it knows what was held at that time.

    `running` says how many operations this worker works on, `traffic` how the cloud's services answer it, for whoever
    asks who does what.
    """

    def __init__(self, worker_id: str, held: Held, now: Now) -> None:
        self.id = worker_id
        self.held: Held = MappingProxyType(dict(held))
        self.running: Callable[[], int] = lambda: 0
        self.traffic: Callable[[], Mapping[str, Counts]] = dict
        self._present = Member(id=worker_id, host=os.uname().nodename, pid=os.getpid(), since=now())
        self._listeners: list[Listener] = []

    def present(self) -> Member:
        """This worker, as it is now."""
        return msgspec.structs.replace(
            self._present, ranges=tuple(_ordered(self.held)), running=self.running(), cloud=dict(self.traffic())
        )

    async def members(self) -> list[Member]:
        """Every worker that lives, as it presented itself last."""
        return [self.present()]

    def listen(self, listener: Listener) -> None:
        """Have it told of what changes hands, and at once of what is held."""
        self._listeners.append(listener)
        if self.held:
            listener.gained(frozenset(self.held))

    def holds(self, name: str) -> bool:
        """Whether the range is ours at this moment."""
        return name in self.held

    def serves(self, name: str) -> bool:
        """Whether something may be begun there: it is ours and is not being handed over."""
        return self.holds(name)

    def partitions(self) -> list[int]:
        """The partitions that are served."""
        return [partition for partition in range(PARTITIONS) if self.serves(range_of(partition))]

    def permit(self, name: str) -> Callable[[], None]:
        """What to ask before each call to the outside about the range. Raises `LostOwnership`."""

        def check() -> None:
            if not self.holds(name):
                raise LostOwnership(f"range {name} is not this worker's any more: nothing may be done there")

        return check

    async def run(self) -> None:
        """Keep what is held until cancelled."""
        await asyncio.Event().wait()

    async def release(self) -> None:
        """Let go of everything at once, for others to take."""


class Sole(Ownership):
    """One process owns everything, as on SQLite: nothing is asked of anybody, and no fence is needed."""

    def __init__(self, now: Now = utc_now) -> None:
        super().__init__(uuid4().hex, dict.fromkeys(RANGES), now)


class Leases(Ownership):
    """Ownership shared out among the workers of one store and one broker."""

    def __init__(self, client: Client, store: EventStore, now: Now = utc_now) -> None:
        # Named as its connections to the store are, so that whoever follows on it can cut it off there.
        super().__init__(store.session, {}, now)
        self._stream = client.jetstream(timeout=CALL)
        self._store = store
        self._owner = f"{self.id}@{_place()}"
        self._lease: _Lease | None = None
        self._leaving: frozenset[str] = frozenset()
        self._seen: set[str] = set()
        self._looking = asyncio.Event()
        self._handing_over: set[asyncio.Task[None]] = set()

    def holds(self, name: str) -> bool:
        """Whether the range is ours and the lease stands by our own clock."""
        return name in self.held and self._lease is not None and monotonic() < self._lease.until

    def serves(self, name: str) -> bool:
        """Whether something may be begun there."""
        return name not in self._leaving and self.holds(name)

    async def run(self) -> None:
        """Renew the lease, take what is wanted and free, and hand over what others should have, until cancelled."""
        try:
            await run_together(lease=self._keep_lease(), share=self._share())
        finally:
            await end(*self._handing_over)

    async def release(self) -> None:
        """Let go of everything at once; what cannot be told to the others they learn when the lease has run out."""
        held, lease, self._lease = list(self.held.values()), self._lease, None
        self._drop(self.held)
        try:
            async with asyncio.timeout(CALL):
                if held:
                    await self._store.release_ranges(self._owner, [fence for fence in held if fence is not None])
                if lease is not None:
                    # A deleted key would leave a mark under its name; a purged one is gone.
                    await self._stream.purge_stream(_STREAM, subject=f"{_SUBJECTS}.{self.id}")
        except (*_BROKER_AWAY, *_STORE_AWAY) as away:
            log.warning("ranges_not_released", error=repr(away))

    async def members(self) -> list[Member]:
        """Every worker that lives, as it presented itself last."""
        bucket = await self._stream.key_value(BUCKET)
        found = []
        for member_id in sorted(await self._living()):
            try:
                entry = await bucket.get(member_id)
            except KeyNotFoundError:
                continue
            if entry.value:
                found.append(msgspec.json.decode(entry.value, type=Member))
        return found

    # --- the lease ------------------------------------------------------------------------------------------------

    async def _keep_lease(self) -> None:
        while True:
            began = monotonic()
            try:
                await self._renew(began)
            except (KeyWrongLastSequenceError, KeyNotFoundError) as gone:
                log.warning("lease_gone", worker=self.id, error=str(gone))
                self._lose_all()
            except _BROKER_AWAY as away:
                log.warning("lease_not_renewed", worker=self.id, error=repr(away))
            until = None if self._lease is None else self._lease.until
            if until is not None and monotonic() >= until:
                self._lose_all()
            following = began + RENEW if until is None else min(began + RENEW, until)
            await asyncio.sleep(max(following - monotonic(), 0.05))

    async def _renew(self, began: float) -> None:
        """Renew the lease, or take a new one. By the bucket's revision: it fails when the key was gone in between."""
        content = msgspec.json.encode(self.present())
        lease = self._lease
        if lease is not None and began >= lease.until:
            self._lose_all()
            lease = None
        if lease is None:
            bucket = await self._bucket()
            revision = await self._create(bucket, content)
            self._lease = _Lease(bucket, revision, since=began, until=began + TTL)
            log.info("lease_taken", worker=self.id)
            self._looking.set()
            return
        try:
            lease.revision = await lease.bucket.update(self.id, content, last=lease.revision)
        except KeyWrongLastSequenceError:
            # A renewal whose answer we missed is no gap: nobody else writes this key.
            entry = await lease.bucket.get(self.id)
            if entry.revision is None or entry.revision <= lease.revision:
                raise
            lease.revision = await lease.bucket.update(self.id, content, last=entry.revision)
        if monotonic() >= lease.until:
            self._lose_all()  # it came too late: what has ended does not begin again, so that all learn of it
        else:
            lease.until = began + TTL

    async def _create(self, bucket: KeyValue, content: bytes) -> int:
        """The key anew, also over one of our own that we lost sight of."""
        try:
            return await bucket.create(self.id, content)
        except KeyWrongLastSequenceError:
            entry = await bucket.get(self.id)
            return await bucket.update(self.id, content, last=entry.revision)

    async def _bucket(self) -> KeyValue:
        """The bucket. In memory: whoever lives makes it anew, and nothing in it is worth more than its few seconds."""
        try:
            return await self._stream.key_value(BUCKET)
        except nats.js.errors.NotFoundError:
            commands = await self._stream.stream_info(COMMAND_STREAM)
            config = KeyValueConfig(
                bucket=BUCKET, ttl=TTL, storage=StorageType.MEMORY, replicas=commands.config.num_replicas or 1
            )
            return await self._stream.create_key_value(config)

    async def _living(self) -> set[str]:
        """The ids of the workers whose lease stands: one look at all keys at once."""
        info = await self._stream.stream_info(_STREAM, subjects_filter=f"{_SUBJECTS}.>")
        return {subject.rpartition(".")[2] for subject in info.state.subjects or {}}

    # --- sharing out ----------------------------------------------------------------------------------------------

    async def _share(self) -> None:
        while True:
            self._looking.clear()
            try:
                await self._look()
            except (*_BROKER_AWAY, *_STORE_AWAY) as away:
                log.warning("ranges_not_seen", worker=self.id, error=repr(away))
            try:
                async with asyncio.timeout(LOOK):
                    await self._looking.wait()
            except TimeoutError:
                continue

    async def _look(self) -> None:
        """Take what we should own and nobody does, hand over what another should."""
        lease = self._lease
        if lease is None:
            return
        # In this order: whoever took a range anew after its row was read has raised its epoch.
        rows = await self._store.ranges()
        living = await self._living()
        if lease is not self._lease or self.id not in living:
            return  # the view is not of the time in which our lease stood
        fenced = {name for name, fence in self.held.items() if fence and rows.get(name, _NOBODYS).epoch != fence.epoch}
        if fenced:
            log.warning("ranges_taken_from_us", worker=self.id, ranges=_ordered(fenced))
            self._drop(fenced)
        await self._cut_off(rows.values(), living, lease)
        wanted = share_out(living)
        ours = [name for name in RANGES if wanted[name] == self.id]
        await self._let_go_of_leftovers(rows, ours)
        await self._take({n: rows.get(n, _NOBODYS) for n in ours if n not in self.held}, living, lease)
        leaving = {name for name in self.held if wanted[name] != self.id} - self._leaving
        if leaving:
            self._leaving |= leaving
            task = asyncio.create_task(self._hand_over(leaving), name="hand-over")
            self._handing_over.add(task)
            task.add_done_callback(self._handing_over.discard)

    async def _let_go_of_leftovers(self, rows: Mapping[str, RangeRow], ours: Collection[str]) -> None:
        """What stands as ours from an earlier lease, and should be another's: nobody else can take it while we live."""
        left = [
            Fence(name, row.epoch)
            for name, row in rows.items()
            if row.owner == self._owner and name not in self.held and name not in ours
        ]
        if left:
            await self._store.release_ranges(self._owner, left)

    async def _cut_off(self, rows: Collection[RangeRow], living: set[str], lease: _Lease) -> None:
        """Whoever does not live any more may stand still inside a transaction, and would hold up everybody."""
        if monotonic() < lease.since + TTL:
            return
        owners = {_id_of(row.owner) for row in rows if row.owner is not None}
        gone = (owners | self._seen) - living
        self._seen = living
        if gone:
            await self._store.cut_off(gone)

    async def _take(self, rows: Mapping[str, RangeRow], living: set[str], lease: _Lease) -> None:
        free = {name: row.epoch for name, row in rows.items() if self._is_free(row, living, lease)}
        if not free:
            return
        taken = await self._store.take_ranges(self._owner, free)
        if self._lease is not lease or monotonic() >= lease.until:
            return  # it took too long: they stand as ours, and are taken again with the next lease
        gained = {fence.range: fence for fence in taken}
        if gained:
            self.held = MappingProxyType({**self.held, **gained})
            log.info("ranges_gained", worker=self.id, ranges=_ordered(gained))
            for listener in self._listeners:
                listener.gained(frozenset(gained))

    def _is_free(self, row: RangeRow, living: set[str], lease: _Lease) -> bool:
        """Whether nobody acts there.

        That a key is missing says that its worker's time has run out only if the bucket has kept what it was given for
        a whole life of a lease: so it has if our own lease is that old, since each renewal found the one before.
        """
        if row.owner is None or row.owner == self._owner:
            return True
        if _died(row.owner):
            return True
        return _id_of(row.owner) not in living and monotonic() >= lease.since + TTL

    async def _hand_over(self, ranges: Collection[str]) -> None:
        """Stop in order there, then let go."""
        try:
            async with asyncio.timeout(HANDOVER):
                await asyncio.gather(*(listener.leave(ranges) for listener in self._listeners))
        except TimeoutError:
            log.warning("handed_over_in_the_middle", worker=self.id, ranges=_ordered(ranges))
        except Exception:
            log.exception("not_left_in_order", worker=self.id, ranges=_ordered(ranges))
        let_go = [fence for name in ranges if (fence := self.held.get(name)) is not None]
        self._drop(ranges)
        try:
            await self._store.release_ranges(self._owner, let_go)
        except _STORE_AWAY as away:
            # They stand as ours until the next look, which lets go of them.
            log.warning("ranges_not_released", worker=self.id, error=repr(away))

    def _lose_all(self) -> None:
        self._lease = None
        self._drop(self.held)

    def _drop(self, ranges: Collection[str]) -> None:
        dropped = frozenset(ranges) & self.held.keys()
        self._leaving -= frozenset(ranges)
        if not dropped:
            return
        self.held = MappingProxyType({name: fence for name, fence in self.held.items() if name not in dropped})
        log.info("ranges_lost", worker=self.id, ranges=_ordered(dropped))
        for listener in self._listeners:
            listener.lost(dropped)


class _Lease:
    """Our key in the bucket: since when it stands without a gap, and until when at least, by our own clock."""

    __slots__ = ("bucket", "revision", "since", "until")

    def __init__(self, bucket: KeyValue, revision: int, *, since: float, until: float) -> None:
        self.bucket = bucket
        self.revision = revision
        self.since = since
        self.until = until


_STREAM = f"KV_{BUCKET}"
_SUBJECTS = f"$KV.{BUCKET}"
_NOBODYS = RangeRow()
_BROKER_AWAY = (nats.errors.Error, OSError, TimeoutError)
_STORE_AWAY = (PersistenceError, StoreUnavailableError)


def share_out(members: Collection[str]) -> dict[str, str]:
    """Who should own each range: the member that ranks highest for it, each owning as many as the others, or one more.

    All who see the same members come to the same answer, and few ranges move when one joins or leaves.
    """
    least, _ = divmod(len(RANGES), len(members))
    bids = sorted(((_rank(member, name), member, name) for member in members for name in RANGES), reverse=True)
    owner: dict[str, str] = {}
    for most in (least, 1):  # as many for each, then one more for whoever ranks highest for what is left
        room = dict.fromkeys(members, most)
        for _, member, name in bids:
            if name not in owner and room[member]:
                owner[name] = member
                room[member] -= 1
    return owner


def _rank(member: str, name: str) -> bytes:
    return hashlib.sha256(f"{member}/{name}".encode()).digest()


def _ordered(ranges: Iterable[str]) -> list[str]:
    return [name for name in RANGES if name in set(ranges)]


def _id_of(owner: str) -> str:
    return owner.partition("@")[0]


def _place() -> str:
    """This process, as another one on the same machine could look for it."""
    return f"{_machine()}@{os.getpid()}@{_started(os.getpid())}"


def _machine() -> str:
    """The machine since its last start, and the view that we have of its processes."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return uuid4().hex  # a place that nobody shares


def _started(pid: int) -> str | None:
    """When the process began, in ticks since the machine did; None when there is none that lives."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else fields[18]


def _died(owner: str) -> bool:
    """Whether we can see for ourselves that the worker's process has ended, so that its lease need not run out."""
    _, machine, pid, started = owner.split("@")
    return machine == _machine() and _started(int(pid)) != started
