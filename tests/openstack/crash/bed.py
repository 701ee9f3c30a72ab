"""The bed of real processes on the lab: real services, a real agent and Redis in the place of each machine.

What was carried out is counted by the requests that came through the bed's own doors to the services, which pass on
what has come whole, though who sent it is dead: so several beds may use the lab at once, each in an interpreter of its
own, on each of which the runs go one after the other. What the guests did is not counted here.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import openstack
from openstack.connection import Connection

from aggregates.commands import CreateInstance
from aggregates.effects import Effect, PortAbsent, PortGroupAbsent, ServerAbsent
from engine.crash_environment import Orders
from engine.guest.datastores.catalogue import available
from tests.crash.handle import Message
from tests.crash.processes import ProcessBed
from tests.openstack.adapter import Doors, doors
from tests.openstack.ledger import deeds, holdings, remove
from tests.openstack.machine.hook import write_hook
from tests.openstack.services import Lab

CLOUD = "lab-service"
# Seconds: nothing stands in a queue before the lab, and what a worker had sent when it died is carried out soon.
TIMING = "call = 20.0\nbuilt = 180.0\nlatest_effect = 20.0"


class LabBed(ProcessBed):
    """What is killed, around the lab."""

    patience = 300.0

    def __init__(self, directory: Path, *, direct: bool) -> None:
        super().__init__(directory)
        self._direct = direct
        self._lab = Lab()
        self._admin: Connection
        self._open = AsyncExitStack()
        self._doors: Doors
        self._run = ""
        self._begun = 0.0
        self._ids: list[UUID] = []
        self._config = directory / "cloud.toml"

    async def _open_cloud(self) -> None:
        os.environ["OS_CLIENT_CONFIG_FILE"] = str(self._lab.clouds)
        self._admin = await asyncio.to_thread(openstack.connect, cloud="lab-admin")
        with await asyncio.to_thread(openstack.connect, cloud=CLOUD) as service:
            self._doors = await self._open.enter_async_context(doors(service, self.directory))
        self._clouds = self._doors.write()
        (redis,) = (offer for offer in available() if offer.manager == "redis")
        image = await asyncio.to_thread(self._admin.image.find_image, "lab-image", ignore_missing=False)
        images = f'"redis/{redis.versions[-1]}" = "{image.id}"'
        self._config.write_text(f'[networks]\ntenant = "lab-net"\n[servers.images]\n{images}\n[timing]\n{TIMING}\n')
        self._hook = self._lab.hooks / f"crash-{self.directory.name}"
        write_hook(self._hook, self.directory / "machines", self._broker.url)

    async def _close_cloud(self) -> None:
        await asyncio.to_thread(remove, self._admin, *map(str, self._ids))
        self._hook.unlink(missing_ok=True)
        await self._open.aclose()
        self._admin.close()

    def _spawn(self, role: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        clouds = self._lab.clouds if self._direct else self._clouds
        super()._spawn(role, arguments, {**(environment or {}), "OS_CLIENT_CONFIG_FILE": str(clouds)})

    def _cloud_options(self) -> list[str]:
        return ["--cloud", f"openstack:{CLOUD if self._direct else 'doors'}", "--cloud-config", str(self._config)]

    def new_id(self) -> UUID:
        """An id for an instance, whose resources are removed when the bed ends."""
        self._ids.append(super().new_id())
        return self._ids[-1]

    def message(self, command: Any, target: UUID) -> Message:
        """A new command to the aggregate; the machines run Redis."""
        if isinstance(command, CreateInstance):
            command = msgspec.structs.replace(command, datastore="redis")
        return super().message(command, target)

    def order(self, orders: Orders) -> None:
        """What is to happen from now on."""
        if orders.run != self._run:
            self._run = orders.run
            self._begun = time.monotonic()
        super().order(orders)

    async def done(self, instance_id: UUID) -> Counter[str]:
        """What the services were asked to change since the run began: it is of this instance alone."""
        del instance_id
        return deeds(each for each in self._doors.seen if each.at >= self._begun)

    async def _resources(self, instance_id: UUID) -> list[str]:
        return [each.kind for each in await asyncio.to_thread(holdings, self._admin, str(instance_id))]

    async def delay(self, call: str, nth: int) -> None:
        """Nothing is to be done: a real service takes its time, and goes on when who asked has died."""

    async def remove_by_hand(self, effect: Effect) -> None:
        """Do past the engine what is owed, if the rest waits for it."""
        network, compute = self._admin.network, self._admin.compute
        match effect:
            case ServerAbsent():
                for each in await asyncio.to_thread(holdings, self._admin, str(effect.instance_id)):
                    if each.kind == "server":
                        await asyncio.to_thread(compute.delete_server, each.id)
            case PortAbsent():
                for port in await asyncio.to_thread(lambda: list(network.ports(name=effect.name))):
                    await asyncio.to_thread(network.delete_port, port.id)
            case PortGroupAbsent():
                await asyncio.to_thread(network.update_port, effect.port_id, security_groups=[])


@asynccontextmanager
async def on_the_lab(*, direct: bool = False) -> AsyncIterator[LabBed]:
    """A bed on the lab, started, and ended in any case. `direct`: not by doors, so that `done` knows nothing."""
    with _directory() as directory:
        bed = LabBed(directory, direct=direct)
        try:
            await bed.start()
            yield bed
        finally:
            await bed.end()


@contextmanager
def _directory() -> Iterator[Path]:
    # Databases run as another user where this is root, and must be able to pass.
    with tempfile.TemporaryDirectory(prefix="holdfast-crash-", ignore_cleanup_errors=True) as made:
        Path(made).chmod(0o711)
        yield Path(made)
