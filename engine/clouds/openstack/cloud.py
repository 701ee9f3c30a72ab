"""OpenStack as a cloud: which of its services brings what about. Each looks, changes only what is missing, and waits.

At most one request that changes something goes out for each resource and payment, each has a deadline, and what a lost
answer hides is seen by the next payment's look. Nothing is kept in this process that another could not look up.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from functools import partial
from typing import Any

from aggregates import effects
from aggregates.catalogue import Catalogue, Datastore
from aggregates.effects import CloudEffect
from aggregates.resources import Resource, ResourceKind
from engine.clouds.openstack import connection, inventory
from engine.clouds.openstack.access import Addresses, Groups
from engine.clouds.openstack.actions import Actions
from engine.clouds.openstack.attachments import Attachments
from engine.clouds.openstack.calls import Calls, Pauses, Service
from engine.clouds.openstack.config import CloudConfig
from engine.clouds.openstack.images import Images
from engine.clouds.openstack.neutron import Network
from engine.clouds.openstack.offers import Offers
from engine.clouds.openstack.ports import Ports
from engine.clouds.openstack.server_groups import ServerGroups
from engine.clouds.openstack.servers import Servers
from engine.clouds.openstack.snapshots import Snapshots
from engine.clouds.openstack.volumes import Volumes
from engine.clouds.port import Facts, FinalError, Inventory, check_may_change, refuse_stranger
from engine.clouds.traffic import Counts
from engine.clouds.turns import Turns
from engine.enrolment import MachineCredentials

Payer = Callable[[Any], Awaitable[Facts]]  # of the effect of its own type
# How a resource of one kind is looked up by its id, worded, and removed.
Kind = tuple[Callable[[str], Awaitable[Any]], Callable[[Any], Resource], Callable[[str], Awaitable[None]]]


class OpenStackCloud:
    """The region and project at the top of the configuration. `datastores`: what guests can run, by manager.

    `pauses`: by which workers tell each other of services that are busy; None for one that is alone. `region` is what
    Keystone calls the region, `project` what tells where this is from elsewhere.
    """

    def __init__(
        self,
        config: CloudConfig,
        *,
        enrolment: MachineCredentials,
        datastores: Mapping[str, Datastore],
        pauses: Pauses | None = None,
    ) -> None:
        self.latest_effect = timedelta(seconds=config.timing.latest_effect)
        self._enrolment = enrolment
        opened = connection.connect(config)
        self.region: str | None = config.region or opened.config.region_name or None
        self.project = connection.project(opened)
        self._calls = calls = Calls(opened, at_once=config.calls_at_once, timing=config.timing, pauses=pauses)
        nova = Service("nova", calls, connection.nova)
        cinder = Service("cinder", calls, connection.cinder)
        network = Network(Service("neutron", calls, connection.neutron))
        self._nova, self._cinder, self._neutron = nova, cinder, network.service
        patience = config.timing.built
        self._servers = Servers(nova, config.servers, patience=patience)
        self._actions = Actions(nova, self._servers, config.timing.latest_effect)
        self._server_groups = ServerGroups(nova)
        self._snapshots = Snapshots(cinder, patience=patience)
        self._volumes = Volumes(cinder, config.volumes, self._has_server, self._snapshots, patience=patience)
        self._attachments = Attachments(nova, self._servers, self._volumes)
        self._ports = Ports(network, config.networks, self._has_server)
        self._groups = Groups(network.service)
        self._addresses = Addresses(network, config.networks.external)
        self._images = Images(Service("glance", calls, connection.glance), config.servers.images)
        self._offers = Offers(nova, cinder, self._images, config, datastores)
        self._making: Turns[str] = Turns()
        self._payers = self._table()
        self._kinds: Mapping[ResourceKind, Kind] = {
            ResourceKind.SERVER: (self._servers.get, inventory.server, self._servers.remove),
            ResourceKind.FLOATING_ADDRESS: (self._addresses.get, inventory.address, self._addresses.remove),
            ResourceKind.PORT: (self._ports.get, inventory.port, self._ports.remove),
            ResourceKind.MANAGEMENT_PORT: (self._ports.get, inventory.port, self._ports.remove),
            ResourceKind.SNAPSHOT: (self._snapshots.get, inventory.snapshot, self._snapshots.remove),
            ResourceKind.VOLUME: (self._volumes.get, inventory.volume, self._volumes.remove),
            ResourceKind.SECURITY_GROUP: (self._groups.get, inventory.security_group, self._groups.remove),
            ResourceKind.SERVER_GROUP: (self._server_groups.get, inventory.server_group, self._server_groups.remove),
        }

    @property
    def traffic(self) -> Mapping[str, Counts]:
        """How each service has answered."""
        return self._calls.traffic

    async def start(self) -> None:
        """Nothing is to be taken up: a cloud that cannot be reached is waited for by whoever asks it."""

    async def close(self) -> None:
        """Stop waiting, and let go of connections."""
        self._servers.close()
        self._volumes.close()
        self._snapshots.close()
        self._calls.close()

    async def catalogue(self) -> Catalogue:
        """What the cloud offers now."""
        return await self._offers.now()

    async def inventory(self) -> Inventory:
        """All that the project has."""
        return Inventory(resources=await inventory.resources(self._nova, self._neutron, self._cinder))

    async def pay(self, effect: CloudEffect, key: str) -> Facts:
        """Make the effect true. Raises `TransientError` or `FinalError`."""
        match effect:
            case effects.RebootServer():
                return await self._actions.reboot(effect, key)
            case effects.RebuildServer():
                return await self._actions.rebuild(
                    effect, key, image=partial(self._image, effect), user_data=partial(self._user_data, effect)
                )
        payer = self._payers.get(type(effect))
        if payer is None:
            raise FinalError("unsupported", f"OpenStack is not asked for {effect.type_name}")
        return await payer(effect)

    def _table(self) -> Mapping[type[CloudEffect], Payer]:
        """Who makes which effect true."""
        return {
            effects.EnsureCredentials: self._ensure_credentials,
            effects.CredentialsAbsent: self._credentials_absent,
            effects.EnsureServerGroup: self._in_turn(self._server_groups.ensure),
            effects.ServerGroupAbsent: self._server_groups.absent,
            effects.EnsureSecurityGroup: self._in_turn(self._groups.ensure),
            effects.SecurityGroupAbsent: self._groups.absent,
            effects.EnsureAccessRules: self._groups.ensure_rules,
            effects.AccessRulesAbsent: self._groups.rules_absent,
            effects.EnsurePort: self._ports.ensure,
            effects.EnsureManagementPort: self._ports.ensure_management,
            effects.EnsurePortGroup: self._ports.ensure_group,
            effects.PortGroupAbsent: self._ports.group_absent,
            effects.PortAbsent: self._ports.absent,
            effects.EnsureFloatingAddress: self._addresses.ensure,
            effects.FloatingAddressAbsent: self._addresses.absent,
            effects.EnsureVolume: self._in_turn(self._volumes.ensure),
            effects.ExtendVolume: self._volumes.extend,
            effects.VolumeAbsent: self._volumes.absent,
            effects.EnsureSnapshot: self._in_turn(self._snapshots.ensure),
            effects.SnapshotAbsent: self._snapshots.absent,
            effects.EnsureServer: self._in_turn(self._ensure_server),
            effects.ServerAbsent: self._servers.absent,
            effects.EnsureAttachment: self._attachments.ensure,
            effects.DetachVolume: self._attachments.absent,
            effects.ResizeServer: self._actions.resize,
            effects.MigrateServer: self._actions.migrate,
            effects.ConfirmServer: self._actions.confirm,
            effects.RevertServer: self._actions.revert,
            effects.StartServer: self._actions.start,
            effects.StopServer: self._actions.stop,
            effects.ResourceAbsent: self._resource_absent,
            effects.SurplusAbsent: self._surplus_absent,
        }

    def _in_turn(self, payer: Payer) -> Payer:
        """Nothing at the cloud keeps two of one name from being made, so within a process they take turns."""

        async def pay(effect: Any) -> Facts:
            async with self._making.take(f"{effect.type_name} {effect.name}"):
                return await payer(effect)

        return pay

    async def _ensure_credentials(self, effect: effects.EnsureCredentials) -> Facts:
        await self._enrolment.ensure(effect.instance_id)
        return {}

    async def _credentials_absent(self, effect: effects.CredentialsAbsent) -> Facts:
        check_may_change()  # whether they are accepted is not told
        await self._enrolment.revoke(effect.instance_id)
        return {}

    async def _ensure_server(self, effect: effects.EnsureServer) -> Facts:
        return await self._servers.ensure(
            effect,
            image=partial(self._image, effect),
            user_data=partial(self._user_data, effect),
            port_holder=partial(self._ports.holder, effect.port_id),
        )

    async def _image(self, effect: effects.EnsureServer | effects.RebuildServer) -> str:
        return effect.image_id or await self._images.image_id(effect.datastore, effect.datastore_version)

    async def _user_data(self, effect: effects.EnsureServer | effects.RebuildServer) -> bytes:
        return await self._enrolment.user_data(effect.instance_id, effect.datastore, effect.datastore_version)

    async def _has_server(self, server_id: str) -> bool:
        return await self._servers.get(server_id) is not None

    async def _resource_absent(self, effect: effects.ResourceAbsent) -> Facts:
        """By its id, if it still bears the name and our mark."""
        get, worded, remove = self._kinds[effect.kind]
        there = await get(effect.resource_id)
        if there is not None:
            found = worded(there)
            refuse_stranger(effect, found.name if found.instance_id == effect.instance_id else None)
            await remove(effect.resource_id)
        return {}

    async def _surplus_absent(self, effect: effects.SurplusAbsent) -> Facts:
        holders = await self._ports.holders(effect.name, effect.instance_id)
        removed = await self._servers.surplus_absent(effect, holders) if holders else []
        removed += await self._snapshots.surplus_absent(effect)
        removed += await self._volumes.surplus_absent(effect)
        removed += await self._addresses.surplus_absent(effect)
        removed += await self._groups.surplus_absent(effect)
        removed += await self._server_groups.surplus_absent(effect)
        return {"removed": removed}
