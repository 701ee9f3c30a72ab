"""A cloud in memory that answers at once and keeps a ledger, and guests to go with it: for tests and benchmarks.

It has the fences of a real cloud and fails when told to. It shows nothing of processes, disks, networks or their
failures, and all of it is gone with the process.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar
from uuid import UUID, uuid4

import msgspec

from aggregates import effects
from aggregates.catalogue import Catalogue, Datastore, Flavor
from aggregates.effects import CloudEffect, GuestEffect
from engine.clouds.port import Facts, FinalError, PayError, TransientError

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


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A mutating call that was carried out."""

    action: str
    kind: str
    name: str
    id: str


class Port(msgspec.Struct, kw_only=True):
    """A port."""

    id: str
    name: str
    address: str


class Volume(msgspec.Struct, kw_only=True):
    """A volume."""

    id: str
    name: str
    size: int
    server_id: str | None = None


class Server(msgspec.Struct, kw_only=True):
    """A server."""

    id: str
    name: str
    host: str
    flavor_id: str
    port_id: str
    status: str = "ACTIVE"
    rebooted_under: str | None = None


class Failures:
    """Errors to be raised instead of paying: so many times for each effect's name."""

    def __init__(self) -> None:
        self._planned: dict[str, list[PayError]] = {}

    def plan(self, effect_name: str, error: PayError, times: int) -> None:
        """The next so many payments of the effect raise the error."""
        self._planned.setdefault(effect_name, []).extend([error] * times)

    def raise_next(self, effect_name: str) -> None:
        """Raise the error that is due, if any."""
        due = self._planned.get(effect_name)
        if due:
            raise due.pop(0)


Resource = TypeVar("Resource", Port, Volume, Server)


