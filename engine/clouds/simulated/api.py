"""The far side: a small cloud API as clouds have it, with their fences, and a ledger of every change carried out.

What it was told to do it does, also when the caller has died meanwhile. All of it is in memory and gone with the
process; it shows nothing of disks or networks. Time is the loop's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextvars import copy_context
from typing import Any, Protocol
from uuid import UUID, uuid4

import msgspec

from aggregates.catalogue import Catalogue, Datastore, Flavor
from engine.clock import monotonic
from engine.clouds.errors import CloudAnswerError
from engine.clouds.simulated.compute import Compute
from engine.clouds.simulated.faults import Call, Fault, Faults, Kind
from engine.clouds.simulated.ground import FENCES, Ground
from engine.clouds.simulated.network import Network
from engine.clouds.simulated.resources import (
    Action,
    Credential,
    Entry,
    FloatingAddress,
    Port,
    SecurityGroup,
    Server,
    ServerGroup,
    Shelf,
    Snapshot,
    Volume,
)
from engine.clouds.simulated.storage import BlockStorage

HOSTS = ("host-1", "host-2", "host-3")
CATALOGUE = Catalogue(
    flavors=tuple(
        Flavor(id=name, name=name, vcpus=vcpus, ram=ram)
        for name, vcpus, ram in (("micro", 1, 256), ("small", 1, 512), ("medium", 2, 1024), ("large", 2, 2048))
    ),
    datastores=(Datastore(manager="postgresql", port=5432, versions=("16",), parameters=frozenset()),),
    availability_zones=("az-1", "az-2"),
    volume_types=("local", "remote"),
    hosts=HOSTS,
    honours=frozenset({"access", "image_id", "locality", "nics", "snapshot"}),
    extended_offline=frozenset({"remote"}),
    management_network="management",
)
# What a cloud offers that guards nobody's access and has one network: what ours was before.
BARE = msgspec.structs.replace(CATALOGUE, honours=frozenset(), management_network=None)

# What each call answers; a call with another name is unknown.
ANSWERS: Mapping[str, Any] = {
    "get_catalogue": Catalogue,
    "list_ports": list[Port],
    "get_port": Port,
    "create_port": Port,
    "update_port": None,
    "delete_port": None,
    "list_security_groups": list[SecurityGroup],
    "get_security_group": SecurityGroup,
    "create_security_group": SecurityGroup,
    "delete_security_group": None,
    "create_security_group_rules": None,
    "delete_security_group_rule": None,
    "list_floating_addresses": list[FloatingAddress],
    "get_floating_address": FloatingAddress,
    "create_floating_address": FloatingAddress,
    "update_floating_address": None,
    "delete_floating_address": None,
    "list_volumes": list[Volume],
    "get_volume": Volume,
    "create_volume": Volume,
    "extend_volume": None,
    "delete_volume": None,
    "list_snapshots": list[Snapshot],
    "get_snapshot": Snapshot,
    "create_snapshot": Snapshot,
    "delete_snapshot": None,
    "attach_volume": None,
    "detach_volume": None,
    "list_server_groups": list[ServerGroup],
    "get_server_group": ServerGroup,
    "create_server_group": ServerGroup,
    "delete_server_group": None,
    "list_servers": list[Server],
    "get_server": Server,
    "create_server": Server,
    "delete_server": None,
    "reboot_server": None,
    "rebuild_server": None,
    "resize_server": None,
    "migrate_server": None,
    "confirm_server": None,
    "revert_server": None,
    "start_server": None,
    "stop_server": None,
    "list_actions": list[Action],
    "get_credential": Credential,
    "create_credential": Credential,
    "delete_credential": None,
}


class Api(Protocol):
    """The cloud API, in this process or in another."""

    async def call(self, call: Call) -> Any:
        """Carry the call out and answer. Raises `CloudAnswerError` for a status, `OSError` for a broken connection.

        It may never answer.
        """
        ...

    async def inventory(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Everything there is, by kind and id: for tests, no call of the cloud's."""
        ...

    async def close(self) -> None:
        """Let go of the connection."""
        ...


