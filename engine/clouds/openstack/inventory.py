"""What Nova, Neutron and Cinder list, in the words of the port. What has our name without our mark is nobody's."""

from __future__ import annotations

from openstack.block_storage.v3._proxy import Proxy as Cinder
from openstack.block_storage.v3.volume import Volume
from openstack.compute.v2._proxy import Proxy as Nova
from openstack.compute.v2.server import Server
from openstack.network.v2._proxy import Proxy as Neutron
from openstack.network.v2.port import Port

from aggregates.resources import DELETING, Resource, ResourceKind
from engine.clouds.openstack import marks
from engine.clouds.openstack.calls import Service
from engine.clouds.openstack.servers import GONE, host_of, listed


async def resources(nova: Service[Nova], neutron: Service[Neutron], cinder: Service[Cinder]) -> list[Resource]:
    """All that the project has of each, one list after the other."""
    servers = await nova.look("list_servers", listed)
    # An administrator would be shown the ports of all projects.
    ports = await neutron.look("list_ports", lambda it: list(it.ports(project_id=it.get_project_id())))
    volumes = await cinder.look("list_volumes", lambda it: list(it.volumes()))
    return [
        *(_server(each) for each in servers if each.status not in GONE),
        *(_port(each) for each in ports),
        *(_volume(each) for each in volumes),
    ]


def _server(server: Server) -> Resource:
    return Resource(
        kind=ResourceKind.SERVER,
        id=server.id,
        name=server.name,
        status=DELETING if server.task_state == DELETING else server.status,
        flavor_id=(server.flavor or {}).get("id"),
        host=host_of(server) or None,
        instance_id=marks.instance((server.metadata or {}).get(marks.INSTANCE)),
        project=(server.metadata or {}).get(marks.PROJECT),
    )


def _port(port: Port) -> Resource:
    return Resource(
        kind=ResourceKind.PORT,
        id=port.id,
        name=port.name or "",
        instance_id=marks.described(port.description),
        status=port.status or "",
        server_id=port.device_id or None,
    )


def _volume(volume: Volume) -> Resource:
    holders = [each["server_id"] for each in volume.attachments or ()]
    return Resource(
        kind=ResourceKind.VOLUME,
        id=volume.id,
        name=volume.name or "",
        status=volume.status,
        size=volume.size,
        server_id=holders[0] if holders else None,
        instance_id=marks.instance((volume.metadata or {}).get(marks.INSTANCE)),
        project=(volume.metadata or {}).get(marks.PROJECT),
    )
