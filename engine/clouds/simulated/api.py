"""The far side: a small cloud API as clouds have it, with their fences, and a ledger of every change carried out.

What it was told to do it does, also when the caller has died meanwhile. All of it is in memory and gone with the
process; it shows nothing of disks or networks. Time is the loop's.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from contextvars import copy_context
from typing import Any
from uuid import UUID, uuid4

import msgspec

from aggregates.catalogue import Catalogue, Datastore, Flavor
from engine.clock import monotonic
from engine.clouds.errors import CloudAnswerError
from engine.clouds.simulated.faults import Call, Fault, Faults, Kind
from engine.clouds.simulated.resources import ANSWERS, Action, Credential, Entry, Port, Server, Volume
from engine.clouds.simulated.shelf import Shelf, found_on

HOSTS = ("host-1", "host-2", "host-3")
CATALOGUE = Catalogue(
    flavors=tuple(
        Flavor(id=name, name=name, vcpus=vcpus, ram=ram)
        for name, vcpus, ram in (("micro", 1, 256), ("small", 1, 512), ("medium", 2, 1024), ("large", 2, 2048))
    ),
    datastores=(Datastore(manager="postgresql", versions=("16",), parameters=frozenset()),),
    availability_zones=("az-1", "az-2"),
    volume_types=("local",),
    hosts=HOSTS,
)

# What a cloud holds exclusively, so that a repeated call makes no second: each can be switched off, to show what
# would come of it.
PORT_MAC = "port_mac"  # one port for each MAC address
SERVER_PORT = "server_port"  # one server for each port
VOLUME_ATTACHMENT = "volume_attachment"  # one server for each volume
FENCES = frozenset({PORT_MAC, SERVER_PORT, VOLUME_ATTACHMENT})


class CloudApi:
    """`build_time`: seconds that the cloud works on a server or a volume after it has said yes.

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
        self.build_time = build_time
        self.faults = faults or Faults()
        self.ledger: list[Entry] = []
        self._catalogue = catalogue
        self._fences = frozenset(fences)
        self._on_call = on_call
        self._new_id = new_id
        self._addresses = 0
        self._macs: Counter[str] = Counter()
        self._ports: Shelf[Port] = Shelf()
        self._volumes: Shelf[Volume] = Shelf()
        self._servers: Shelf[Server] = Shelf()
        self._credentials: Shelf[Credential] = Shelf()
        self._load: Counter[str] = Counter()
        self._attached: dict[str, set[str]] = {}
        self._actions: dict[str, list[Action]] = {}
        self._works: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._serving: set[asyncio.Task[Any]] = set()
        self._context = copy_context()  # what goes on here is no part of who called
        self._call = Call(name="")
        self._age = 0.0

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
        self._work_until(monotonic())
        self._call, self._age = call, age
        return getattr(self, call.name)(**call.args)

    async def inventory(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Everything there is, by kind and id."""
        self._work_until(monotonic())
        return {
            "ports": {port.id: msgspec.to_builtins(port) for port in self._ports.named(None)},
            "volumes": {volume.id: msgspec.to_builtins(volume) for volume in self._volumes.named(None)},
            "servers": {server.id: msgspec.to_builtins(server) for server in self._servers.named(None)},
        }

    def serves(self, name: str) -> bool:
        """Whether a server of this name is up, so that its guest can run."""
        self._work_until(monotonic())
        return any(server.status in ("ACTIVE", "VERIFY_RESIZE") for server in self._servers.named(name))

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

    # --- work that goes on after the answer -----------------------------------------------------------------------

    def _later(self, work: Callable[[], None]) -> None:
        if self.build_time:
            heapq.heappush(self._works, (monotonic() + self.build_time, next(self._numbers), work))
        else:
            work()

    def _work_until(self, moment: float) -> None:
        while self._works and self._works[0][0] <= moment:
            heapq.heappop(self._works)[2]()

    # --- ports ----------------------------------------------------------------------------------------------------

    def get_catalogue(self) -> Catalogue:
        """What is offered."""
        return self._catalogue

    def list_ports(self, name: str) -> list[Port]:
        """The ports of this name, oldest first."""
        return self._ports.named(name, self._age)

    def get_port(self, id: str) -> Port:  # noqa: A002 - the clouds' own word
        """The port."""
        return found_on("port", self._ports, id)

    def create_port(self, name: str, mac: str) -> Port:
        """Make a port. 409: another has this MAC address."""
        if self._macs[mac] and PORT_MAC in self._fences:
            raise CloudAnswerError(409, f"MAC address {mac} is in use on this network")
        self._addresses += 1
        high, low = divmod(self._addresses, 250)
        made = Port(id=str(self._new_id()), name=name, mac=mac, address=f"10.{high // 256}.{high % 256}.{low + 1}")
        self._macs[mac] += 1
        self._ports.put(made)
        self._note("create", "port", made)
        return made

    def delete_port(self, id: str) -> None:  # noqa: A002
        """Delete a port that no server has."""
        port = found_on("port", self._ports, id)
        if port.server_id is not None:
            raise CloudAnswerError(409, f"port {id} is in use by server {port.server_id}")
        self._macs[port.mac] -= 1
        self._ports.drop(port)
        self._note("delete", "port", port)

    # --- volumes --------------------------------------------------------------------------------------------------

    def list_volumes(self, name: str | None = None) -> list[Volume]:
        """The volumes of this name, or all, oldest first. Nothing keeps two from having one name."""
        return self._volumes.named(name, self._age)

    def get_volume(self, id: str) -> Volume:  # noqa: A002
        """The volume."""
        return found_on("volume", self._volumes, id)

    def create_volume(
        self, name: str, size: int, volume_type: str | None = None, availability_zone: str | None = None
    ) -> Volume:
        """Make a volume, which is `available` after a while."""
        if volume_type is not None and volume_type not in self._catalogue.volume_types:
            raise CloudAnswerError(400, f"there is no volume type {volume_type}")
        self._check_zone(availability_zone)
        made = Volume(id=str(self._new_id()), name=name, size=size, status="creating")
        self._volumes.put(made)
        self._note("create", "volume", made)
        self._later(lambda: self._set_volume(made.id, status="available"))
        return self._volumes.get(made.id) or made

    def extend_volume(self, id: str, size: int) -> None:  # noqa: A002
        """Make a volume larger."""
        volume = found_on("volume", self._volumes, id)
        if size <= volume.size:
            raise CloudAnswerError(400, f"volume {id} has {volume.size} GiB; it can only grow")
        self._set_volume(id, size=size)
        self._note("extend", "volume", volume)

    def delete_volume(self, id: str) -> None:  # noqa: A002
        """Delete a volume that no server has; it is gone after a while."""
        volume = found_on("volume", self._volumes, id)
        if volume.server_id is not None:
            raise CloudAnswerError(409, f"volume {id} is attached to server {volume.server_id}")
        if volume.status == "deleting":
            return
        self._set_volume(id, status="deleting")
        self._note("delete", "volume", volume)
        self._later(lambda: self._drop_volume(id))

    def attach_volume(self, server_id: str, volume_id: str) -> None:
        """Give a server the volume. 409: another server has it."""
        server = found_on("server", self._servers, server_id)
        volume = found_on("volume", self._volumes, volume_id)
        if volume.status != "available" and VOLUME_ATTACHMENT in self._fences:
            raise CloudAnswerError(409, f"volume {volume_id} is {volume.status}")
        self._set_volume(volume_id, server_id=server.id, status="in-use")
        self._attached.setdefault(server.id, set()).add(volume_id)
        self._note("attach", "volume", volume)

    def _set_volume(self, volume_id: str, **changes: Any) -> None:
        volume = self._volumes.get(volume_id)
        if volume is not None:
            self._volumes.put(msgspec.structs.replace(volume, **changes))

    def _drop_volume(self, volume_id: str) -> None:
        volume = self._volumes.get(volume_id)
        if volume is not None:
            self._volumes.drop(volume)

    # --- servers --------------------------------------------------------------------------------------------------

    def list_servers(self, name: str | None = None) -> list[Server]:
        """The servers of this name, or all, oldest first."""
        return self._servers.named(name, self._age)

    def get_server(self, id: str) -> Server:  # noqa: A002
        """The server."""
        return found_on("server", self._servers, id)

    def list_actions(self, server_id: str) -> list[Action]:
        """What was done with the server."""
        found_on("server", self._servers, server_id)
        return list(self._actions.get(server_id, ()))

    def create_server(self, name: str, flavor_id: str, port_id: str, availability_zone: str | None = None) -> Server:
        """Make a server, which is ACTIVE after a while. 409: another server has the port."""
        self._check_flavor(flavor_id)
        self._check_zone(availability_zone)
        port = self._ports.get(port_id)
        if port is None:
            raise CloudAnswerError(400, f"there is no port {port_id}")
        if port.server_id is not None and SERVER_PORT in self._fences:
            raise CloudAnswerError(409, f"port {port_id} is in use by server {port.server_id}")
        made = Server(
            id=str(self._new_id()),
            name=name,
            host=self._least_loaded(self._catalogue.hosts),
            flavor_id=flavor_id,
            port_id=port_id,
            status="BUILD",
            task="spawning",
        )
        self._ports.put(msgspec.structs.replace(port, server_id=made.id))
        self._load[made.host] += 1
        self._servers.put(made)
        self._note("create", "server", made)
        self._later(lambda: self._set_server(made.id, status="ACTIVE", task=None))
        return self._servers.get(made.id) or made

    def delete_server(self, id: str) -> None:  # noqa: A002
        """Delete a server, whatever it is doing; it is gone after a while and lets go of its port and volumes."""
        server = found_on("server", self._servers, id)
        if server.task == "deleting":
            return
        self._set_server(id, task="deleting")
        self._note("delete", "server", server)
        self._later(lambda: self._drop_server(id))

    def reboot_server(self, id: str, hard: bool) -> None:  # noqa: A002, ARG002
        """Reboot; it is ACTIVE again after a while."""
        self._begin("reboot", id, ("ACTIVE", "SHUTOFF"), "rebooting", status="ACTIVE")

    def start_server(self, id: str) -> None:  # noqa: A002
        """Start a server that is SHUTOFF."""
        self._begin("start", id, ("SHUTOFF",), "powering-on", status="ACTIVE")

    def stop_server(self, id: str) -> None:  # noqa: A002
        """Stop a server that is ACTIVE."""
        self._begin("stop", id, ("ACTIVE",), "powering-off", status="SHUTOFF")

    def resize_server(self, id: str, flavor_id: str) -> None:  # noqa: A002
        """Give it another flavor, to be confirmed or reverted."""
        server = found_on("server", self._servers, id)
        self._check_flavor(flavor_id)
        if server.flavor_id == flavor_id:
            raise CloudAnswerError(400, f"server {id} has flavor {flavor_id} already")
        self._begin(
            "resize",
            id,
            ("ACTIVE", "SHUTOFF"),
            "resizing",
            status="VERIFY_RESIZE",
            flavor_id=flavor_id,
            old_flavor_id=server.flavor_id,
            old_host=server.host,
        )

    def migrate_server(self, id: str, host: str | None = None) -> None:  # noqa: A002
        """Move it to that host, or another than its own, to be confirmed or reverted."""
        server = found_on("server", self._servers, id)
        if host is not None and host not in self._catalogue.hosts:
            raise CloudAnswerError(400, f"there is no host {host}")
        others = [each for each in self._catalogue.hosts if each != server.host]
        if host == server.host or not others:
            raise CloudAnswerError(400, f"no host but {server.host} was found for server {id}")
        target = host or self._least_loaded(others)
        self._begin(
            "migrate",
            id,
            ("ACTIVE", "SHUTOFF"),
            "migrating",
            status="VERIFY_RESIZE",
            host=target,
            old_flavor_id=server.flavor_id,
            old_host=server.host,
        )

    def confirm_server(self, id: str) -> None:  # noqa: A002
        """What was resized or migrated stays so."""
        self._begin("confirm", id, ("VERIFY_RESIZE",), None, status="ACTIVE", old_host=None, old_flavor_id=None)

    def revert_server(self, id: str) -> None:  # noqa: A002
        """What was resized or migrated is again as it was."""
        server = found_on("server", self._servers, id)
        self._begin(
            "revert",
            id,
            ("VERIFY_RESIZE",),
            "reverting",
            status="ACTIVE",
            host=server.old_host or server.host,
            flavor_id=server.old_flavor_id or server.flavor_id,
            old_host=None,
            old_flavor_id=None,
        )

    def _begin(self, action: str, server_id: str, allowed: tuple[str, ...], task: str | None, **changes: Any) -> None:
        server = found_on("server", self._servers, server_id)
        if server.task is not None:
            raise CloudAnswerError(409, f"cannot {action} server {server_id} while it is {server.task}")
        if server.status not in allowed:
            raise CloudAnswerError(409, f"cannot {action} server {server_id} in status {server.status}")
        self._note(action, "server", server)
        self._actions.setdefault(server_id, []).append(Action(action=action, request_id=self._call.request_id))
        if task is None:
            self._set_server(server_id, **changes)
            return
        self._set_server(server_id, task=task)
        self._later(lambda: self._set_server(server_id, task=None, **changes))

    def _set_server(self, server_id: str, **changes: Any) -> None:
        server = self._servers.get(server_id)
        if server is None or (server.task == "deleting" and "task" in changes):
            return
        changed = msgspec.structs.replace(server, **changes)
        if changed.host != server.host:
            self._load[server.host] -= 1
            self._load[changed.host] += 1
        self._servers.put(changed)

    def _drop_server(self, server_id: str) -> None:
        server = self._servers.get(server_id)
        if server is None:
            return
        for volume_id in self._attached.pop(server_id, ()):
            volume = self._volumes.get(volume_id)
            if volume is not None and volume.server_id == server_id:
                self._set_volume(volume_id, server_id=None, status="available")
        port = self._ports.get(server.port_id)
        if port is not None and port.server_id == server_id:
            self._ports.put(msgspec.structs.replace(port, server_id=None))
        self._load[server.host] -= 1
        self._actions.pop(server_id, None)
        self._servers.drop(server)

    def _least_loaded(self, hosts: Iterable[str]) -> str:
        return min(hosts, key=lambda host: (self._load[host], self._catalogue.hosts.index(host)))

    def _check_zone(self, zone: str | None) -> None:
        zones = self._catalogue.availability_zones
        if zone is not None and zone not in zones:
            raise CloudAnswerError(400, f"there is no availability zone {zone}; there are: {', '.join(zones)}")

    def _check_flavor(self, flavor_id: str) -> None:
        if flavor_id not in (flavor.id for flavor in self._catalogue.flavors):
            raise CloudAnswerError(400, f"there is no flavor {flavor_id}")

    # --- guests' credentials --------------------------------------------------------------------------------------

    def get_credential(self, id: str) -> Credential:  # noqa: A002
        """The credentials."""
        return found_on("credentials", self._credentials, id)

    def create_credential(self, name: str) -> Credential:
        """Make credentials. 409: there are some of this name."""
        if self._credentials.get(name) is not None:
            raise CloudAnswerError(409, f"there are credentials {name} already")
        made = Credential(id=name, name=name)
        self._credentials.put(made)
        self._note("create", "credentials", made)
        return made

    def delete_credential(self, id: str) -> None:  # noqa: A002
        """Revoke them."""
        gone = found_on("credentials", self._credentials, id)
        self._credentials.drop(gone)
        self._note("delete", "credentials", gone)

    def _note(self, action: str, kind: str, of: Port | Volume | Server | Credential) -> None:
        entry = Entry(
            action=action,
            kind=kind,
            name=of.name,
            id=of.id,
            at=monotonic(),
            request_id=self._call.request_id,
            caller=self._call.caller,
        )
        self.ledger.append(entry)
        if self._on_call is not None:
            self._on_call(entry)


def _fault_answer(fault: Fault) -> CloudAnswerError:
    return CloudAnswerError(fault.status, "so it was planned", retry_after=fault.retry_after)
