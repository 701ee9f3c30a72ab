"""What lies on the local cloud's disk, in the words of the port. What is being made or moved may be missing from it."""

from __future__ import annotations

from aggregates.resources import DELETING, Resource, ResourceKind, instance_named
from engine.clouds.local.ports import Ports
from engine.clouds.local.records import Power, Server
from engine.clouds.local.servers import Servers
from engine.clouds.local.volumes import Volumes


def resources(servers: Servers, ports: Ports, volumes: Volumes) -> list[Resource]:
    """All that has a record."""
    hosted = [(drive.host, server) for drive in servers.drives() if (server := drive.server()) is not None]
    by_port = {server.port_id: server.id for _, server in hosted}
    by_volume = {server.volume_id: server.id for _, server in hosted}
    return [
        *(_server(host, server, servers.status(server)) for host, server in hosted),
        *(
            Resource(
                kind=ResourceKind.PORT,
                id=port.id,
                name=port.name,
                instance_id=instance_named(port.name),
                project=port.project,
                server_id=by_port.get(port.id),
            )
            for port in ports.all()
        ),
        *(
            Resource(
                kind=ResourceKind.VOLUME,
                id=volume.id,
                name=volume.name,
                instance_id=instance_named(volume.name),
                project=volume.project,
                status="in-use" if volume.id in by_volume else "available",
                size=volume.size,
                server_id=by_volume.get(volume.id),
            )
            for volume in volumes.all()
        ),
    ]


def _server(host: str, server: Server, status: str) -> Resource:
    return Resource(
        kind=ResourceKind.SERVER,
        id=server.id,
        name=server.name,
        instance_id=server.instance_id,
        project=server.project,
        status=DELETING if server.power is Power.DELETED else status,
        flavor_id=server.flavor_id,
        host=host,
    )
