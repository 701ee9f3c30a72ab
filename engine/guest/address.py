"""The address of a machine: that of the network interface whose MAC is the instance's port's.

It is asked of the system, and of the config drive where the system has no such interface of its own. Nothing is
chosen by order or by name: a machine may have other interfaces, as for management.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import psutil

from engine.clouds.fences import port_mac
from engine.guest.datastores.base import DatastoreError

_NETWORK = Path("openstack/latest/network_data.json")


def own_address(instance_id: UUID, config_drive: Path | None) -> str:
    """Raises `DatastoreError`."""
    mac = port_mac(instance_id)
    found = _of_interface(mac) or (_of_drive(mac, config_drive / _NETWORK) if config_drive is not None else None)
    if found is None:
        raise DatastoreError(
            "address_unknown",
            f"no network interface has the MAC {mac} of the instance's port and an IPv4 address; see that the network "
            "is up, and that the server has its port",
            transient=True,
        )
    return found


def _of_interface(mac: str) -> str | None:
    for addresses in psutil.net_if_addrs().values():
        by_family = {int(each.family): each.address for each in addresses}
        if by_family.get(int(psutil.AF_LINK), "").lower() == mac:
            return by_family.get(socket.AF_INET)
    return None


def _of_drive(mac: str, network: Path) -> str | None:
    try:
        told: dict[str, Any] = msgspec.json.decode(network.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError):
        return None
    links = {link.get("id") for link in told.get("links", []) if link.get("ethernet_mac_address", "").lower() == mac}
    addresses = (
        n.get("ip_address") for n in told.get("networks", []) if n.get("link") in links and n["type"] == "ipv4"
    )
    return next((address for address in addresses if address), None)
