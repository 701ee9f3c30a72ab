"""The core of the engine around a simulated cloud in virtual time: store, hot aggregates, settler, adapter and guests.

Commands are decided without broker and inbox, and commands to other aggregates count as decided; the rest is as in a
worker. So a whole life of an instance takes some hundredths of a second.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from aggregates.catalogue import Catalogue
from aggregates.commands import CreateInstance, InstanceCommand
from aggregates.effects import CloudEffect, Effect, GuestEffect
from aggregates.instance import Instance
from aggregates.obligations import admitted
from aggregates.resources import ResourceKind
from engine.clock import monotonic
from engine.clouds.simulated import CATALOGUE, SimulatedCloud, SimulatedGuests
from engine.clouds.simulated.site import Site
from engine.hot import HotAggregates
from engine.settler import Settler
from engine.store import EventStore, open_store
from engine.tasks import end
from tests.support.given import NOON, context


class Core:
    """One instance in one engine, which can die and be started anew."""

    def __init__(self, site: Site, directory: Path, instance_id: UUID, *, settler: type[Settler] = Settler) -> None:
        self._url = f"sqlite://{directory}/events.db"
        self._site = site
        self._instance_id = instance_id
        self._settler = settler
        self._up = asyncio.Lock()  # held by whoever uses the engine, and while it is down
        self._store: EventStore
        self._hot: HotAggregates
        self._running: asyncio.Task[None]
        self.cloud: SimulatedCloud
        self.paid: dict[str, Effect] = {}  # or tried to, by key

    async def start(self) -> None:
        """A process that knows nothing but the store."""
        self._store = open_store(self._url)
        self._store.start()
        self._hot = HotAggregates(self._store)
        self.cloud = SimulatedCloud(api=self._site.api)
        self._guests = SimulatedGuests(agents=self._site.agents)
        settler = self._settler(
            self._store,
            self._hot,
            self._pay,
            latest_effect=self.cloud.latest_effect,
            now=self.now,
            jitter=lambda: 0.5,
        )
        self._running = asyncio.create_task(settler.run())

    async def stop(self) -> None:
        """Let go of everything; calls under way are the cloud's own."""
        await end(self._running)
        await self.cloud.close()
        await self._store.close()

    async def dies_after(self, moment: asyncio.Event, seconds: float, away: float = 0.0) -> None:
        """Have it end so long after the moment, and another one go on in its place when that has been `away`."""
        await moment.wait()
        await asyncio.sleep(seconds)
        async with self._up:
            await self.stop()
            await asyncio.sleep(away)
            await self.start()

    def now(self) -> datetime:
        """The wall clock, which goes with the loop."""
        return NOON + timedelta(seconds=monotonic())

    async def settled(
        self, command: InstanceCommand, within: float | None = None, catalogue: Catalogue = CATALOGUE
    ) -> Instance:
        """The instance once the operation of the command, to be done in so many seconds, has ended or is parked."""
        async with self._up, self._hot.turn(self._instance_id) as turn:
            deadline = None if within is None else self.now() + timedelta(seconds=within)
            asked = context(at=self.now(), catalogue=catalogue, deadline=deadline)
            if isinstance(command, CreateInstance):
                turn.aggregate = Instance.create(self._instance_id, command, asked)
            else:
                turn.aggregate.execute(command, asked)
            await self._hot.commit(turn)
        while True:
            async with self._up, self._hot.turn(self._instance_id) as turn:
                instance: Instance = turn.aggregate
            if instance.owes() is None or instance.parked is not None:
                return instance
            await asyncio.sleep(1.0)

    async def names(self) -> list[str]:
        """The names of the instance's events."""
        return [type(event).__name__ for event in await self._store.events_of(self._instance_id)]

    async def _pay(self, effect: Effect, key: str) -> Mapping[str, Any]:
        self.paid[key] = effect
        if isinstance(effect, CloudEffect):
            return await self.cloud.pay(effect, key)
        if isinstance(effect, GuestEffect):
            return await self._guests.pay(effect, key)
        return {}

    async def there(self, instance: Instance) -> dict[str, Any]:
        """What the cloud holds, in the words of `says`. An instance in ERROR does not say whether its server is up."""
        inventory = await self.cloud.contents()
        return {
            "server groups": list(inventory["server_groups"]),
            "security groups": [
                (each["id"], sorted(rule["cidr"] for rule in each["rules"]))
                for each in inventory["security_groups"].values()
            ],
            "ports": {each["id"]: list(each["security_groups"]) for each in inventory["ports"].values()},
            "addresses": [(each["id"], each["port_id"]) for each in inventory["floating_addresses"].values()],
            "volumes": [(each["id"], each["size"]) for each in inventory["volumes"].values()],
            "snapshots": list(inventory["snapshots"]),
            "servers": [
                (
                    each["id"],
                    instance.status if instance.status == "ERROR" else each["status"],
                    each["flavor_id"],
                    each["host"],
                )
                for each in inventory["servers"].values()
            ],
        }


def says(instance: Instance) -> dict[str, Any]:
    """What the cloud holds according to the instance, which is settled."""
    if instance.status in ("DELETED", "FAILED"):
        return {
            "server groups": [],
            "security groups": [],
            "ports": {},
            "addresses": [],
            "volumes": [],
            "snapshots": [],
            "servers": [],
        }
    guarded, public = instance.access is not None, instance.public_address is not None
    groups = [instance.security_group_id] if guarded else []
    return {
        "server groups": [] if instance.locality is None else [instance.server_group_id],
        "security groups": [(group, sorted(admitted(instance.access))) for group in groups],
        "ports": {instance.port_id: groups}
        | ({} if instance.management_port_id is None else {instance.management_port_id: []}),
        "addresses": [(instance.floating_address_id, instance.port_id)] if public else [],
        "volumes": [(instance.volume_id, instance.volume_size)],
        "snapshots": [each for each in (instance.held(ResourceKind.SNAPSHOT),) if each is not None],
        "servers": [(instance.server_id, instance.status, instance.flavor.id, instance.host)],
    }


@contextmanager
def directory() -> Iterator[Path]:
    """Somewhere in memory if there is such a place: durability is shown elsewhere."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="holdfast-", dir=shared if shared.is_dir() else None) as made:
        yield Path(made)


async def life(
    site: Site,
    commands: tuple[InstanceCommand, ...],
    path: Path,
    *,
    begins: Callable[[InstanceCommand], None],
    patience: float = 0.0,
    may_fail: bool = False,
    dies: asyncio.Event | None = None,
    made_on: Catalogue = CATALOGUE,
) -> Instance:
    """Have the commands settled one after the other; after each, and `patience` seconds later, the cloud must hold what
    the instance says. `begins` is told of each. An operation that fails, if it may, ends the life. The engine dies
    a moment after the event. Yields the instance as it is at the end.
    """
    core = Core(site, path, UUID(int=7))
    await core.start()
    dying = asyncio.create_task(core.dies_after(dies or asyncio.Event(), 0.5))
    try:
        for command in commands:
            begins(command)
            instance = await core.settled(command, catalogue=made_on if command.creates else CATALOGUE)
            name = command.wire_name()
            assert instance.parked is None, (name, instance.parked)
            # A deletion gives up on stopping the database after one short try, and goes on.
            failed = instance.failure is not None and instance.status != "DELETED"
            assert may_fail or not failed, (name, instance.failure)
            wanted = says(instance)
            assert await core.there(instance) == wanted, name
            await asyncio.sleep(patience)
            assert await core.there(instance) == wanted, f"a while after {name}"
            if failed:
                break
    finally:
        await end(dying)
        await core.stop()
    return instance
