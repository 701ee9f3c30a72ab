"""Whether a cloud is what the configuration says, and whether we may do there what we must: for whoever sets it up.

It looks, and says what is missing. It changes nothing, unless it is told to try: then it makes a port and removes it,
which is the only way to learn whether Neutron lets us choose a MAC address.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from uuid import UUID, uuid4

import msgspec
from openstack.connection import Connection

from aggregates.catalogue import Datastore
from engine.clouds.fences import port_mac
from engine.clouds.openstack import marks
from engine.clouds.openstack.answers import sort_answer
from engine.clouds.openstack.config import CloudConfig
from engine.clouds.openstack.connection import cinder, connect, glance, neutron, nova
from engine.clouds.openstack.images import DATASTORE, PAGE, VERSION
from engine.clouds.openstack.offers import fits
from engine.clouds.openstack.regions import check_names

# What the least version of each service brings: user data in a rebuild (and, before it, hosts of a migration and tags),
# and extending a volume that is in use.
COMPUTE = (2, 57)
BLOCK_STORAGE = (3, 42)


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """One thing looked at. `needed`: without it the cloud cannot be used; else something cannot be offered."""

    check: str
    ok: bool
    says: str
    needed: bool = True


Check = Callable[[Connection], Found]


def check(config: CloudConfig, datastores: Mapping[str, Datastore], *, tries: bool) -> Iterator[Found]:
    """Everything, one after the other, of each region; nothing further of one that lets us in nowhere.

    Raises `ConfigError`.
    """
    connections = [connect(config), *(connect(config.within(name)) for name in config.regions)]
    try:
        own = connections[0].config.region_name or None
        check_names(own, config.regions)
        yield _timing(config)
        for connection, name in zip(connections, (own, *config.regions), strict=True):
            region = config.within(name) if name in config.regions else config
            for found in _region(connection, region, datastores, tries=tries):
                named = f"{name}: {found.check}" if config.regions else found.check
                yield msgspec.structs.replace(found, check=named)
    finally:
        for connection in connections:
            connection.close()


def _region(
    connection: Connection, config: CloudConfig, datastores: Mapping[str, Datastore], *, tries: bool
) -> Iterator[Found]:
    entry = _looked("credentials", _credentials, connection)
    yield entry
    if entry.ok:
        for name, look in _checks(config, datastores, tries=tries):
            yield _looked(name, look, connection)


def _checks(config: CloudConfig, datastores: Mapping[str, Datastore], *, tries: bool) -> Iterator[tuple[str, Check]]:
    networks, servers, volumes = config.networks, config.servers, config.volumes
    yield "compute", partial(_version, service="compute", least=COMPUTE)
    yield "block storage", partial(_version, service="block_storage", least=BLOCK_STORAGE)
    yield "tenants' network", partial(_network, name=networks.tenant, external=False)
    if networks.management is not None:
        yield "management network", partial(_network, name=networks.management, external=False)
    yield "external network", partial(_external, name=networks.external)
    for group in networks.security_groups:
        yield f"security group {group}", partial(_security_group, name=group)
    if servers.key_name is not None:
        yield f"key pair {servers.key_name}", partial(_key_pair, name=servers.key_name)
    yield "flavors", partial(_flavors, patterns=servers.flavors)
    if volumes.default_type is not None:
        yield f"volume type {volumes.default_type}", partial(_volume_type, name=volumes.default_type)
    yield "images", partial(_images, config=config, datastores=datastores)
    yield "hosts", _hosts
    yield "room", _room
    if tries:
        yield "MAC addresses", partial(_chosen_mac, network=networks.tenant)


def _looked(name: str, look: Check, connection: Connection) -> Found:
    try:
        return look(connection)
    except Exception as error:  # noqa: BLE001 - every cause is told, and the next thing looked at
        return Found(check=name, ok=False, says=sort_answer(name, error, changes=False).message)


def _timing(config: CloudConfig) -> Found:
    call, latest = config.timing.call, config.timing.latest_effect
    says = f"an answer is waited for for {call:g} s, and a call may act until {latest:g} s after it began"
    return Found(check="timing", ok=latest >= call, says=says)


def _credentials(connection: Connection) -> Found:
    connection.authorize()
    project, region = connection.current_project, connection.config.get_region_name()
    where = f"project {project.name or project.id}" + (f", region {region}" if region else "")
    return Found(check="credentials", ok=True, says=f"accepted, for {where}")


def _version(connection: Connection, service: str, least: tuple[int, int]) -> Found:
    name = service.replace("_", " ")
    data = getattr(connection, service).get_endpoint_data()
    latest = data and data.max_microversion
    wanted = ".".join(map(str, least))
    if not latest:
        return Found(check=name, ok=False, says=f"tells no version; {wanted} is needed")
    told = ".".join(map(str, latest))
    return Found(check=name, ok=latest >= least, says=f"has version {told}; {wanted} is needed")


def _network(connection: Connection, name: str, external: bool) -> Found:
    what = "external network" if external else "network"
    found = neutron(connection).find_network(name)
    if found is None:
        return Found(check=what, ok=False, says=f"there is no network {name}, or it is not for our project")
    if external and not found.is_router_external:
        return Found(check=what, ok=False, says=f"network {name} is not external: no floating address comes from it")
    if not external and not found.subnet_ids:
        return Found(check=what, ok=False, says=f"network {name} has no subnet, so a port gets no address")
    return Found(check=what, ok=True, says=f"{found.name} {found.id}")


def _external(connection: Connection, name: str | None) -> Found:
    if name is None:
        return Found(
            check="external network", ok=False, needed=False, says="none is named, so no instance can be public"
        )
    return _network(connection, name, external=True)


def _security_group(connection: Connection, name: str) -> Found:
    found = neutron(connection).find_security_group(name)
    says = found.id if found is not None else "is not there"
    return Found(check=f"security group {name}", ok=found is not None, says=says)


def _key_pair(connection: Connection, name: str) -> Found:
    found = nova(connection).find_keypair(name)
    says = "is there" if found is not None else "is not there: key pairs belong to the user, not to the project"
    return Found(check=f"key pair {name}", ok=found is not None, says=says)


def _flavors(connection: Connection, patterns: tuple[str, ...]) -> Found:
    there = [each.name for each in nova(connection).flavors()]
    offered = sorted(name for name in there if fits(name, patterns))
    says = f"{', '.join(offered)}" if offered else f"none of {', '.join(sorted(there)) or 'no flavors'} is offered"
    return Found(check="flavors", ok=bool(offered), says=says)


def _volume_type(connection: Connection, name: str) -> Found:
    found = cinder(connection).find_type(name)
    return Found(check=f"volume type {name}", ok=found is not None, says=found.id if found else "is not there")


def _images(connection: Connection, config: CloudConfig, datastores: Mapping[str, Datastore]) -> Found:
    images = {each.id: each.properties or {} for each in glance(connection).images(status="active", limit=PAGE)}
    lost = sorted(named for named, image_id in config.servers.images.items() if image_id not in images)
    if lost:
        return Found(
            check="images", ok=False, says=f"the images named for {', '.join(lost)} are not there, or not active"
        )
    told = {(each.get(DATASTORE), each.get(VERSION)) for each in images.values() if DATASTORE in each}
    told |= {(named.partition("/")[0], named.partition("/")[2]) for named in config.servers.images}
    offered = sorted(f"{manager} {version}" for manager, version in told if manager in datastores)
    says = ", ".join(offered) or f"no active image has the properties {DATASTORE} and {VERSION}, and none is named"
    return Found(check="images", ok=bool(offered), says=says)


def _hosts(connection: Connection) -> Found:
    """That servers can be moved is a right of administrators, unless a policy gives it to us; so is seeing hosts."""
    try:
        hosts = sorted(each.host for each in nova(connection).services(binary="nova-compute"))
    except Exception as error:  # noqa: BLE001 - mostly a refusal
        refusal = sort_answer("hosts", error, changes=False).message
        says = f"may not be seen, so nobody can say to which an instance moves: {refusal}"
        return Found(check="hosts", ok=False, needed=False, says=says)
    return Found(check="hosts", ok=len(hosts) > 1, needed=False, says=", ".join(hosts) or "there are none")


def _room(connection: Connection) -> Found:
    limits = nova(connection).get_limits().absolute
    left = {
        "instances": _left(limits.instances, limits.instances_used),
        "MiB of memory": _left(limits.total_ram, limits.total_ram_used),
    }
    quota = cinder(connection).get_limits().absolute
    left["volumes"] = _left(quota.max_total_volumes, quota.total_volumes_used)
    left["GiB"] = _left(quota.max_total_volume_gigabytes, quota.total_gigabytes_used)
    says = ", ".join(f"{'unlimited' if number is None else number} {what}" for what, number in left.items())
    return Found(check="room", ok=all(number is None or number > 0 for number in left.values()), says=f"{says} left")


def _left(limit: int, used: int) -> int | None:
    return None if limit < 0 else limit - used


def _chosen_mac(connection: Connection, network: str) -> Found:
    nobody: UUID = uuid4()
    network_id = neutron(connection).find_network(network, ignore_missing=False).id
    port = neutron(connection).create_port(
        network_id=network_id,
        name=f"holdfast-check-{nobody}",
        description=marks.description(nobody),
        mac_address=port_mac(nobody),
    )
    neutron(connection).delete_port(port.id)
    return Found(check="MAC addresses", ok=port.mac_address == port_mac(nobody), says="can be chosen for ports")
