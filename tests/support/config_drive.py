"""A config drive as Nova makes one: user data, and the network with the instance's port and one for management."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import UUID

from engine.clouds.fences import port_mac


def write_config_drive(directory: Path, instance_id: UUID, user_data: bytes, address: str) -> Path:
    """The directory under which it is mounted."""
    latest = directory / "openstack" / "latest"
    latest.mkdir(parents=True)
    (latest / "user_data").write_bytes(user_data)
    network = {
        "links": [
            {"id": "tap1", "ethernet_mac_address": "fa:16:3e:00:00:01", "type": "ovs"},
            {"id": "tap2", "ethernet_mac_address": port_mac(instance_id), "type": "ovs"},
        ],
        "networks": [
            {"id": "network0", "link": "tap1", "type": "ipv4", "ip_address": "192.0.2.7"},
            {"id": "network1", "link": "tap2", "type": "ipv4", "ip_address": address},
        ],
    }
    (latest / "network_data.json").write_text(json.dumps(network))
    return directory
