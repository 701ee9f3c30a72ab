"""The bed of real processes on the lab: real services, a real agent and Redis in the place of each machine.

What was carried out is counted by the requests that the services wrote down, so runs go one after the other, and nobody
else may use the lab's service user meanwhile. What the guests did is not counted here.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
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
from tests.openstack.ledger import Requests, deeds, holdings, remove
from tests.openstack.services import CHECKOUT, Lab

CLOUD = "lab-service"
# Seconds: nothing stands in a queue before the lab, and what a worker had sent when it died is carried out soon.
TIMING = "call = 20.0\nbuilt = 180.0\nlatest_effect = 20.0"


class LabBed(ProcessBed):
    """What is killed, around the lab."""

    patience = 300.0

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._lab = Lab()
        self._admin: Connection
        self._requests: Requests
        self._run = ""
        self._ids: list[UUID] = []
        self._config = directory / "cloud.toml"

    async def _open_cloud(self) -> None:
        os.environ["OS_CLIENT_CONFIG_FILE"] = str(self._lab.clouds)
        self._admin = await asyncio.to_thread(openstack.connect, cloud="lab-admin")
        (redis,) = (offer for offer in available() if offer.manager == "redis")
        image = await asyncio.to_thread(self._admin.image.find_image, "lab-image", ignore_missing=False)
        images = f'"redis/{redis.versions[-1]}" = "{image.id}"'
        self._config.write_text(f'[networks]\ntenant = "lab-net"\n[servers.images]\n{images}\n[timing]\n{TIMING}\n')
        self._hook = self._lab.hooks / f"crash-{self.directory.name}"
        self._hook.write_text(
            _HOOK.format(
                checkout=CHECKOUT, python=sys.executable, machines=self.directory / "machines", broker=self._broker.url
            )
        )
        self._hook.chmod(0o755)
        self._requests = Requests(self._lab)

    async def _close_cloud(self) -> None:
        await asyncio.to_thread(remove, self._admin, *map(str, self._ids))
        self._hook.unlink(missing_ok=True)
        self._admin.close()

    def _cloud_options(self) -> list[str]:
        return ["--cloud", f"openstack:{CLOUD}", "--cloud-config", str(self._config)]

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
            self._requests = Requests(self._lab)
        super().order(orders)

    async def done(self, instance_id: UUID) -> Counter[str]:
        """What the services were asked to change since the run began: it is of this instance alone."""
        del instance_id
        return deeds(self._requests.made())

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


_HOOK = """#!/bin/sh
cd {checkout} && exec {python} -m tests.openstack.machine {machines} "$1" --broker {broker}
"""


@asynccontextmanager
async def on_the_lab() -> AsyncIterator[LabBed]:
    """A bed on the lab, started, and ended in any case."""
    with _directory() as directory:
        bed = LabBed(directory)
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
