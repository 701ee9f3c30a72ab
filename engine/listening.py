"""Where the embedded broker listens: on the loopback in clear, or on an address of the network under TLS.

There is no third way: machines get secrets over this connection, so nothing of it crosses a network in clear. All
users, those of this machine too, come by the one address.
"""

from __future__ import annotations

import ipaddress
import json
import socket
from pathlib import Path
from typing import Self

import msgspec

from engine.broker import BrokerError

LOOPBACK = "127.0.0.1"


class PortTakenError(BrokerError):
    """Somebody else listens there, or the address is not this machine's."""

    def __init__(self, message: str) -> None:
        super().__init__("broker_port_taken", message)


class Listening(msgspec.Struct, frozen=True, kw_only=True):
    """An address or name of this machine, as others call it; beyond the loopback with certificate, key and CA."""

    host: str = LOOPBACK
    cert: Path | None = None
    key: Path | None = None
    ca: Path | None = None

    @classmethod
    def on(cls, host: str | None, cert: Path | None, key: Path | None, ca: Path | None) -> Self:
        """As an operator says it. Raises `BrokerError` if it is not whole, or would talk in clear over a network."""
        made = cls(host=host or LOOPBACK, cert=_absolute(cert), key=_absolute(key), ca=_absolute(ca))
        given = [file for file in (made.cert, made.key, made.ca) if file is not None]
        if len(given) not in (0, 3):
            raise BrokerError(
                "broker_tls_incomplete",
                "TLS for the embedded broker needs all of its certificate, its key and the CA that agents shall trust: "
                "say --broker-cert, --broker-key and --broker-ca",
            )
        if not given and not _is_loopback(made.host):
            raise BrokerError(
                "broker_without_tls",
                f"the embedded broker does not listen on {made.host} without TLS: say --broker-cert, --broker-key and "
                "--broker-ca, or leave --broker-listen away",
            )
        for file in given:
            try:
                file.open("rb").close()
            except OSError as error:
                raise BrokerError("credentials_unreadable", f"{file} cannot be read ({error.strerror})") from None
        return made

    def url(self, port: int) -> str:
        """Where everybody finds it."""
        return f"{'nats' if self.cert is None else 'tls'}://{self.host}:{port}"

    def config(self, port: int) -> str:
        """The part of the server's configuration."""
        listen = f'listen: "{self.host}:{port}"'
        if self.cert is None:
            return listen
        cert, key = json.dumps(str(self.cert)), json.dumps(str(self.key))
        return f"{listen}\ntls {{ cert_file: {cert}, key_file: {key}, timeout: 5 }}"

    def check_free(self, port: int) -> None:
        """Raises `PortTakenError`."""
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.host, port))
            except OSError as error:
                raise PortTakenError(
                    f"port {port} of {self.host}, where agents and publishers look for the broker, cannot be had "
                    f"({error.strerror}); stop the program that has it, or start with another port"
                ) from None

    def answers(self, port: int) -> bool:
        """Whether somebody takes connections there."""
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex((self.host, port)) == 0


def _absolute(file: Path | None) -> Path | None:
    return None if file is None else file.absolute()


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(socket.gethostbyname(host))
    except (OSError, ValueError):
        address = None
    if address is None or address.is_unspecified:
        raise BrokerError(
            "broker_address_unknown",
            f"{host} is no address by which machines find this one; say with --broker-listen which they shall use",
        )
    return address.is_loopback
