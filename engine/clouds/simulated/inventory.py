"""What the simulated cloud's lists say, in the words of the port."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from aggregates.resources import DELETING, Resource, ResourceKind, instance_named, port_kind
from engine.clouds.simulated.calls import Calls
from engine.clouds.simulated.resources import (
    FloatingAddress,
    Port,
    SecurityGroup,
    Server,
    ServerGroup,
    Snapshot,
    Volume,
)


async def resources(calls: Calls) -> list[Resource]:
    """All that it has of each, one list after the other.

    This cloud knows no projects, and tells whose something is by its name alone.
    """
    servers: Iterable[Server] = await calls.look("list_servers")
    addresses: Iterable[FloatingAddress] = await calls.look("list_floating_addresses")
    ports: Iterable[Port] = await calls.look("list_ports")
    volumes: Iterable[Volume] = await calls.look("list_volumes")
    snapshots: Iterable[Snapshot] = await calls.look("list_snapshots")
    groups: Iterable[SecurityGroup] = await calls.look("list_security_groups")
    server_groups: Iterable[ServerGroup] = await calls.look("list_server_groups")
    return [
        *(_server(each) for each in servers),
        *(_address(each) for each in addresses),
        *(_port(each) for each in ports),
        *(_named(ResourceKind.SNAPSHOT, each, each.status) for each in snapshots),
        *(_volume(each) for each in volumes),
        *(_named(ResourceKind.SECURITY_GROUP, each) for each in groups),
        *(_named(ResourceKind.SERVER_GROUP, each) for each in server_groups),
    ]


def _server(server: Server) -> Resource:
    return Resource(
        kind=ResourceKind.SERVER,
        id=server.id,
        name=server.name,
        instance_id=instance_named(server.name),
        status=DELETING if server.task == DELETING else server.status,
        flavor_id=server.flavor_id,
        host=server.host,
    )


def _address(address: FloatingAddress) -> Resource:
    return msgspec.structs.replace(_named(ResourceKind.FLOATING_ADDRESS, address), port_id=address.port_id)


def _port(port: Port) -> Resource:
    kind = port_kind(port.name)
    return Resource(
        kind=kind,
        id=port.id,
        name=port.name,
        instance_id=instance_named(port.name, kind),
        server_id=port.server_id,
    )


def _volume(volume: Volume) -> Resource:
    return Resource(
        kind=ResourceKind.VOLUME,
        id=volume.id,
        name=volume.name,
        instance_id=instance_named(volume.name),
        status=volume.status,
        size=volume.size,
        server_id=volume.server_id,
    )


def _named(
    kind: ResourceKind, found: FloatingAddress | Snapshot | SecurityGroup | ServerGroup, status: str = ""
) -> Resource:
    return Resource(
        kind=kind, id=found.id, name=found.name, instance_id=instance_named(found.name, kind), status=status
    )
