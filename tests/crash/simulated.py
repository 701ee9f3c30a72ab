"""The bed of real processes on the simulated cloud, which lives in a process of its own and keeps a ledger."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import msgspec

from aggregates.catalogue import Catalogue
from aggregates.effects import Effect
from engine.clouds.simulated.client import FarSide
from engine.clouds.simulated.faults import Fault, Kind
from engine.clouds.simulated.guests import GuestFault, GuestFaultKind
from engine.crash_environment import SOON
from engine.messages import GuestVerb
from tests.crash import by_hand
from tests.crash.processes import ProcessBed

LATEST_EFFECT = 0.5  # seconds: what a killed worker has sent to the cloud is carried out at once
LATE = 4 * SOON  # the worker is dead by then, and the next one is not up


class SimulatedBed(ProcessBed):
    """What is killed, around the simulated cloud."""

    def __init__(self, directory: Path, store_url: str | None = None) -> None:
        super().__init__(directory, store_url)
        self._socket = directory / "cloud.sock"
        self._far_side = FarSide(self._socket)
        self._ledger = _Ledger(directory / "ledger")

    async def _open_cloud(self) -> None:
        options = ["--ledger", str(self._ledger.path), "--latest-effect", str(LATEST_EFFECT)]
        self._spawn("cloud", ["--socket", str(self._socket), *options])
        await self._until_said("cloud")

    async def _close_cloud(self) -> None:
        await self._far_side.close()

    def _cloud_options(self) -> list[str]:
        return ["--cloud", f"simulated:{self._socket}"]

    async def done(self, instance_id: UUID) -> Counter[str]:
        """What the cloud and the guest carried out for the instance."""
        return self._ledger.of(instance_id)

    async def _resources(self, instance_id: UUID) -> list[str]:
        inventory = await self._far_side.inventory()
        return [
            kind
            for kind, resources in inventory.items()
            for resource in resources.values()
            if str(instance_id) in resource["name"]
        ]

    async def delay(self, call: str, nth: int) -> None:
        """Have the nth of the next calls of this name carried out when the worker is dead."""
        if call in frozenset(GuestVerb):
            await self._far_side.plan_guest(call, GuestFault(kind=GuestFaultKind.SLOW), nth - 1)
            await self._far_side.plan_guest(call, GuestFault(kind=GuestFaultKind.SLOW, seconds=LATE))
        else:
            await self._far_side.plan(call, Fault(kind=Kind.LATE), nth - 1)
            await self._far_side.plan(call, Fault(kind=Kind.LATE, seconds=LATE))

    async def _offer(self, catalogue: Catalogue) -> None:
        await self._far_side.offer(catalogue)

    async def remove_by_hand(self, effect: Effect) -> None:
        """Do past the engine what is owed, if the rest waits for it."""
        await by_hand.remove(effect, self._far_side.call)


class _Line(msgspec.Struct, frozen=True):
    """A line of the cloud's ledger: of a change, or of a guest's deed."""

    action: str = ""
    kind: str = ""
    name: str = ""
    instance_id: str = ""
    verb: str = ""


class _Ledger:
    """The cloud's ledger, read on from where it was read before."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._at = 0
        self._of: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def of(self, instance_id: UUID) -> Counter[str]:
        """What was carried out for the instance."""
        with self.path.open("rb") as file:
            file.seek(self._at)
            for line in file:
                entry = msgspec.json.decode(line, type=_Line)
                whose = entry.instance_id or entry.name[-len(str(instance_id)) :]
                self._of[whose][f"guest {entry.verb}" if entry.verb else f"{entry.action} {entry.kind}"] += 1
            self._at = file.tell()
        return Counter(self._of[str(instance_id)])


@asynccontextmanager
async def processes(directory: Path, store_url: str | None = None) -> AsyncIterator[SimulatedBed]:
    """A bed with the simulated cloud, started, and ended in any case."""
    bed = SimulatedBed(directory, store_url)
    try:
        await bed.start()
        yield bed
    finally:
        await bed.end()
