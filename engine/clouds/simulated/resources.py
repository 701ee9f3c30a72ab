"""What the far side holds and says: its resources, the entries of its ledger, and what each call answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from aggregates.catalogue import Catalogue
from engine.clouds.simulated.faults import Call


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
    server_id: str | None = None


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    """A volume: `creating`, `available`, `in-use`, `deleting`."""

    id: str
    name: str
    size: int
    status: str = "available"
    server_id: str | None = None


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """A server. `task`: what the cloud is doing with it, during which it takes no other call but `delete_server`."""

    id: str
    name: str
    host: str
    flavor_id: str
    port_id: str
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


# What each call answers; a call with another name is unknown.
ANSWERS: Mapping[str, Any] = {
    "get_catalogue": Catalogue,
    "list_ports": list[Port],
    "get_port": Port,
    "create_port": Port,
    "delete_port": None,
    "list_volumes": list[Volume],
    "get_volume": Volume,
    "create_volume": Volume,
    "extend_volume": None,
    "delete_volume": None,
    "attach_volume": None,
    "list_servers": list[Server],
    "get_server": Server,
    "create_server": Server,
    "delete_server": None,
    "reboot_server": None,
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
