"""What the simulated cloud's lists say, in the words of the port."""

from __future__ import annotations

from collections.abc import Iterable

from aggregates.resources import DELETING, Resource, ResourceKind, instance_named
from engine.clouds.simulated.resources import Port, Server, Volume


def resources(servers: Iterable[Server], ports: Iterable[Port], volumes: Iterable[Volume]) -> list[Resource]:
    """All that was listed. This cloud knows no projects, and tells whose something is by its name alone."""
    return [
        *(_server(each) for each in servers),
        *(
            Resource(
                kind=ResourceKind.PORT,
                id=each.id,
                name=each.name,
                instance_id=instance_named(each.name),
                server_id=each.server_id,
            )
            for each in ports
        ),
        *(
            Resource(
                kind=ResourceKind.VOLUME,
                id=each.id,
                name=each.name,
                instance_id=instance_named(each.name),
                status=each.status,
                size=each.size,
                server_id=each.server_id,
            )
            for each in volumes
        ),
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
