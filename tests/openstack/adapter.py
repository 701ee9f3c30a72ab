"""The adapter before the lab, each of whose interfaces is behind a door, and one instance's wishes to it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from openstack.config import OpenStackConfig
from openstack.connection import Connection

from aggregates import effects
from aggregates.effects import CloudEffect
from engine import crash_points
from engine.clouds.openstack import CloudConfig, OpenStackCloud
from engine.clouds.openstack.calls import Pauses
from engine.clouds.openstack.config import Networks, Servers, Timing
from engine.clouds.regions import Regions
from engine.guest.datastores.catalogue import KNOWN
from tests.openstack.proxy import Proxy, Seen

USER_DATA = b"#cloud-config\n{}\n"
SERVICES = {"compute": "compute", "block_storage": "block-storage", "network": "network"}  # behind doors


class Enrolment:
    """Whose machines need no credentials, since none is started."""

    async def ensure(self, _: UUID) -> None:
        """Nothing is needed."""

    async def revoke(self, _: UUID) -> None:
        """Nothing was given."""

    async def user_data(self, *_: object) -> bytes:
        """The same for all."""
        return USER_DATA


class Doors:
    """The doors before the services, by openstacksdk's name; `identity` too."""

    def __init__(self, cloud: str, proxies: dict[str, Proxy], directory: Path) -> None:
        self._cloud = cloud
        self._directory = directory
        self.at = proxies
        self.password: str | None = None  # another than the right one
        self.project: str | None = None  # another than the user's own

    def write(self) -> Path:
        """A clouds.yaml in which the entry `doors` leads through them."""
        auth = OpenStackConfig().get_one(cloud=self._cloud).config["auth"]
        auth = {**auth, "auth_url": self.at["identity"].url, "password": self.password or auth["password"]}
        if self.project is not None:
            auth["project_name"] = self.project
        entry = {"auth": auth, "region_name": "RegionOne"}
        entry |= {f"{name}_endpoint_override": self.at[name].url for name in SERVICES}
        path = self._directory / "clouds.json"
        path.write_text(json.dumps({"clouds": {"doors": entry}}))
        return path

    @property
    def seen(self) -> list[Seen]:
        """All requests but those for tokens."""
        return sorted((each for name in SERVICES for each in self.at[name].seen), key=lambda each: each.at)

    def changes(self) -> list[str]:
        """The changes that were asked for and not refused, without ids."""
        return [f"{each.method} {_plain(each.path)}" for each in self.seen if each.changes and each.status < 400]


@asynccontextmanager
async def doors(service: Connection, directory: Path, cloud: str = "lab-service") -> AsyncIterator[Doors]:
    """Doors before the services that the connection is to."""
    urls = {name: str(service.endpoint_for(kind, interface="public")).rstrip("/") for name, kind in SERVICES.items()}
    urls["network"] = urls["network"].removesuffix("/v2.0") + "/v2.0"  # the catalogue may leave the version out
    proxies = {name: Proxy(url) for name, url in urls.items()}
    proxies["identity"] = Proxy(service.config.get_auth_args()["auth_url"])
    for proxy in proxies.values():
        await proxy.open()
    made = Doors(cloud, proxies, directory)
    made.write()
    try:
        yield made
    finally:
        for proxy in proxies.values():
            await proxy.close()


def configured(service: Connection, **given: Any) -> CloudConfig:
    """What the adapter is told: the lab's network, and its image for PostgreSQL 16."""
    image = service.image.find_image("lab-image", ignore_missing=False).id
    settings: dict[str, Any] = {
        "cloud": "doors",
        "networks": Networks(tenant="lab-net", external="lab-public"),
        "servers": Servers(images={"postgresql/16": image}),
        "timing": Timing(latest_effect=5.0, built=240.0, busy=60.0),
        **given,
    }
    return CloudConfig(**settings)


@asynccontextmanager
async def adapter(config: CloudConfig, through: Doors, pauses: Pauses | None = None) -> AsyncIterator[OpenStackCloud]:
    """An adapter, as a process that begins has it."""
    before = os.environ["OS_CLIENT_CONFIG_FILE"]
    os.environ["OS_CLIENT_CONFIG_FILE"] = str(through.write())
    try:
        cloud = OpenStackCloud(config, enrolment=Enrolment(), datastores=KNOWN, pauses=pauses)
    finally:
        os.environ["OS_CLIENT_CONFIG_FILE"] = before
    try:
        yield cloud
    finally:
        await cloud.close()


