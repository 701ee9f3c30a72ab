"""What there is in the cloud, and what it was asked for: as the services themselves list it and wrote it down.

The lab's interfaces write each request into a file, so that what was made twice and removed again is seen as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from openstack.connection import Connection

from tests.openstack.proxy import Seen
from tests.openstack.services import Lab
from tests.support.eventually import soon

INTERFACES = ("keystone", "nova-api", "cinder-api", "neutron", "glance")
LOOKS = ("GET", "HEAD")
REFUSED = 400  # the first status of an answer that refuses
ENGINE = "holdfast"  # what the engine's requests begin their User-Agent with


class Holding(NamedTuple):
    """A resource that there is."""

    kind: str
    id: str
    name: str
    status: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name} {self.id} {self.status}".rstrip()


def holdings(admin: Connection, *marks: str) -> list[Holding]:
    """Everything of any project that bears one of the marks, in its name, metadata, tags or description."""
    return [
        Holding(kind, each.id, each.name or "", getattr(each, "status", None) or "")
        for kind, resources in _resources(admin)
        for each in resources
        if any(mark in _said_of(each) for mark in marks)
    ]


def remove(admin: Connection, *marks: str) -> None:
    """Remove everything that bears one of the marks. Returns when nothing is left that the services list."""
    removal: dict[str, Callable[[str], Any]] = {
        "snapshot": admin.block_storage.delete_snapshot,
        "volume": lambda id_: admin.block_storage.delete_volume(id_, force=True),
        "port": admin.network.delete_port,
        "floating ip": admin.network.delete_ip,
        "security group": admin.network.delete_security_group,
        "server group": admin.compute.delete_server_group,
    }
    for each in _of_kind("server", admin, *marks):
        admin.compute.delete_server(each.id)
    soon(lambda: not _of_kind("server", admin, *marks), within=120)  # until then they hold their volumes and ports
    for each in _of_kind("snapshot", admin, *marks):
        removal[each.kind](each.id)
    soon(lambda: not _of_kind("snapshot", admin, *marks))  # until then their volumes stay
    for each in holdings(admin, *marks):
        removal[each.kind](each.id)
    soon(lambda: not holdings(admin, *marks))


def _of_kind(kind: str, admin: Connection, *marks: str) -> list[Holding]:
    return [each for each in holdings(admin, *marks) if each.kind == kind]


def _resources(admin: Connection) -> Iterator[tuple[str, list[Any]]]:
    yield "server", list(admin.compute.servers(all_projects=True))
    yield "volume", list(admin.block_storage.volumes(all_projects=True))
    yield "snapshot", list(admin.block_storage.snapshots(all_projects=True))
    yield "port", list(admin.network.ports())
    yield "floating ip", list(admin.network.ips())
    yield "security group", list(admin.network.security_groups())
    yield "server group", list(admin.compute.server_groups(all_projects=True))


def _said_of(resource: Any) -> str:
    told = (resource.name, getattr(resource, "description", None), resource.get("metadata"), resource.get("tags"))
    return " ".join(str(each) for each in told)


class Request(NamedTuple):
    """One request to an interface: `at` and `seconds` by its own clock, `at` being its begin since 1970."""

    at: float
    service: str
    method: str
    path: str
    status: int
    seconds: float
    agent: str

    @property
    def changes(self) -> bool:
        """Whether it makes, changes or removes something, and was not refused."""
        return self.method not in LOOKS and self.service != "keystone" and self.status < REFUSED


class Requests:
    """The requests since this was made."""

    def __init__(self, lab: Lab) -> None:
        self._files = {name: lab.logs / f"{name}.requests" for name in INTERFACES}
        self._from = {name: path.stat().st_size for name, path in self._files.items()}

    def made(self, agent: str = ENGINE) -> list[Request]:
        """Those of clients whose User-Agent begins so, in the order in which they came."""
        found = [each for name in INTERFACES for each in _read(name, self._files[name], self._from[name])]
        return sorted(each for each in found if each.agent.startswith(agent))


def _read(service: str, path: Path, start: int) -> Iterator[Request]:
    with path.open("rb") as file:
        file.seek(start)
        for line in file.read().decode(errors="replace").splitlines():
            at, method, asked, status, milliseconds, agent = line.split("\t")
            yield Request(int(at) / 1000, service, method, asked, int(status), int(milliseconds) / 1000, agent)


def deeds(requests: Iterable[Request | Seen]) -> Counter[str]:
    """How often each kind of change was made: `create servers`, `delete volumes`, `POST servers/*/action`."""
    return Counter(_deed(each.method, each.path) for each in requests if each.changes and each.status < REFUSED)


def _deed(method: str, path: str) -> str:
    match method, _without_ids(path):
        case "POST", [collection]:
            return f"create {collection}"
        case "DELETE", [collection, "*"]:
            return f"delete {collection}"
        case method, parts:
            return f"{method} {'/'.join(parts)}"


def _without_ids(path: str) -> list[str]:
    """The parts of a path behind its version and project."""
    parts = path.partition("?")[0].strip("/").split("/")[1:]
    if parts and _is_id(parts[0]):
        parts = parts[1:]
    return ["*" if _is_id(part) else part for part in parts]


def _is_id(part: str) -> bool:
    return len(part) >= 32 and set(part) <= set("0123456789abcdef-")