class CloudApi:
    """`build_time`: seconds that the cloud works on something after it has said yes.

    `latency`: seconds before each call has its effect. `on_call` hears of every change carried out.
    """

    def __init__(
        self,
        *,
        catalogue: Catalogue = CATALOGUE,
        latency: float = 0.0,
        build_time: float = 0.0,
        fences: Iterable[str] = FENCES,
        faults: Faults | None = None,
        on_call: Callable[[Entry], None] | None = None,
        new_id: Callable[[], UUID] = uuid4,
    ) -> None:
        self.latency = latency
        self.faults = faults or Faults()
        self._ground = Ground(catalogue=catalogue, build_time=build_time, fences=fences, on_call=on_call, new_id=new_id)
        self._network = Network(self._ground)
        self._storage = BlockStorage(self._ground)
        self._compute = Compute(self._ground, self._network, self._storage)
        self._services = (self._compute, self._network, self._storage, _Identity(self._ground))
        self._serving: set[asyncio.Task[Any]] = set()
        self._context = copy_context()  # what goes on here is no part of who called

    @property
    def build_time(self) -> float:
        """Seconds that the cloud works on something."""
        return self._ground.build_time

    @build_time.setter
    def build_time(self, seconds: float) -> None:
        self._ground.build_time = seconds

    @property
    def ledger(self) -> list[Entry]:
        """Every change carried out."""
        return self._ground.ledger

    def offer(self, catalogue: Catalogue) -> None:
        """Offer something else from now on."""
        self._ground.catalogue = catalogue

    async def call(self, call: Call) -> Any:
        """Carry the call out, unless a fault has it otherwise. A call that has arrived outlives its caller."""
        fault = self.faults.due(call)
        if fault is None and not self.latency:
            return self.carry_out(call)
        task = asyncio.create_task(self._serve(call, fault), name=f"cloud-{call.name}", context=self._context.copy())
        self._serving.add(task)
        task.add_done_callback(self._served)
        answered, answer = await asyncio.shield(task)
        if not answered:
            await asyncio.get_running_loop().create_future()
        return answer

    async def close(self) -> None:
        """Calls that have arrived are carried out all the same."""

    def carry_out(self, call: Call, *, age: float = 0.0) -> Any:
        """Do it now; `age`: a list shows what was there so many seconds ago."""
        if call.name not in ANSWERS:
            raise CloudAnswerError(404, f"there is no call {call.name}")
        ground = self._ground
        ground.work_until(monotonic())
        ground.call, ground.age = call, age
        if call.name == "get_catalogue":
            return ground.catalogue
        service = next(each for each in self._services if hasattr(each, call.name))
        return getattr(service, call.name)(**call.args)

    async def inventory(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Everything there is but credentials, by kind and id."""
        self._ground.work_until(monotonic())
        shelves: Mapping[str, Shelf[Any]] = {
            "ports": self._network.ports,
            "security_groups": self._network.groups,
            "floating_addresses": self._network.floating,
            "volumes": self._storage.volumes,
            "snapshots": self._storage.snapshots,
            "server_groups": self._compute.groups,
            "servers": self._compute.servers,
        }
        return {
            kind: {each.id: msgspec.to_builtins(each) for each in shelf.named(None)} for kind, shelf in shelves.items()
        }

    def serves(self, name: str) -> bool:
        """Whether a server of this name is up, so that its guest can run."""
        self._ground.work_until(monotonic())
        return any(
            server.status in ("ACTIVE", "VERIFY_RESIZE") and server.task != "rebuilding"
            for server in self._compute.servers.named(name)
        )

    async def _serve(self, call: Call, fault: Fault | None) -> tuple[bool, Any]:
        """Whether there is an answer, and which."""
        await asyncio.sleep(self.latency)
        if fault is None:
            return True, self.carry_out(call)
        match fault.kind:
            case Kind.REFUSED:
                raise _fault_answer(fault)
            case Kind.RESET_BEFORE:
                raise ConnectionResetError("reset by the cloud")
            case Kind.LOST:
                return False, None
            case Kind.STALE:
                return True, self.carry_out(call, age=fault.seconds)
            case Kind.LATE:
                await asyncio.sleep(fault.seconds)
                return True, self.carry_out(call)
        self.carry_out(call)
        match fault.kind:
            case Kind.BROKEN:
                raise _fault_answer(fault)
            case Kind.RESET_AFTER:
                raise ConnectionResetError("reset by the cloud")
        return False, None

    def _served(self, task: asyncio.Task[Any]) -> None:
        self._serving.discard(task)
        if not task.cancelled():
            task.exception()  # its caller has it, or is gone


class _Identity:
    """Guests' credentials: one of a name."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._credentials: Shelf[Credential] = Shelf("credentials")

    def get_credential(self, id: str) -> Credential:  # noqa: A002 - the clouds' own word
        """The credentials."""
        return self._credentials.found(id)

    def create_credential(self, name: str) -> Credential:
        """Make credentials. 409: there are some of this name."""
        if self._credentials.get(name) is not None:
            raise CloudAnswerError(409, f"there are credentials {name} already")
        made = Credential(id=name, name=name)
        self._credentials.put(made)
        self._ground.note("create", "credentials", made)
        return made

    def delete_credential(self, id: str) -> None:  # noqa: A002
        """Revoke them."""
        gone = self._credentials.found(id)
        self._credentials.drop(gone)
        self._ground.note("delete", "credentials", gone)


def _fault_answer(fault: Fault) -> CloudAnswerError:
    return CloudAnswerError(fault.status, "so it was planned", retry_after=fault.retry_after)