class Dies(BaseException):
    """The process ends here."""


def dying(point: str, call: str) -> crash_points.Listener:
    """A listener that ends the process at the first such call."""
    met = False

    def listen(at: str, subject: str) -> None:
        nonlocal met
        if not met and (at, subject) == (point, call):
            met = True
            raise Dies

    return listen


class Instance:
    """What one instance wants. `facts` gathers what it got."""

    def __init__(self, service: Connection, cloud: OpenStackCloud | Regions) -> None:
        self.cloud = cloud
        self.id = uuid4()
        self.name = f"holdfast-{self.id}"
        self.group = f"holdfast-sg-{self.id}"
        self.facts: dict[str, Any] = {}
        self._flavors = {each.name: each.id for each in service.compute.flavors()}

    async def pay(self, effect: CloudEffect, key: str = "key") -> dict[str, Any]:
        """Pay, and keep the facts."""
        facts = dict(await self.cloud.pay(effect, key))
        self.facts |= facts
        return facts

    async def build(self) -> None:
        """A server with port and volume."""
        for effect in (self.port, self.volume, self.server, self.attachment):
            await self.pay(effect())

    async def build_all(self) -> None:
        """Something of each kind."""
        for effect in (self.security_group, self.server_group, self.port, self.management_port, self.volume):
            await self.pay(effect())
        await self.pay(self.server(management_port_id=self.facts["management_port_id"]))
        await self.pay(self.attachment())
        await self.pay(self.address())
        await self.pay(self.snapshot())

    async def remove(self) -> None:
        """Nothing of it is left."""
        for effect in (self.no_server, self.no_address, self.no_port, self.no_snapshot, self.no_volume):
            await self.pay(effect())
        await self.pay(self.no_group())
        await self.pay(self.no_servers())

    def flavor(self, name: str) -> str:
        """The id of the lab's flavor of this name."""
        return self._flavors[name]

    # --- what is made ---------------------------------------------------------------------------------------------

    def security_group(self) -> effects.EnsureSecurityGroup:
        return effects.EnsureSecurityGroup(instance_id=self.id, name=self.group, project="tenant")

    def rules(self, *cidrs: str) -> effects.EnsureAccessRules:
        return effects.EnsureAccessRules(
            instance_id=self.id, security_group_id=self.facts["security_group_id"], port=5432, cidrs=cidrs
        )

    def server_group(self) -> effects.EnsureServerGroup:
        return effects.EnsureServerGroup(instance_id=self.id, name=self.name, project="tenant", policy="anti-affinity")

    def port(self, **given: Any) -> effects.EnsurePort:
        settings: dict[str, Any] = {
            "network": None,
            "security_group_id": self.facts.get("security_group_id"),
            **given,
        }
        return effects.EnsurePort(instance_id=self.id, name=self.name, project="tenant", **settings)

    def management_port(self) -> effects.EnsureManagementPort:
        return effects.EnsureManagementPort(
            instance_id=self.id, name=f"holdfast-mgmt-{self.id}", project="tenant", network="lab-net"
        )

    def volume(self, size: int = 1, **given: Any) -> effects.EnsureVolume:
        settings: dict[str, Any] = {"volume_type": None, "availability_zone": None, **given}
        return effects.EnsureVolume(instance_id=self.id, name=self.name, project="tenant", size=size, **settings)

    def snapshot(self) -> effects.EnsureSnapshot:
        return effects.EnsureSnapshot(
            instance_id=self.id, name=self.name, project="tenant", volume_id=self.facts["volume_id"]
        )

    def no_snapshot(self) -> effects.SnapshotAbsent:
        return effects.SnapshotAbsent(instance_id=self.id, name=self.name, snapshot_id=self.facts.get("snapshot_id"))

    def server(self, **given: Any) -> effects.EnsureServer:
        settings: dict[str, Any] = {
            "flavor_id": self.flavor("lab.tiny"),
            "port_id": self.facts.get("port_id", ""),
            "management_port_id": None,
            "server_group_id": self.facts.get("server_group_id"),
            "image_id": None,
            "availability_zone": None,
            "datastore_version": "16",
            **given,
        }
        return effects.EnsureServer(
            instance_id=self.id, name=self.name, project="tenant", datastore="postgresql", **settings
        )

    def attachment(self) -> effects.EnsureAttachment:
        return effects.EnsureAttachment(**self._on_server(), volume_id=self.facts["volume_id"])

    def address(self) -> effects.EnsureFloatingAddress:
        return effects.EnsureFloatingAddress(
            instance_id=self.id, name=self.name, project="tenant", port_id=self.facts["port_id"]
        )

    # --- what is done with it ---------------------------------------------------------------------------------------

    def extend(self, size: int) -> effects.ExtendVolume:
        return effects.ExtendVolume(instance_id=self.id, volume_id=self.facts["volume_id"], size=size)

    def detachment(self) -> effects.DetachVolume:
        return effects.DetachVolume(**self._on_server(), volume_id=self.facts["volume_id"])

    def reboot(self, *, hard: bool = False) -> effects.RebootServer:
        return effects.RebootServer(**self._on_server(), hard=hard)

    def rebuild(self) -> effects.RebuildServer:
        return effects.RebuildServer(
            **self._on_server(),
            name=self.name,
            project="tenant",
            image_id=None,
            datastore="postgresql",
            datastore_version="16",
        )

    def stop(self) -> effects.StopServer:
        return effects.StopServer(**self._on_server())

    def start(self) -> effects.StartServer:
        return effects.StartServer(**self._on_server())

    def resize(self, flavor: str) -> effects.ResizeServer:
        return effects.ResizeServer(**self._on_server(), flavor_id=self.flavor(flavor))

    def migrate(self, host: str | None = None) -> effects.MigrateServer:
        return effects.MigrateServer(**self._on_server(), from_host=self.facts["host"], host=host)

    def confirm(self) -> effects.ConfirmServer:
        return effects.ConfirmServer(**self._on_server())

    def revert(self) -> effects.RevertServer:
        return effects.RevertServer(**self._on_server(), flavor_id=self.flavor("lab.tiny"), host=self.facts["host"])

    def only(self, *cidrs: str) -> effects.AccessRulesAbsent:
        return effects.AccessRulesAbsent(
            instance_id=self.id, security_group_id=self.facts["security_group_id"], port=5432, keep=cidrs
        )

    def surplus(self, *keep: str) -> effects.SurplusAbsent:
        return effects.SurplusAbsent(instance_id=self.id, name=self.name, security_group_name=self.group, keep=keep)

    # --- what is gone -------------------------------------------------------------------------------------------------

    def no_server(self) -> effects.ServerAbsent:
        return effects.ServerAbsent(instance_id=self.id, name=self.name, server_id=self.facts.get("server_id"))

    def no_address(self) -> effects.FloatingAddressAbsent:
        return effects.FloatingAddressAbsent(
            instance_id=self.id,
            name=self.name,
            floating_address_id=self.facts.get("floating_address_id"),
            port_id=self.facts.get("port_id"),
        )

    def no_port(self) -> effects.PortAbsent:
        return effects.PortAbsent(instance_id=self.id, name=self.name, port_id=self.facts.get("port_id"))

    def no_volume(self) -> effects.VolumeAbsent:
        return effects.VolumeAbsent(instance_id=self.id, name=self.name, volume_id=self.facts.get("volume_id"))

    def no_group(self) -> effects.SecurityGroupAbsent:
        return effects.SecurityGroupAbsent(
            instance_id=self.id, name=self.group, security_group_id=self.facts.get("security_group_id")
        )

    def no_servers(self) -> effects.ServerGroupAbsent:
        return effects.ServerGroupAbsent(
            instance_id=self.id, name=self.name, server_group_id=self.facts.get("server_group_id")
        )

    def _on_server(self) -> dict[str, Any]:
        return {"instance_id": self.id, "server_id": self.facts["server_id"]}


def _plain(path: str) -> str:
    parts = path.partition("?")[0].strip("/").split("/")
    return "/" + "/".join("*" if len(each) >= 32 else each for each in parts if not re.fullmatch(r"v[0-9.]+", each))


def with_metadata(kind: str, **metadata: str) -> Any:
    """A change of a request's body: what it makes bears these metadata as well."""

    def change(body: dict[str, Any]) -> None:
        body[kind].setdefault("metadata", {}).update({key.replace("__", ":"): value for key, value in metadata.items()})

    return change
