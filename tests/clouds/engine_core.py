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

from aggregates.commands import CreateInstance, InstanceCommand
from aggregates.effects import CloudEffect, Effect, GuestEffect
from aggregates.instance import Instance
from engine.clock import monotonic
from engine.clouds.simulated import CATALOGUE, SimulatedCloud, SimulatedGuests
from engine.clouds.simulated.site import Site
from engine.hot import HotAggregates
from engine.settler import Settler
from engine.store import EventStore, open_store
from engine.tasks import end
from tests.support.given import NOON, context


class Core:
    """One instance in one engine."""

    def __init__(self, site: Site, store: EventStore, instance_id: UUID) -> None:
        self.site = site
        self.instance_id = instance_id
        self.cloud = SimulatedCloud(api=site.api)
        self._guests = SimulatedGuests(agents=site.agents)
        self._hot = HotAggregates(store)
        self._settler = Settler(
            store,
            self._hot,
            self._pay,
            latest_effect=self.cloud.latest_effect,
            now=self.now,
            jitter=lambda: 0.5,
        )

    def now(self) -> datetime:
        """The wall clock, which goes with the loop."""
        return NOON + timedelta(seconds=monotonic())

    async def run(self) -> None:
        """Settle, until cancelled."""
        await self._settler.run()

    async def settled(self, command: InstanceCommand) -> Instance:
        """The instance once the operation of the command has ended, or is parked."""
        async with self._hot.turn(self.instance_id) as turn:
            asked = context(at=self.now(), catalogue=CATALOGUE)
            if isinstance(command, CreateInstance):
                turn.aggregate = Instance.create(self.instance_id, command, asked)
            else:
                turn.aggregate.execute(command, asked)
            await self._hot.commit(turn)
        while True:
            async with self._hot.turn(self.instance_id) as turn:
                instance: Instance = turn.aggregate
            if instance.owes() is None or instance.parked is not None:
                return instance
            await asyncio.sleep(1.0)

    async def _pay(self, effect: Effect, key: str) -> Mapping[str, Any]:
        if isinstance(effect, CloudEffect):
            return await self.cloud.pay(effect, key)
        if isinstance(effect, GuestEffect):
            return await self._guests.pay(effect, key)
        return {}

    async def there(self, instance: Instance) -> dict[str, list[Any]]:
        """What the cloud holds, in the words of `says`. An instance in ERROR does not say whether its server is up."""
        inventory = await self.cloud.inventory()
        return {
            "ports": list(inventory["ports"]),
            "volumes": [(each["id"], each["size"]) for each in inventory["volumes"].values()],
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


def says(instance: Instance) -> dict[str, list[Any]]:
    """What the cloud holds according to the instance, which is settled."""
    if instance.status in ("DELETED", "FAILED"):
        return {"ports": [], "volumes": [], "servers": []}
    return {
        "ports": [instance.port_id],
        "volumes": [(instance.volume_id, instance.volume_size)],
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
) -> None:
    """Have the commands settled one after the other; after each, and `patience` seconds later, the cloud must hold what
    the instance says. `begins` is told of each. An operation that fails, if it may, ends the life.
    """
    store = open_store(f"sqlite://{path}/events.db")
    store.start()
    core = Core(site, store, UUID(int=7))
    running = asyncio.create_task(core.run())
    try:
        for command in commands:
            begins(command)
            instance = await core.settled(command)
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
        await end(running)
        await core.cloud.close()
        await store.close()
