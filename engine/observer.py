"""The observer: looks now and then at all that the cloud holds, removes what is surplus, and notes what was changed.

What no fence and no later look of an operation has caught is found here: a call carried out after everybody had
reckoned with it. It is level-triggered: each look compares what there is with what the log says, so whatever dies in
between, the next look goes on. It removes only what bears the exact name of an instance in this log and can never be
recorded as that instance's own, so a second observer, or one that wakes up late, removes nothing else either.

What an instance has and somebody else has changed or lost is noted on it, and nothing is done about it. Lists may be
old, so only what two looks in a row agree about counts.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any
from uuid import UUID

import structlog

from aggregates import observation
from aggregates.base import Event
from aggregates.effects import Effect, ResourceAbsent
from aggregates.instance import Instance
from aggregates.instance_events import InstanceRequested
from aggregates.observation import Look
from aggregates.resources import Resource
from engine import crash_points
from engine.clock import Now, utc_now
from engine.clouds.port import Cloud, PayError, permit
from engine.hot import HotAggregates
from engine.mapper import UnknownEventError
from engine.partitions import Listener, Ownership, Sole, range_of_aggregate
from engine.store import Conflict, EventStore

log = structlog.get_logger(__name__)

Pay = Callable[[Effect, str], Awaitable[Mapping[str, Any]]]

OBSERVE_EVERY = 60.0  # seconds between two looks
REMOVED_WITHIN = 120.0  # seconds for one removal; what takes longer is taken up again by the next look
AT_ONCE = 100  # instances that are compared before others get their turn on the loop


class Observer(Listener):
    """Looks `every` so many seconds, more or less, after the instances that this worker owns.

    `pay` makes effects true. `jitter` spreads the looks of several workers: a number from 0 to 1 each time.
    """

    def __init__(
        self,
        store: EventStore,
        hot: HotAggregates,
        cloud: Cloud,
        pay: Pay,
        *,
        every: float = OBSERVE_EVERY,
        ownership: Ownership | None = None,
        now: Now = utc_now,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._hot = hot
        self._cloud = cloud
        self._pay = pay
        self._every = every
        self._ownership = ownership or Sole()
        self._now = now
        self._jitter = jitter
        self._gained: set[str] = set()
        self._living: set[UUID] = set()  # those that are not deleted, of which the cloud need not show anything
        self._unfinished: set[UUID] = set()  # those with surplus on record, which the cloud need not show any more
        self._before: dict[UUID, Look] = {}  # what the last look has shown, where not all was as believed
        self._agreed: dict[UUID, int] = {}  # what was seen, and needs no second comparison while nothing changes
        self._lies: dict[UUID, str | None] = {}  # in which region, of those that were compared
        store.listen(self._on_commit)

    async def run(self) -> None:
        """Look until cancelled."""
        self._ownership.listen(self)
        while True:
            await asyncio.sleep(self._every * (0.8 + 0.4 * self._jitter()))
            try:
                await self.look()
            except PayError as error:
                log.warning("cloud_not_observed", error=str(error), retry_in=self._every)
            except Exception:
                # A defect in looking must not end the work that goes on without it.
                log.exception("observer_broke", retry_in=self._every)

    def gained(self, ranges: Collection[str]) -> None:
        """Take up what was found there."""
        self._gained.update(ranges)

    def lost(self, ranges: Collection[str]) -> None:
        """Forget what was seen there: others act on it from now on."""
        self._gained.difference_update(ranges)
        for known in (self._before, self._agreed, self._lies):
            for instance_id in [each for each in known if range_of_aggregate(each) in ranges]:
                del known[instance_id]
        self._living = {each for each in self._living if range_of_aggregate(each) not in ranges}
        self._unfinished = {each for each in self._unfinished if range_of_aggregate(each) not in ranges}

    def _on_commit(self, events: Sequence[Event]) -> None:
        for event in events:
            self._agreed.pop(event.originator_id, None)
            if isinstance(event, InstanceRequested):
                self._living.add(event.originator_id)
            elif getattr(event, "state", None) == "DELETED":
                self._living.discard(event.originator_id)

    async def look(self) -> None:
        """Look once. Raises `PayError` when the cloud does not say what it holds."""
        gained, self._gained = self._gained, set()
        if gained:
            for known, found in (
                (self._unfinished, await self._store.with_surplus()),
                (self._living, await self._store.living()),
            ):
                known |= {each for each in found if range_of_aggregate(each) in gained}
        seen: dict[UUID, list[Resource]] = defaultdict(list)
        inventory = await self._cloud.inventory()
        for resource in inventory.resources:
            if resource.instance_id is not None:
                seen[resource.instance_id].append(resource)
        for region, why in inventory.silent.items():
            log.warning("region_not_observed", region=region, error=why, retry_in=self._every)
        surplus = await self._compare(seen, inventory.regions)
        await asyncio.gather(*(self._clear_away(instance_id, found) for instance_id, found in surplus.items()))

    async def _compare(
        self, seen: Mapping[UUID, Sequence[Resource]], regions: Collection[str | None]
    ) -> dict[UUID, tuple[Resource, ...]]:
        """The surplus on record of each of our instances, that of this look included.

        Of one in a region that has not said what it holds nothing is known: what is missing is not gone.
        """
        surplus = {}
        for number, instance_id in enumerate(await self._ours(seen)):
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
            if instance_id in self._lies and self._lies[instance_id] not in regions:
                continue
            try:
                found = await self._look_at(instance_id, seen.get(instance_id, ()), regions)
            except (Conflict, UnknownEventError):
                continue  # others own it, or can read it
            except Exception:
                # One whose history cannot be read must not hide what there is of all others.
                log.exception("instance_not_observed", instance_id=str(instance_id))
                continue
            if found:
                surplus[instance_id] = found
        return surplus

    async def _ours(self, seen: Mapping[UUID, Sequence[Resource]]) -> list[UUID]:
        """Those to compare: of this log, in our ranges, and not as they were when all agreed."""
        concerned = seen.keys() | self._living | self._unfinished | self._before.keys()
        self._agreed = {each: agreed for each, agreed in self._agreed.items() if each in concerned}
        self._lies = {each: region for each, region in self._lies.items() if each in concerned}
        wanted = {
            instance_id
            for instance_id in concerned
            if self._ownership.serves(range_of_aggregate(instance_id))
            and self._agreed.get(instance_id) != _view(seen.get(instance_id, ()))
        }
        strangers = {each for each in wanted - self._living if each not in self._hot}
        return sorted(wanted - strangers | (await self._store.existing(strangers) if strangers else set()))

    async def _look_at(
        self, instance_id: UUID, seen: Sequence[Resource], regions: Collection[str | None]
    ) -> tuple[Resource, ...]:
        async with self._hot.turn(instance_id) as turn:
            instance = turn.aggregate
            if not isinstance(instance, Instance):
                return ()
            self._lies[instance_id] = instance.region
            if instance.region not in regions:
                return ()
            self._agreed.pop(instance_id, None)
            before, now = self._before.pop(instance_id, None), observation.look(instance, seen)
            if now is not None:
                observation.note(instance, before, now, at=self._now())
                await self._hot.commit(turn)
                if not now.agrees or instance.drift:
                    self._before[instance_id] = now
                elif not instance.surplus:
                    self._agreed[instance_id] = _view(seen)
            if instance.surplus:
                self._unfinished.add(instance_id)
            else:
                self._unfinished.discard(instance_id)
            surplus: tuple[Resource, ...] = instance.surplus
            return surplus

    # --- removing -------------------------------------------------------------------------------------------------

    async def _clear_away(self, instance_id: UUID, surplus: Sequence[Resource]) -> None:
        """One after the other, since a server has the others."""
        permit.set(self._ownership.permit(range_of_aggregate(instance_id)))
        for resource in surplus:
            crash_points.reach("surplus_found", resource.kind)
            try:
                async with asyncio.timeout(REMOVED_WITHIN):
                    await self._pay(_absent(instance_id, resource), f"{instance_id}:{resource.id}:ResourceAbsent")
                crash_points.reach("surplus_removed", resource.kind)
                async with self._hot.turn(instance_id) as turn:
                    observation.note_removed(turn.aggregate, resource, at=self._now())
                    await self._hot.commit(turn)
            except Conflict:
                return  # the range is not ours any more: its owner looks, too
            except (PayError, TimeoutError) as error:
                log.warning(
                    "surplus_not_removed",
                    instance_id=str(instance_id),
                    resource=str(resource),
                    error=str(error) or f"it was not gone within {REMOVED_WITHIN:.0f} s",
                    retry_in=self._every,
                )
                return
            except Exception:
                log.exception("surplus_not_removed", instance_id=str(instance_id), resource=str(resource))
                return
            log.info("surplus_removed", instance_id=str(instance_id), resource=str(resource))


def _absent(instance_id: UUID, resource: Resource) -> ResourceAbsent:
    return ResourceAbsent(
        instance_id=instance_id,
        region=resource.region,
        kind=resource.kind,
        name=resource.name,
        resource_id=resource.id,
    )


def _view(seen: Sequence[Resource]) -> int:
    """What tells one view from another."""
    return hash(frozenset(seen))
