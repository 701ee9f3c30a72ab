"""Ports: each has a loopback address of its own, which no other port of this cloud has.

Nothing keeps programs outside this cloud from the same address: it is tried before it is given out, once.
"""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path
from uuid import uuid4

from aggregates.effects import EnsurePort, PortAbsent
from engine.clouds.local import records
from engine.clouds.local.claims import Claim, Claims
from engine.clouds.local.records import Port
from engine.clouds.port import FinalError, TransientError, check_may_change

_PROBED = (5432, 3306, 6379)
_CANDIDATES = 64


class Ports:
    """The ports of one local cloud. Every call is made under the lock of the port's name."""

    def __init__(self, directory: Path, claims: Claims) -> None:
        self._directory = directory
        self._claims = claims

    def prepare(self) -> None:
        """Make the directory."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def find(self, port_id: str) -> Port | None:
        """The port of this id."""
        return records.read(self._directory / f"{port_id}.json", Port)

    def get(self, port_id: str) -> Port:
        """The port of this id. Raises `FinalError`."""
        port = self.find(port_id)
        if port is None:
            raise FinalError("not_found", f"there is no port {port_id}")
        return port

    def all(self) -> list[Port]:
        """Every port."""
        found = (records.read(path, Port) for path in self._directory.glob("[!.]*.json"))
        return [port for port in found if port is not None]

    def ensure(self, wanted: EnsurePort) -> Port:
        """The port of this name; made if there is none."""
        port_id = self._claims.take(Claim.PORT, wanted.name, str(uuid4()))
        port = self.find(port_id)
        if port is None:
            port = Port(id=port_id, name=wanted.name, project=wanted.project, address=self._address(port_id))
            records.write(self._directory / f"{port_id}.json", port)
        return port

    def remove(self, unwanted: PortAbsent) -> None:
        """No port of this name or id is left. Raises `TransientError` while a server has it."""
        ids = {unwanted.port_id, self._claims.holder(Claim.PORT, unwanted.name)} - {None, ""}
        for port_id in map(str, ids):
            holder = self._claims.holder(Claim.NIC, port_id)
            if holder is not None:
                raise TransientError("in_use", f"server {holder} has port {port_id}; delete the server first")
            if self._claims.name(Claim.PORT, port_id) is not None:
                check_may_change()
            records.remove(self._directory / f"{port_id}.json")
            self._claims.release(Claim.ADDRESS, port_id)
            self._claims.release(Claim.PORT, port_id)

    def _address(self, port_id: str) -> str:
        """Candidates follow from the id, so that an interrupted search finds again what it claimed."""
        for attempt in range(_CANDIDATES):
            a, b, c = hashlib.sha256(f"{port_id}/{attempt}".encode()).digest()[:3]
            address = f"127.{1 + a % 254}.{b}.{1 + c % 254}"
            if self._claims.take(Claim.ADDRESS, address, port_id) == port_id and _is_free(address):
                self._claims.release(Claim.ADDRESS, port_id, but=address)
                return address
        raise TransientError(
            "no_address",
            f"none of {_CANDIDATES} loopback addresses tried for port {port_id} can be listened on at "
            f"{', '.join(map(str, _PROBED))}; this cloud needs a system where all of 127.0.0.0/8 is local",
        )


def _is_free(address: str) -> bool:
    for number in _PROBED:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, number))
            except OSError:
                return False
    return True
