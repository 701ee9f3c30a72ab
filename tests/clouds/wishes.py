"""The effects of one instance, as its lifecycle would owe them."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

from aggregates import effects
from aggregates.resources import ResourceKind
from engine.clouds.local import LocalCloud
from engine.clouds.simulated import SimulatedCloud

Cloud = LocalCloud | SimulatedCloud


class Wishes:
    """What an instance wants of a cloud. `facts` gathers what it got."""

    def __init__(self, cloud: Cloud, instance_id: UUID | None = None) -> None:
        self.cloud = cloud
        self.id = instance_id if instance_id is not None else uuid4()
        self.name = f"holdfast-{self.id}"
        self.group_name = f"holdfast-sg-{self.id}"
        self.management_name = f"holdfast-mgmt-{self.id}"
        self.facts: dict[str, Any] = {}

    async def pay(self, effect: effects.CloudEffect, key: str = "key") -> dict[str, Any]:
        """Pay, and keep the facts."""
        facts = dict(await self.cloud.pay(effect, key))
        self.facts |= facts
        return facts

    async def build(self) -> None:
        """A server with port and volume."""
        await self.pay(self.port())
        await self.pay(self.volume())
        await self.pay(effects.EnsureCredentials(instance_id=self.id))
        await self.pay(self.server())
        await self.pay(self.attachment())

    async def remove(self) -> None:
        """Nothing of it is left."""
        await self.pay(self.no_server())
        await self.pay(self.no_port())
        await self.pay(self.no_volume())
        await self.pay(effects.CredentialsAbsent(instance_id=self.id))

    async def shown(self) -> dict[str, Any]:
        """The server as the inventory has it."""
        return (await self.cloud.contents())["servers"][self.facts["server_id"]]

    def server_group(self, policy: str = "anti-affinity") -> effects.EnsureServerGroup:
        return effects.EnsureServerGroup(instance_id=self.id, name=self.name, project="p", policy=policy)

    def security_group(self) -> effects.EnsureSecurityGroup:
        return effects.EnsureSecurityGroup(instance_id=self.id, name=self.group_name, project="p")

    def rules(self, *cidrs: str, again: bool = False) -> effects.EnsureAccessRules:
        return effects.EnsureAccessRules(
            instance_id=self.id,
            security_group_id=self.facts["security_group_id"],
            port=5432,
            cidrs=cidrs or ("10.0.0.0/8", "192.0.2.0/24"),
            again=again,
        )

    def only_rules(self, *keep: str) -> effects.AccessRulesAbsent:
        return effects.AccessRulesAbsent(
            instance_id=self.id, security_group_id=self.facts["security_group_id"], port=5432, keep=keep
        )

    def port(self, **given: Any) -> effects.EnsurePort:
        settings: dict[str, Any] = {
            "network": None,
            "security_group_id": self.facts.get("security_group_id"),
            **given,
        }
        return effects.EnsurePort(instance_id=self.id, name=self.name, project="p", **settings)

    def management_port(self) -> effects.EnsureManagementPort:
        return effects.EnsureManagementPort(
            instance_id=self.id, name=self.management_name, project="p", network="management"
        )

    def port_group(self) -> effects.EnsurePortGroup:
        return effects.EnsurePortGroup(
            instance_id=self.id,
            port_id=self.facts["port_id"],
            security_group_id=self.facts["security_group_id"],
        )

    def no_port_group(self) -> effects.PortGroupAbsent:
        return effects.PortGroupAbsent(
            instance_id=self.id,
            port_id=self.facts["port_id"],
            security_group_id=self.facts["security_group_id"],
        )

    def address(self) -> effects.EnsureFloatingAddress:
        return effects.EnsureFloatingAddress(
            instance_id=self.id, name=self.name, project="p", port_id=self.facts["port_id"]
        )

    def no_address(self) -> effects.FloatingAddressAbsent:
        return effects.FloatingAddressAbsent(
            instance_id=self.id,
            name=self.name,
            floating_address_id=self.facts.get("floating_address_id"),
            port_id=self.facts.get("port_id"),
        )

    def no_security_group(self) -> effects.SecurityGroupAbsent:
        return effects.SecurityGroupAbsent(
            instance_id=self.id, name=self.group_name, security_group_id=self.facts.get("security_group_id")
        )

    def no_server_group(self) -> effects.ServerGroupAbsent:
        return effects.ServerGroupAbsent(
            instance_id=self.id, name=self.name, server_group_id=self.facts.get("server_group_id")
        )

    def volume(self, size: int = 1, **given: Any) -> effects.EnsureVolume:
        settings: dict[str, Any] = {"volume_type": None, "availability_zone": None, **given}
        return effects.EnsureVolume(instance_id=self.id, name=self.name, project="p", size=size, **settings)

    def snapshot(self) -> effects.EnsureSnapshot:
        return effects.EnsureSnapshot(
            instance_id=self.id, name=self.name, project="p", volume_id=self.facts["volume_id"]
        )

    def no_snapshot(self) -> effects.SnapshotAbsent:
        return effects.SnapshotAbsent(instance_id=self.id, name=self.name, snapshot_id=self.facts.get("snapshot_id"))

    def server(self, **given: Any) -> effects.EnsureServer:
        settings: dict[str, Any] = {
            "name": self.name,
            "port_id": self.facts.get("port_id", ""),
            "flavor_id": "small",
            "management_port_id": self.facts.get("management_port_id"),
            "server_group_id": self.facts.get("server_group_id"),
            "image_id": None,
            "availability_zone": None,
            **given,
        }
        return effects.EnsureServer(
            instance_id=self.id, project="p", datastore="postgresql", datastore_version="16", **settings
        )

    def attachment(self) -> effects.EnsureAttachment:
        return effects.EnsureAttachment(
            instance_id=self.id, server_id=self.facts["server_id"], volume_id=self.facts["volume_id"]
        )

    def reattachment(self) -> effects.EnsureAttachment:
        return effects.EnsureAttachment(
            instance_id=self.id, server_id=self.facts["server_id"], volume_id=self.facts["volume_id"], again=True
        )

    def detachment(self) -> effects.DetachVolume:
        return effects.DetachVolume(
            instance_id=self.id, server_id=self.facts["server_id"], volume_id=self.facts["volume_id"]
        )

    def rebuild(self, image_id: str | None = None) -> effects.RebuildServer:
        return effects.RebuildServer(
            instance_id=self.id,
            server_id=self.facts["server_id"],
            name=self.name,
            project="p",
            image_id=image_id,
            datastore="postgresql",
            datastore_version="16",
        )

    def extend(self, size: int) -> effects.ExtendVolume:
        return effects.ExtendVolume(instance_id=self.id, volume_id=self.facts["volume_id"], size=size)

    def resize(self, flavor_id: str) -> effects.ResizeServer:
        return effects.ResizeServer(instance_id=self.id, server_id=self.facts["server_id"], flavor_id=flavor_id)

    def migrate(self, host: str | None = None, from_host: str | None = None) -> effects.MigrateServer:
        return effects.MigrateServer(
            instance_id=self.id,
            server_id=self.facts["server_id"],
            from_host=from_host or self.facts["host"],
            host=host,
        )

    def revert(self, **given: Any) -> effects.RevertServer:
        settings: dict[str, Any] = {"flavor_id": "small", "host": self.facts["host"], **given}
        return effects.RevertServer(instance_id=self.id, server_id=self.facts["server_id"], **settings)

    def confirm(self) -> effects.ConfirmServer:
        return effects.ConfirmServer(instance_id=self.id, server_id=self.facts["server_id"])

    def reboot(self, *, hard: bool = False) -> effects.RebootServer:
        return effects.RebootServer(instance_id=self.id, server_id=self.facts["server_id"], hard=hard)

    def stop(self) -> effects.StopServer:
        return effects.StopServer(instance_id=self.id, server_id=self.facts["server_id"])

    def start(self) -> effects.StartServer:
        return effects.StartServer(instance_id=self.id, server_id=self.facts["server_id"])

    def no_server(self) -> effects.ServerAbsent:
        return effects.ServerAbsent(instance_id=self.id, name=self.name, server_id=self.facts.get("server_id"))

    def no_port(self) -> effects.PortAbsent:
        return effects.PortAbsent(instance_id=self.id, name=self.name, port_id=self.facts.get("port_id"))

    def no_surplus(self) -> effects.SurplusAbsent:
        return effects.SurplusAbsent(
            instance_id=self.id,
            name=self.name,
            security_group_name=self.group_name,
            keep=tuple(id_ for name, id_ in self.facts.items() if name.endswith("_id")),
        )

    def no_volume(self) -> effects.VolumeAbsent:
        return effects.VolumeAbsent(instance_id=self.id, name=self.name, volume_id=self.facts.get("volume_id"))

    def gone(self, kind: ResourceKind) -> effects.ResourceAbsent:
        return effects.ResourceAbsent(
            instance_id=self.id, kind=kind, name=self.name, resource_id=self.facts[f"{kind}_id"]
        )
