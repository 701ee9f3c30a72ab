"""What Nova, Neutron and Cinder list, in the words of the port. What has our name without our mark is nobody's."""

from __future__ import annotations

from openstack.block_storage.v3._proxy import Proxy as Cinder
from openstack.block_storage.v3.snapshot import Snapshot
from openstack.block_storage.v3.volume import Volume
from openstack.compute.v2._proxy import Proxy as Nova
from openstack.compute.v2.server import Server
from openstack.compute.v2.server_group import ServerGroup
from openstack.network.v2._proxy import Proxy as Neutron
from openstack.network.v2.floating_ip import FloatingIP
from openstack.network.v2.port import Port
from openstack.network.v2.security_group import SecurityGroup

from aggregates.resources import DELETING, Resource, ResourceKind, instance_named, port_kind, resource_name
from engine.clouds.openstack import marks
from engine.clouds.openstack.calls import Service
from engine.clouds.openstack.servers import GONE, host_of, listed


async def resources(nova: Service[Nova], neutron: Service[Neutron], cinder: Service[Cinder]) -> list[Resource]:
    """All that the project has of each, one list after the other."""
    servers = await nova.look("list_servers", listed)
    # Of what is Neutron's, an administrator would be shown that of all projects.
    addresses = await neutron.look("list_ips", lambda it: list(it.ips(project_id=it.get_project_id())))
    ports = await neutron.look("list_ports", lambda it: list(it.ports(project_id=it.get_project_id())))
    volumes = await cinder.look("list_volumes", lambda it: list(it.volumes()))
    snapshots = await cinder.look("list_snapshots", lambda it: list(it.snapshots()))
    groups = await neutron.look(
        "list_security_groups", lambda it: list(it.security_groups(project_id=it.get_project_id()))
    )
    server_groups = await nova.look("list_server_groups", lambda it: list(it.server_groups()))
    return [
        *(server(each) for each in servers if each.status not in GONE),
        *(address(each) for each in addresses),
        *(port(each) for each in ports),
        *(snapshot(each) for each in snapshots),
        *(volume(each) for each in volumes),
        *(security_group(each) for each in groups),
        *(server_group(each) for each in server_groups),
    ]


def server(found: Server) -> Resource:
    """The server, as the port words it."""
    return Resource(
        kind=ResourceKind.SERVER,
        id=found.id,
        name=found.name,
        status=DELETING if found.task_state == DELETING else found.status,
        flavor_id=(found.flavor or {}).get("id"),
        host=host_of(found) or None,
        instance_id=marks.instance((found.metadata or {}).get(marks.INSTANCE)),
        project=(found.metadata or {}).get(marks.PROJECT),
    )


def address(found: FloatingIP) -> Resource:
    """The floating address. Neutron gives it no name, so one that bears our mark is named as we would name it."""
    instance_id = marks.described(found.description)
    return Resource(
        kind=ResourceKind.FLOATING_ADDRESS,
        id=found.id,
        name="" if instance_id is None else resource_name(instance_id),
        instance_id=instance_id,
        status=found.status or "",
        port_id=found.port_id or None,
    )


def port(found: Port) -> Resource:
    """One of an instance's two ports."""
    return Resource(
        kind=port_kind(found.name or ""),
        id=found.id,
        name=found.name or "",
        instance_id=marks.described(found.description),
        status=found.status or "",
        server_id=found.device_id or None,
    )


def volume(found: Volume) -> Resource:
    """The volume; of several servers that have it, the first."""
    holders = [each["server_id"] for each in found.attachments or ()]
    return Resource(
        kind=ResourceKind.VOLUME,
        id=found.id,
        name=found.name or "",
        status=found.status,
        size=found.size,
        server_id=holders[0] if holders else None,
        instance_id=marks.instance((found.metadata or {}).get(marks.INSTANCE)),
        project=(found.metadata or {}).get(marks.PROJECT),
    )


def snapshot(found: Snapshot) -> Resource:
    """The snapshot of a volume."""
    return Resource(
        kind=ResourceKind.SNAPSHOT,
        id=found.id,
        name=found.name or "",
        status=found.status,
        size=found.size,
        instance_id=marks.instance((found.metadata or {}).get(marks.INSTANCE)),
        project=(found.metadata or {}).get(marks.PROJECT),
    )


def security_group(found: SecurityGroup) -> Resource:
    """The security group."""
    return Resource(
        kind=ResourceKind.SECURITY_GROUP,
        id=found.id,
        name=found.name or "",
        instance_id=marks.described(found.description),
    )


def server_group(found: ServerGroup) -> Resource:
    """The server group, which can bear no mark."""
    name = found.name or ""
    return Resource(
        kind=ResourceKind.SERVER_GROUP,
        id=found.id,
        name=name,
        instance_id=instance_named(name, ResourceKind.SERVER_GROUP),
    )
