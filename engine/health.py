"""Health from heartbeats: beats are counted in memory, only changes of health become events.

Receive time decides, never a guest's clock. Nobody is marked down because this process was away: silence counts from
when it began to listen, and begins anew after a lost broker or a stall of its own. It says DOWN for what it cannot
hear; why it is silent is for others to find out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from uuid import UUID

import msgspec
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from aggregates.base import Event
from aggregates.health import Health, HealthStatus, health_id
from aggregates.instance import Instance
from engine.clock import Now, monotonic, utc_now
from engine.hot import HotAggregates
from engine.mapper import UnknownEventError
from engine.messages import GuestStatus, Heartbeat, heartbeat_subject
from engine.partitions import Listener, Ownership, Sole, range_of_aggregate
from engine.store import Conflict, EventStore

log = structlog.get_logger(__name__)

TICK = 1.0
STALL = 3.0  # seconds a tick may be late before silence is our own fault
SUSPECT_AFTER = 3  # beats missed
DOWN_AFTER = 10
LEAST_INTERVAL = 1.0
LOOK_AGAIN = 60.0  # seconds after which an instance whose history cannot be read is looked at again
LEFT_ALONE = 600.0  # seconds that one is not looked at which a newer version has written to

# While an operation runs or the server is off, silence is expected.
EXPECTED = frozenset({"ACTIVE", "ERROR"})


class _Heard:
    """The last beat of an instance, and what its health was last recorded as."""

    __slots__ = ("at", "beat", "look_after", "recorded")

    def __init__(self, at: float, beat: Heartbeat | None, recorded: HealthStatus) -> None:
        self.look_after = 0.0
        self.at = at
        self.beat = beat
        self.recorded = recorded


class HealthMonitor(Listener):
    """Listens to all agents, and records changes of health of the instances that this worker owns."""

    def __init__(
        self,
        client: Client,
        store: EventStore,
        hot: HotAggregates,
        now: Now = utc_now,
        ownership: Ownership | None = None,
    ) -> None:
        self._ownership = ownership or Sole()
        self._gained: set[str] = set()
        self._client = client
        self._store = store
        self._hot = hot
        self._now = now
        self._decode = msgspec.json.Decoder(Heartbeat).decode
        self._heard: dict[UUID, _Heard] = {}
        self._gone: set[UUID] = set()
        self._listening_since = monotonic()
        store.listen(self._on_commit)

    async def run(self) -> None:
        """Listen and record until cancelled."""
        self._ownership.listen(self)
        await self._take_up()
        self._listening_since = monotonic()
        subscription = await self._client.subscribe(heartbeat_subject("*"), cb=self._on_beat)
        last = monotonic()
        try:
            while True:
                await asyncio.sleep(TICK)
                moment = monotonic()
                if moment - last > TICK + STALL or not self._client.is_connected:
                    self._listening_since = moment
                last = moment
                if self._gained:
                    await self._take_up()
                await self._look(moment)
        finally:
            if self._client.is_connected:
                await subscription.unsubscribe()

    def gained(self, ranges: Collection[str]) -> None:
        """Take up what was recorded about them."""
        self._gained.update(ranges)

    def lost(self, ranges: Collection[str]) -> None:
        """Record nothing more about them; they are listened to all the same, for when they come back."""
        self._gained.difference_update(ranges)

    async def _take_up(self) -> None:
        """Those whose health was watched before: their silence must be noticed even if they never beat again."""
        gained, self._gained = self._gained, set()
        for health in await self._store.watched():
            if range_of_aggregate(health.instance_id) not in gained:
                continue
            heard = self._heard.setdefault(health.instance_id, _Heard(monotonic(), None, health.health))
            heard.recorded = health.health

    async def _on_beat(self, message: Msg) -> None:
        try:
            beat = self._decode(message.data)
        except msgspec.DecodeError:
            log.warning("heartbeat_malformed", subject=message.subject, size=len(message.data))
            return
        if not message.subject.endswith(str(beat.instance_id)) or beat.instance_id in self._gone:
            return
        heard = self._heard.get(beat.instance_id)
        if heard is None:
            self._heard[beat.instance_id] = _Heard(monotonic(), beat, HealthStatus.UNKNOWN)
        else:
            heard.at, heard.beat = monotonic(), beat

    def _on_commit(self, events: Sequence[Event]) -> None:
        for event in events:
            if getattr(event, "state", None) == "DELETED":
                self._gone.add(event.originator_id)

    async def _look(self, moment: float) -> None:
        for instance_id, heard in list(self._heard.items()):
            if not self._ownership.serves(range_of_aggregate(instance_id)):
                continue
            try:
                await self._look_at(instance_id, heard, moment)
            except UnknownEventError:
                heard.look_after = moment + LEFT_ALONE
            except Exception:
                # One whose history cannot be read must not hide the health of all others.
                log.exception("health_unknown", instance_id=str(instance_id), retry_in=LOOK_AGAIN)
                heard.look_after = moment + LOOK_AGAIN

    async def _look_at(self, instance_id: UUID, heard: _Heard, moment: float) -> None:
        if moment < heard.look_after:
            return
        if instance_id in self._gone:
            await self._forget(instance_id)
            del self._heard[instance_id]
            return
        health, reason = self._judge(heard, moment)
        if health is not heard.recorded:
            await self._record(instance_id, heard, health, reason)

    def _judge(self, heard: _Heard, moment: float) -> tuple[HealthStatus, str]:
        interval = max(heard.beat.interval if heard.beat is not None else 2 * LEAST_INTERVAL, LEAST_INTERVAL)
        silence = moment - max(heard.at, self._listening_since)
        if silence > SUSPECT_AFTER * interval:
            down = silence > DOWN_AFTER * interval or heard.recorded is HealthStatus.DOWN
            return HealthStatus.DOWN if down else HealthStatus.SUSPECT, f"no heartbeat for {silence:.0f} s"
        if heard.beat is None:
            return heard.recorded, ""
        if heard.beat.status is GuestStatus.HEALTHY:
            return HealthStatus.HEALTHY, "the guest agent reports HEALTHY"
        known = heard.recorded is not HealthStatus.UNKNOWN
        return HealthStatus.SUSPECT if known else HealthStatus.UNKNOWN, f"the guest agent reports {heard.beat.status}"

    async def _record(self, instance_id: UUID, heard: _Heard, health: HealthStatus, reason: str) -> None:
        async with self._hot.turn(instance_id) as turn:
            instance = turn.aggregate
        if not isinstance(instance, Instance) or instance.state == "DELETED":
            self._gone.add(instance_id)
            return
        if health is not HealthStatus.HEALTHY and instance.status not in EXPECTED:
            return
        now = self._now()
        try:
            async with self._hot.turn(health_id(instance_id)) as turn:
                if turn.aggregate is None:
                    turn.aggregate = Health.watch(
                        instance_id, project=instance.project, partition=instance.partition, at=now
                    )
                turn.aggregate.observe(health, reason, at=now)
                await self._hot.commit(turn)
        except Conflict:
            return  # another worker recorded it first; the next look sees what it is now
        heard.recorded = health
        log.info("health_changed", instance_id=str(instance_id), health=str(health), reason=reason)

    async def _forget(self, instance_id: UUID) -> None:
        try:
            async with self._hot.turn(health_id(instance_id)) as turn:
                if isinstance(turn.aggregate, Health):
                    turn.aggregate.forget(at=self._now())
                    await self._hot.commit(turn)
        except Conflict:
            return  # another worker owns it now, and will find that the instance is gone
