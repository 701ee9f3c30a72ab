"""What tests make on the lab by hand: the least of each."""

from __future__ import annotations

from typing import Any

from openstack.connection import Connection

MAC = "fa:16:3e:12:34:56"


def port_of(connection: Connection, mark: str, **wanted: Any) -> str:
    """A port in the network of all; its id."""
    network = connection.network.find_network("lab-net", ignore_missing=False)
    return str(connection.network.create_port(name=mark, network_id=network.id, **wanted).id)


def server_of(connection: Connection, mark: str, port_id: str, **wanted: Any) -> str:
    """A server at the port, perhaps not ready yet; its id."""
    made = connection.compute.create_server(
        name=mark,
        flavor_id=connection.compute.find_flavor("lab.tiny", ignore_missing=False).id,
        image_id=connection.image.find_image("lab-image", ignore_missing=False).id,
        networks=[{"port": port_id}],
        **wanted,
    )
    return str(made.id)


def volume_of(connection: Connection, mark: str, **wanted: Any) -> str:
    """A volume of 1 GiB, perhaps not ready yet; its id."""
    return str(connection.block_storage.create_volume(name=mark, size=1, **wanted).id)


def status_of(connection: Connection, server_id: str) -> str:
    """What Nova says of the server."""
    return str(connection.compute.get_server(server_id).status)
