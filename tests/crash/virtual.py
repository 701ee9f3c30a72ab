"""The bed in virtual time: a whole installation in this process, whose worker and projector die by being dropped.

What dies here runs no `finally`, but it shares an interpreter with the living; the same runs on real processes show
that nothing depends on that.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from datetime import timedelta
from typing import Any, TypeVar
from uuid import UUID

from aggregates.catalogue import Catalogue
from aggregates.effects import Effect
from aggregates.obligations import quota_id
from engine.clouds.simulated import SimulatedAgents
from engine.clouds.simulated.faults import Fault, Kind
from engine.clouds.simulated.guests import GuestFault, GuestFaultKind
from engine.crash_environment import Listener, Orders
from engine.messages import GuestVerb
from tests.crash import by_hand
from tests.crash.boundaries import Passed
from tests.crash.handle import PROJECT, Handle, Message
from tests.crash.models import caught_up, differing
from tests.simulation.publisher import SimulatedConnection
from tests.simulation.world import World, simulated

T = TypeVar("T")

SEED = 1
LOOK = (0.05, 5.0)  # virtual seconds between two looks: at first, and at most
DOWN = 0.1  # virtual seconds until a supervisor has seen that a process is dead
STARTED = 1.0  # virtual seconds within which the first process serves
SOON, LATE = 0.2, 1.0  # virtual seconds: the process dies, and later the call is carried out
LATEST_EFFECT = timedelta(seconds=1.5)


class VirtualBed:
    """One worker with its projector in a world."""

    patience = 300.0

    def __init__(self, world: World) -> None:
        self.handle = Handle(SimulatedConnection(world.broker, "publisher"))
        self._world = world
        self._orders = Orders()
        self._points: list[Passed] = []
        self._died = 0
        self._dying = False
        self._listener = Listener(lambda: self._orders, self._die, self._die_soon, self._record)
        world.fatal = self._fatal
        world.agents = SimulatedAgents()  # of every instance: a server that is gone is asked again and again
        world.latest_effect = LATEST_EFFECT
        self._keeping = asyncio.create_task(self._keep())

    def close(self) -> None:
        """Keep nothing alive any more."""
        self._keeping.cancel()

    # --- processes ------------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Start the worker anew whenever it has died, as a supervisor does."""
        while True:
            if not self._world.running:
                self._world.start_node()
            await asyncio.sleep(DOWN)

    def _fatal(self, point: str, subject: str) -> bool:
        self._dying = False
        self._listener(point, subject)
        return self._dying

    def _die(self) -> None:
        self._died += 1
        self._dying = True

    def _die_soon(self) -> None:
        self._died += 1
        for node in self._world.running:
            self._world.broker.schedule(SOON, node.kill)

    def _record(self, here: str) -> None:
        self._points.append(Passed.read(here))

    # --- the bed --------------------------------------------------------------------------------------------------

    async def ready(self) -> None:
        """Wait until it serves."""
        await asyncio.sleep(STARTED)

    def message(self, command: Any, target: UUID) -> Message:
        """A new command to the aggregate."""
        return Message(self._world.new_id(), target, command, self._world.wall())

    def new_id(self) -> UUID:
        """An id for an instance."""
        return self._world.new_id()

    def order(self, orders: Orders) -> None:
        """What is to happen from now on."""
        if orders.run != self._orders.run:
            self._points.clear()
        self._orders = orders

    def died(self) -> int:
        """How often the process has died by order."""
        return self._died

    async def passed(self) -> Sequence[Passed]:
        """The points passed since the run began."""
        return sorted(self._points, key=lambda each: each.by_projector)

    async def until(self, reached: Callable[[], bool]) -> bool:
        """Wait until it is so; False when it is not within the bed's patience."""
        try:
            async with asyncio.timeout(self.patience):
                pause = LOOK[0]
                while not reached():
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, LOOK[1])
        except TimeoutError:
            return False
        return True

    def load(self, aggregate_id: UUID) -> Any:
        """The aggregate as the log has it."""
        return self._world.aggregate(aggregate_id)

    def decided(self, command_id: UUID) -> bool:
        """Whether the log has the command's record."""
        return self._world.decided(PROJECT, command_id)

    def history(self, aggregate_id: UUID) -> Sequence[Any]:
        """Its events."""
        return self._world.events.events_of(aggregate_id)

    async def done(self, instance_id: UUID) -> Counter[str]:
        """What the cloud and the guest carried out for the instance."""
        whose = str(instance_id)
        calls = Counter(f"{e.action} {e.kind}" for e in self._world.api.ledger if e.name.endswith(whose))
        deeds = Counter(f"guest {deed.verb}" for deed in self._world.agents.ledger if deed.instance_id == whose)
        return calls + deeds

    async def held(self, instance_id: UUID) -> list[str]:
        """What the cloud and the quota hold for the instance."""
        inventory = await self._world.api.inventory()
        held = [
            kind
            for kind, resources in inventory.items()
            for resource in resources.values()
            if str(instance_id) in resource["name"]
        ]
        quota = self._world.aggregate(quota_id(PROJECT))
        return held + (["a share of the quota"] if quota is not None and instance_id in quota.held else [])

    async def delay(self, call: str, nth: int) -> None:
        """Have the nth of the next calls of this name carried out late: after another process has looked."""
        if call in frozenset(GuestVerb):
            faults = self._world.agents.faults
            faults.plan(call, GuestFault(kind=GuestFaultKind.SLOW), nth - 1)
            faults.plan(call, GuestFault(kind=GuestFaultKind.SLOW, seconds=LATE))
        else:
            self._world.api.faults.plan(call, Fault(kind=Kind.LATE), nth - 1)
            self._world.api.faults.plan(call, Fault(kind=Kind.LATE, seconds=LATE))

    async def offer(self, catalogue: Catalogue) -> None:
        """Have the cloud offer something else, and the worker know it: it asks when it starts."""
        self._world.api.offer(catalogue)
        for node in self._world.running:
            node.kill()
        await asyncio.sleep(STARTED)

    async def remove_by_hand(self, effect: Effect) -> None:
        """Do past the engine what is owed, if the rest waits for it."""
        await by_hand.remove(effect, self._world.api.call)

    async def untrue(self) -> list[str]:
        """The read models that say something else than the log."""
        models = self._world.models
        if not await self.until(lambda: caught_up(self._world.events, models)):
            return ["the read models have not caught up with the log"]
        return differing(self._world.events, models, models.with_name("made-anew"))


def in_virtual_time(work: Callable[[VirtualBed], Coroutine[Any, Any, T]]) -> T:
    """Do the work on a bed of its own."""

    async def scenario(world: World) -> T:
        bed = VirtualBed(world)
        try:
            return await work(bed)
        finally:
            bed.close()

    return simulated(SEED, scenario)
