"""Fills the lab by the services' own interfaces. What is there already is left alone.

fill.py identity TYPE=URL...    projects, users, roles, endpoints
fill.py content HOST...         flavors, images, the volume type, networks, once the hosts are up
"""

import os
import sys
import time
from collections.abc import Callable

import openstack
from openstack.connection import Connection
from openstack.exceptions import SDKException

PASSWORD = os.environ["PASSWORD"]
PATIENCE = float(os.environ.get("OS_LAB_TIMEOUT", "180"))  # seconds
DAEMONS = {
    "placement": "placement",
    "image": "glance",
    "compute": "nova",
    "block-storage": "cinder",
    "network": "neutron",
    "object-store": "swift",
}
USERS = {  # each in the project of its name, with these roles there
    "holdfast": ("member", "holdfast"),
    "demo": ("member",),
    "other": ("member",),
}
UNLIMITED = {  # for Holdfast's project: its tenants share these quotas
    "compute": ("instances", "cores", "ram", "server_groups"),
    "block_storage": ("volumes", "gigabytes"),
    "network": ("ports", "security_groups", "security_group_rules", "floating_ips"),
}
FLAVORS = {  # megabytes, processors, gigabytes
    "lab.tiny": (64, 1, 1),
    "lab.small": (512, 1, 5),
    "lab.medium": (1024, 2, 10),
    "lab.impossible": (64, 1, 1),
    "small": (256, 1, 1),  # these two are what examples of commands ask for
    "large": (512, 2, 1),
}
IMAGES = ("lab-image", "lab-image-2")


def until(what: str, reached: Callable[[], bool]) -> None:
    """Wait until it is so."""
    end = time.monotonic() + PATIENCE
    failed = ""
    while time.monotonic() < end:
        try:
            if reached():
                return
        except SDKException as error:
            failed = str(error)
        time.sleep(0.2)
    sys.exit(f"[lab] {what}: not after {PATIENCE:.0f} s. {failed}")


def identity(lab: Connection, urls: dict[str, str]) -> None:
    """Who there is, and where the services are."""
    keystone = lab.identity
    roles = {role.name: role for role in keystone.roles()}
    users = {user.name: user for user in keystone.users()}
    projects = {project.name: project for project in keystone.projects()}

    def grant(project: str, user: str, *names: str) -> None:
        if project not in projects:
            projects[project] = keystone.create_project(name=project, domain_id="default")
        if user not in users:
            users[user] = keystone.create_user(name=user, domain_id="default", password=PASSWORD)
        for name in names:
            if name not in roles:
                roles[name] = keystone.create_role(name=name)
            keystone.assign_project_role_to_user(projects[project], users[user], roles[name])

    for daemon in DAEMONS.values():
        grant("service", daemon, "admin", "service")
    for user, names in USERS.items():
        grant(user, user, *names)

    services = {service.type: service for service in keystone.services()}
    known = {endpoint.service_id for endpoint in keystone.endpoints()}
    for kind, url in urls.items():
        service = services.get(kind) or keystone.create_service(name=DAEMONS[kind], type=kind)
        for interface in () if service.id in known else ("public", "internal", "admin"):
            keystone.create_endpoint(service_id=service.id, interface=interface, url=url, region_id="RegionOne")


def content(lab: Connection, hosts: set[str]) -> None:
    """What an operator has laid ready."""
    until(
        "the compute hosts are in Placement",
        lambda: hosts <= {each.name for each in lab.placement.resource_providers()},
    )

    flavors = {flavor.name for flavor in lab.compute.flavors(is_public=None)}
    for name, (ram, vcpus, disk) in FLAVORS.items():
        if name not in flavors:
            lab.compute.create_flavor(name=name, ram=ram, vcpus=vcpus, disk=disk)
    # It asks for a device that no host has.
    lab.compute.create_flavor_extra_specs(lab.compute.find_flavor("lab.impossible"), {"resources:VGPU": "1"})

    for name in IMAGES:
        if lab.image.find_image(name) is None:
            lab.create_image(
                name, data=b"\0" * 65536, disk_format="raw", container_format="bare", visibility="public", wait=True
            )
    if lab.block_storage.find_type("files") is None:
        lab.block_storage.create_type(name="files", extra_specs={"volume_backend_name": "files"})
    project = lab.identity.find_project("holdfast", ignore_missing=False).id
    lab.compute.update_quota_set(project, **dict.fromkeys(UNLIMITED["compute"], -1))
    lab.block_storage.update_quota_set(project, **dict.fromkeys(UNLIMITED["block_storage"], -1))
    lab.network.update_quota(project, **dict.fromkeys(UNLIMITED["network"], -1))
    _networks(lab)


def _networks(lab: Connection) -> None:
    """One that all projects share, one outside, a router between them."""
    # Without DHCP the config drive has the address, which is well, since no agent runs.
    subnets = {"ip_version": 4, "enable_dhcp": False}
    shared = lab.network.find_network("lab-net") or lab.network.create_network(name="lab-net", is_shared=True)
    outside = lab.network.find_network("lab-public") or lab.network.create_network(
        name="lab-public", is_router_external=True, provider_network_type="flat", provider_physical_network="public"
    )
    inner = lab.network.find_subnet("lab-subnet") or lab.network.create_subnet(
        name="lab-subnet", network_id=shared.id, cidr="10.20.0.0/20", **subnets
    )
    if lab.network.find_subnet("lab-public-subnet") is None:
        lab.network.create_subnet(name="lab-public-subnet", network_id=outside.id, cidr="198.51.100.0/24", **subnets)
    if lab.network.find_router("lab-router") is None:
        router = lab.network.create_router(name="lab-router", external_gateway_info={"network_id": outside.id})
        lab.network.add_interface_to_router(router, subnet_id=inner.id)


def main(step: str, *arguments: str) -> None:
    """Fill a part."""
    lab = openstack.connect(cloud="lab-admin")
    if step == "identity":
        until("Keystone lets us in", lambda: bool(lab.authorize()))
        identity(lab, dict(argument.split("=", 1) for argument in arguments))
    else:
        content(lab, set(arguments))


if __name__ == "__main__":
    main(*sys.argv[1:])