class SimulatedCloud:
    """`latency`: seconds before each call has its effect. `on_call` hears of every mutating call carried out."""

    def __init__(
        self,
        *,
        catalogue: Catalogue = CATALOGUE,
        latency: float = 0.0,
        on_call: Callable[[Entry], None] | None = None,
        latest_effect: timedelta = timedelta(0),
        new_id: Callable[[], UUID] = uuid4,
    ) -> None:
        self.latency = latency
        self.latest_effect = latest_effect
        self.ledger: list[Entry] = []
        self._catalogue = catalogue
        self._on_call = on_call
        self._new_id = new_id
        self._failures = Failures()
        self._addresses = 0
        self._ports: dict[str, Port] = {}
        self._volumes: dict[str, Volume] = {}
        self._servers: dict[str, Server] = {}
        self._credentials: set[UUID] = set()

    async def start(self) -> None:
        """Nothing is to be taken up."""

    async def close(self) -> None:
        """Nothing is held."""

    async def catalogue(self) -> Catalogue:
        """What it was given."""
        return self._catalogue

    def fail(self, effect_name: str, error: PayError, times: int = 1) -> None:
        """The next so many payments of the effect raise the error and change nothing."""
        self._failures.plan(effect_name, error, times)

    async def pay(self, effect: CloudEffect, key: str) -> Facts:
        """Make the effect true. Look and change are one step, after the latency: so much for the fences."""
        if self.latency:
            await asyncio.sleep(self.latency)
        self._failures.raise_next(effect.type_name)
        match effect:
            case effects.EnsureCredentials() | effects.CredentialsAbsent():
                return self._pay_credentials(effect)
            case effects.EnsurePort() | effects.PortAbsent():
                return self._pay_port(effect)
            case effects.EnsureVolume() | effects.ExtendVolume() | effects.VolumeAbsent() | effects.EnsureAttachment():
                return self._pay_volume(effect)
            case effects.SurplusAbsent():
                return self._pay_surplus(effect)
            case effects.EnsureServer() | effects.ServerAbsent():
                return self._pay_server(effect)
        return self._change_server(effect, key)

    async def inventory(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Everything there is, by kind and id."""
        return {
            "ports": {key: msgspec.to_builtins(port) for key, port in self._ports.items()},
            "volumes": {key: msgspec.to_builtins(volume) for key, volume in self._volumes.items()},
            "servers": {key: msgspec.to_builtins(server) for key, server in self._servers.items()},
        }

    # --- underneath -----------------------------------------------------------------------------------------------

    def _pay_credentials(self, effect: effects.EnsureCredentials | effects.CredentialsAbsent) -> Facts:
        wanted = isinstance(effect, effects.EnsureCredentials)
        if wanted is not (effect.instance_id in self._credentials):
            self._credentials ^= {effect.instance_id}
            self._note("create" if wanted else "delete", "credentials", str(effect.instance_id), "")
        return {}

    def _pay_port(self, effect: effects.EnsurePort | effects.PortAbsent) -> Facts:
        if isinstance(effect, effects.PortAbsent):
            for port in _named(self._ports, effect.name, effect.port_id):
                holder = next((s.id for s in self._servers.values() if s.port_id == port.id), None)
                _refuse_in_use("port", port.id, holder)
                self._drop("port", self._ports, port)
            return {}
        known = _named(self._ports, effect.name, None)
        if not known:
            self._addresses += 1
            high, low = divmod(self._addresses, 250)
            address = f"10.{high // 256}.{high % 256}.{low + 1}"
            known = [Port(id=str(self._new_id()), name=effect.name, address=address)]
            self._keep("port", self._ports, known[0])
        return {"port_id": known[0].id, "address": known[0].address}

    def _pay_volume(
        self,
        effect: effects.EnsureVolume | effects.ExtendVolume | effects.VolumeAbsent | effects.EnsureAttachment,
    ) -> Facts:
        match effect:
            case effects.VolumeAbsent():
                for volume in _named(self._volumes, effect.name, effect.volume_id):
                    _refuse_in_use("volume", volume.id, volume.server_id)
                    self._drop("volume", self._volumes, volume)
            case effects.ExtendVolume():
                volume = _get("volume", self._volumes, effect.volume_id)
                if volume.size < effect.size:
                    volume.size = effect.size
                    self._note("extend", "volume", volume.name, volume.id)
            case effects.EnsureAttachment():
                self._attach(effect)
            case _:
                return {"volume_id": self._ensure_volume(effect).id}
        return {}

    def _pay_surplus(self, effect: effects.SurplusAbsent) -> Facts:
        surplus = [v for v in self._volumes.values() if v.name == effect.name and v.id != effect.keep]
        for volume in surplus:
            _refuse_in_use("volume", volume.id, volume.server_id)
            self._drop("volume", self._volumes, volume)
        return {"removed": [volume.id for volume in surplus]}

    def _ensure_volume(self, effect: effects.EnsureVolume) -> Volume:
        volume = next(iter(_named(self._volumes, effect.name, None)), None)
        if volume is None:
            volume = Volume(id=str(self._new_id()), name=effect.name, size=effect.size)
            self._keep("volume", self._volumes, volume)
        if volume.size < effect.size:
            raise FinalError("conflict", f"volume {effect.name} has {volume.size} GiB already, not {effect.size}")
        return volume

    def _attach(self, effect: effects.EnsureAttachment) -> None:
        volume = _get("volume", self._volumes, effect.volume_id)
        server = _get("server", self._servers, effect.server_id)
        if volume.server_id not in (None, server.id):
            raise FinalError("conflict", f"volume {volume.id} is attached to server {volume.server_id}")
        others = [v.id for v in self._volumes.values() if v.server_id == server.id and v is not volume]
        if others:
            raise FinalError("conflict", f"server {server.id} has volume {others[0]} already")
        if volume.server_id is None:
            volume.server_id = server.id
            self._note("attach", "volume", volume.name, volume.id)

    def _pay_server(self, effect: effects.EnsureServer | effects.ServerAbsent) -> Facts:
        if isinstance(effect, effects.ServerAbsent):
            for server in _named(self._servers, effect.name, effect.server_id):
                for volume in self._volumes.values():
                    volume.server_id = None if volume.server_id == server.id else volume.server_id
                self._drop("server", self._servers, server)
            return {}
        self._check_flavor(effect.flavor_id)
        _get("port", self._ports, effect.port_id)
        known = _named(self._servers, effect.name, None)
        if known != [holder for holder in self._servers.values() if holder.port_id == effect.port_id]:
            raise FinalError("conflict", f"server {effect.name} cannot have port {effect.port_id}")
        if not known:
            made = Server(
                id=str(self._new_id()),
                name=effect.name,
                host=self._host(effect.availability_zone),
                flavor_id=effect.flavor_id,
                port_id=effect.port_id,
            )
            self._keep("server", self._servers, made)
            known = [made]
        return {"server_id": known[0].id, "host": known[0].host}

    def _change_server(self, effect: CloudEffect, key: str) -> Facts:
        match effect:
            case effects.RebootServer():
                self._update(effect.server_id, "reboot", status="ACTIVE", rebooted_under=key)
            case effects.ResizeServer():
                self._check_flavor(effect.flavor_id)
                self._update(effect.server_id, "resize", status="VERIFY_RESIZE", flavor_id=effect.flavor_id)
            case effects.MigrateServer():
                target = self._target(effect)
                self._update(effect.server_id, "migrate", status="VERIFY_RESIZE", host=target)
                return {"new_host": target}
            case effects.ConfirmServer():
                if _get("server", self._servers, effect.server_id).status == "VERIFY_RESIZE":
                    self._update(effect.server_id, "confirm", status="ACTIVE")
            case effects.StartServer():
                self._update(effect.server_id, "start", status="ACTIVE")
            case effects.RevertServer():
                self._check_flavor(effect.flavor_id)
                self._check_host(effect.host)
                self._update(effect.server_id, "revert", status="ACTIVE", flavor_id=effect.flavor_id, host=effect.host)
            case effects.StopServer():
                self._update(effect.server_id, "stop", status="SHUTOFF")
            case _:
                raise FinalError("unsupported", f"the simulated cloud does not know {effect.type_name}")
        return {}

    def _update(self, server_id: str, action: str, **changes: str) -> None:
        server = _get("server", self._servers, server_id)
        if all(getattr(server, name) == value for name, value in changes.items()):
            return
        for name, value in changes.items():
            setattr(server, name, value)
        self._note(action, "server", server.name, server.id)

    def _target(self, effect: effects.MigrateServer) -> str:
        server = _get("server", self._servers, effect.server_id)
        if effect.host is not None:
            self._check_host(effect.host)
        if effect.host == effect.from_host:
            raise FinalError("invalid_argument", f"the server is on host {effect.from_host} already")
        if effect.host is not None or server.host != effect.from_host:
            return effect.host or server.host
        others = [host for host in self._catalogue.hosts if host != effect.from_host]
        if not others:
            raise FinalError("invalid_argument", f"there is no host but {effect.from_host} to migrate to")
        return self._least_loaded(others)

    def _host(self, zone: str | None) -> str:
        zones = self._catalogue.availability_zones
        if zone is not None and zone not in zones:
            raise FinalError("invalid_argument", f"there is no availability zone {zone}; there are: {', '.join(zones)}")
        return self._least_loaded(list(self._catalogue.hosts))

    def _least_loaded(self, hosts: list[str]) -> str:
        load = Counter(server.host for server in self._servers.values())
        return min(hosts, key=lambda host: (load[host], hosts.index(host)))

    def _check_flavor(self, flavor_id: str) -> None:
        if flavor_id not in (flavor.id for flavor in self._catalogue.flavors):
            raise FinalError("invalid_argument", f"there is no flavor {flavor_id}")

    def _check_host(self, host: str) -> None:
        if host not in self._catalogue.hosts:
            raise FinalError("invalid_argument", f"there is no host {host}")

    def _keep(self, kind: str, among: dict[str, Resource], made: Resource) -> None:
        among[made.id] = made
        self._note("create", kind, made.name, made.id)

    def _drop(self, kind: str, among: dict[str, Resource], gone: Resource) -> None:
        del among[gone.id]
        self._note("delete", kind, gone.name, gone.id)

    def _note(self, action: str, kind: str, name: str, resource_id: str) -> None:
        entry = Entry(action=action, kind=kind, name=name, id=resource_id)
        self.ledger.append(entry)
        if self._on_call is not None:
            self._on_call(entry)


class SimulatedGuests:
    """Guest agents that do at once whatever they are asked."""

    def __init__(self, *, latency: float = 0.0) -> None:
        self.latency = latency
        self._failures = Failures()

    def fail(self, effect_name: str, error: PayError, times: int = 1) -> None:
        """The next so many payments of the effect raise the error."""
        self._failures.plan(effect_name, error, times)

    async def pay(self, effect: GuestEffect, key: str) -> Facts:  # noqa: ARG002 - the port's signature
        """Say that the effect is true."""
        if self.latency:
            await asyncio.sleep(self.latency)
        self._failures.raise_next(effect.type_name)
        return {"port": 5432} if isinstance(effect, effects.PrepareDatabase) else {}


def _named(among: dict[str, Resource], name: str, resource_id: str | None) -> list[Resource]:
    return [found for found in among.values() if found.name == name or found.id == resource_id]


def _get(kind: str, among: dict[str, Resource], resource_id: str) -> Resource:
    if resource_id not in among:
        raise FinalError("not_found", f"there is no {kind} {resource_id}")
    return among[resource_id]


def _refuse_in_use(kind: str, resource_id: str, holder: str | None) -> None:
    if holder is not None:
        raise TransientError("in_use", f"server {holder} has {kind} {resource_id}; delete the server first")
