"""What the simulated cloud holds, as its API shows it, and the shelves that it lies on."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

import msgspec

from engine.clock import monotonic
from engine.clouds.errors import CloudAnswerError
from engine.clouds.simulated.faults import STALEST


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A mutating call that was carried out: on what, when (the loop's time), for which request of whom."""

    action: str
    kind: str
    name: str
    id: str
    at: float = 0.0
    request_id: str = ""
    caller: str = ""


class Port(msgspec.Struct, frozen=True, kw_only=True):
    """A port. `server_id`: the server that has it."""

    id: str
    name: str
    mac: str
    address: str
    network: str = "tenant"
    security_groups: tuple[str, ...] = ()
    server_id: str | None = None


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """A network that a security group lets in to a TCP port. `name` is the group's."""

    id: str
    name: str
    security_group_id: str
    port: int
    cidr: str


class SecurityGroup(msgspec.Struct, frozen=True, kw_only=True):
    """A security group: whom no rule lets in stays outside."""

    id: str
    name: str
    rules: tuple[Rule, ...] = ()


class FloatingAddress(msgspec.Struct, frozen=True, kw_only=True):
    """An address of the outside that leads to a port. Clouds keep its `name` as a description."""

    id: str
    name: str
    address: str
    port_id: str | None


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    """A volume: `creating`, `available`, `in-use`, `detaching`, `deleting`."""

    id: str
    name: str
    size: int
    volume_type: str | None = None
    status: str = "available"
    server_id: str | None = None


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of a volume, which cannot be deleted as long as it has one: `creating`, `available`, `deleting`."""

    id: str
    name: str
    volume_id: str
    status: str = "available"


class ServerGroup(msgspec.Struct, frozen=True, kw_only=True):
    """A server group and the servers that were made in it and are there."""

    id: str
    name: str
    policy: str
    members: tuple[str, ...] = ()


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """A server. `task`: what the cloud is doing with it, during which it takes no other call but `delete_server`."""

    id: str
    name: str
    host: str
    flavor_id: str
    port_id: str
    management_port_id: str | None = None
    server_group_id: str | None = None
    image_id: str | None = None
    status: str = "ACTIVE"
    task: str | None = None
    old_host: str | None = None
    old_flavor_id: str | None = None


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """What was done with a server, and under which request id."""

    action: str
    request_id: str


class Credential(msgspec.Struct, frozen=True, kw_only=True):
    """A guest's right to speak to the broker: one of a name, which is its id."""

    id: str
    name: str


Anything = Port | SecurityGroup | Rule | FloatingAddress | Volume | Snapshot | ServerGroup | Server | Credential
Resource = TypeVar("Resource", Port, SecurityGroup, FloatingAddress, Volume, Snapshot, ServerGroup, Server, Credential)


class Shelf(Generic[Resource]):
    """Resources of one kind, found by id and by name, now and as they were a while ago."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._by_id: dict[str, Resource] = {}
        self._by_name: dict[str, dict[str, Resource]] = {}
        self._changes: deque[tuple[float, str, Resource | None]] = deque()  # what was there before each change

    def get(self, resource_id: str) -> Resource | None:
        """The resource."""
        return self._by_id.get(resource_id)

    def found(self, resource_id: str) -> Resource:
        """The resource. Raises `CloudAnswerError`."""
        resource = self.get(resource_id)
        if resource is None:
            raise CloudAnswerError(404, f"there is no {self.kind} {resource_id}")
        return resource

    def named(self, name: str | None, age: float = 0.0) -> list[Resource]:
        """Those of the name, or all, in the order in which they were made, as of so many seconds ago."""
        if age:
            return [each for each in self._before(monotonic() - age).values() if name in (None, each.name)]
        return list((self._by_id if name is None else self._by_name.get(name, {})).values())

    def put(self, resource: Resource) -> None:
        """It is there, and so."""
        self._changed(resource.id)
        self._by_id[resource.id] = resource
        self._by_name.setdefault(resource.name, {})[resource.id] = resource

    def drop(self, resource: Resource) -> None:
        """It is gone."""
        self._changed(resource.id)
        del self._by_id[resource.id]
        namesakes = self._by_name[resource.name]
        del namesakes[resource.id]
        if not namesakes:
            del self._by_name[resource.name]

    def _changed(self, resource_id: str) -> None:
        now = monotonic()
        self._changes.append((now, resource_id, self._by_id.get(resource_id)))
        while self._changes[0][0] < now - STALEST * 2:
            self._changes.popleft()

    def _before(self, moment: float) -> dict[str, Resource]:
        known = dict(self._by_id)
        for at, resource_id, before in reversed(self._changes):
            if at <= moment:
                break
            if before is None:
                known.pop(resource_id, None)
            else:
                known[resource_id] = before
        return known
