"""OpenStack as a cloud: which of its services brings what about. Each looks, changes only what is missing, and waits.

At most one request that changes something goes out for each resource and payment, each has a deadline, and what a lost
answer hides is seen by the next payment's look. Nothing is kept in this process that another could not look up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import partial

from aggregates import effects
from aggregates.catalogue import Catalogue, Datastore
from aggregates.effects import CloudEffect
from aggregates.resources import Resource, ResourceKind
from engine.clouds.openstack import connection, inventory, marks
from engine.clouds.openstack.access import Addresses, Groups
from engine.clouds.openstack.actions import Actions
from engine.clouds.openstack.attachments import Attachments
from engine.clouds.openstack.calls import Calls, Service
from engine.clouds.openstack.config import CloudConfig
from engine.clouds.openstack.images import Images
from engine.clouds.openstack.neutron import Network
from engine.clouds.openstack.offers import Offers
from engine.clouds.openstack.ports import Ports
from engine.clouds.openstack.server_groups import ServerGroups
from engine.clouds.openstack.servers import Servers
from engine.clouds.openstack.volumes import Volumes
from engine.clouds.port import Facts, FinalError, check_may_change, refuse_stranger
from engine.clouds.turns import Turns
from engine.enrolment import MachineCredentials


class OpenStackCloud:
    """The region and project that the configuration names. `datastores`: what guests can run, by manager."""

    def __init__(
        self, config: CloudConfig, *, enrolment: MachineCredentials, datastores: Mapping[str, Datastore]
    ) -> None:
        self.latest_effect = timedelta(seconds=config.timing.latest_effect)
        self._enrolment = enrolment
        self._calls = calls = Calls(connection.connect(config), at_once=config.calls_at_once, timing=config.timing)
        nova = Service("nova", calls, connection.nova)
        cinder = Service("cinder", calls, connection.cinder)
        network = Network(Service("neutron", calls, connection.neutron))
        self._nova, self._cinder, self._neutron = nova, cinder, network.service
        patience = config.timing.built
        self._servers = Servers(nova, config.servers, patience=patience)
        self._actions = Actions(nova, self._servers, config.timing.latest_effect)
        self._server_groups = ServerGroups(nova)
        self._volumes = Volumes(cinder, config.volumes, patience=patience)
        self._attachments = Attachments(nova, self._servers, self._volumes)
        self._ports = Ports(network, config.networks, self._has_server)
        self._groups = Groups(network.service)
        self._addresses = Addresses(network, config.networks.external)
        self._images = Images(Service("glance", calls, connection.glance), config.servers.images)
        self._offers = Offers(nova, cinder, self._images, config, datastores)
        self._making: Turns[str] = Turns()

    async def start(self) -> None:
        """Nothing is to be taken up: a cloud that cannot be reached is waited for by whoever asks it."""

    async def close(self) -> None:
        """Stop waiting, and let go of connections."""
        self._servers.close()
        self._volumes.close()
        self._calls.close()

    async def catalogue(self) -> Catalogue:
        """What the cloud offers now."""
        return await self._offers.now()

    async def inventory(self) -> Sequence[Resource]:
        """All that the project has of servers, ports and volumes."""
        return await inventory.resources(self._nova, self._neutron, self._cinder)

    async def pay(self, effect: CloudEffect, key: str) -> Facts:  # noqa: PLR0911 - a table
        """Make the effect true. Raises `TransientError` or `FinalError`."""
        match effect:
            case effects.EnsureCredentials():
                await self._enrolment.ensure(effect.instance_id)
                return {}
            case effects.CredentialsAbsent():
                check_may_change()  # whether they are accepted is not told
                await self._enrolment.revoke(effect.instance_id)
                return {}
            case effects.SurplusAbsent():
                return await self._surplus_absent(effect)
            case effects.EnsureServer() | effects.EnsureVolume() | effects.EnsureSecurityGroup():
                # Nothing at the cloud keeps two of one name from being made, so within a process they take turns.
                async with self._making.take(f"{effect.type_name} {effect.name}"):
                    return await self._make(effect)
            case effects.EnsureServerGroup():
                async with self._making.take(f"{effect.type_name} {effect.name}"):
                    return await self._server_groups.ensure(effect)
            case effects.ResourceAbsent():
                return await self._resource_absent(effect)
        paid = await self._network(effect)
        if paid is None:
            paid = await self._storage(effect)
        if paid is None:
            paid = await self._compute(effect, key)
        if paid is None:
            raise FinalError("unsupported", f"OpenStack is not asked for {effect.type_name}")
        return paid

    async def _make(self, effect: effects.EnsureServer | effects.EnsureVolume | effects.EnsureSecurityGroup) -> Facts:
        match effect:
            case effects.EnsureVolume():
                return await self._volumes.ensure(effect)
            case effects.EnsureSecurityGroup():
                return await self._groups.ensure(effect)
        return await self._servers.ensure(
            effect,
            image=partial(self._image, effect),
            user_data=partial(self._user_data, effect),
            port_holder=partial(self._ports.holder, effect.port_id),
        )

    async def _network(self, effect: CloudEffect) -> Facts | None:  # noqa: PLR0911 - a table
        match effect:
            case effects.EnsurePort():
                return await self._ports.ensure(effect)
            case effects.EnsureManagementPort():
                return await self._ports.ensure_management(effect)
            case effects.PortAbsent():
                return await self._ports.absent(effect)
            case effects.EnsurePortGroup():
                return await self._ports.ensure_group(effect)
            case effects.PortGroupAbsent():
                return await self._ports.group_absent(effect)
            case effects.SecurityGroupAbsent():
                return await self._groups.absent(effect)
            case effects.EnsureAccessRules():
                return await self._groups.ensure_rules(effect)
            case effects.AccessRulesAbsent():
                return await self._groups.rules_absent(effect)
            case effects.EnsureFloatingAddress():
                return await self._addresses.ensure(effect)
            case effects.FloatingAddressAbsent():
                return await self._addresses.absent(effect)
        return None

    async def _storage(self, effect: CloudEffect) -> Facts | None:
        match effect:
            case effects.ExtendVolume():
                return await self._volumes.extend(effect)
            case effects.VolumeAbsent():
                return await self._volumes.absent(effect)
            case effects.EnsureAttachment():
                return await self._attachments.ensure(effect)
            case effects.DetachVolume():
                return await self._attachments.absent(effect)
        return None

    async def _compute(self, effect: CloudEffect, key: str) -> Facts | None:  # noqa: PLR0911 - a table
        match effect:
            case effects.ServerAbsent():
                return await self._servers.absent(effect)
            case effects.ServerGroupAbsent():
                return await self._server_groups.absent(effect)
            case effects.RebootServer():
                return await self._actions.reboot(effect, key)
            case effects.RebuildServer():
                return await self._actions.rebuild(
                    effect, key, image=partial(self._image, effect), user_data=partial(self._user_data, effect)
                )
            case effects.ResizeServer():
                return await self._actions.resize(effect)
            case effects.MigrateServer():
                return await self._actions.migrate(effect)
            case effects.ConfirmServer():
                return await self._actions.confirm(effect)
            case effects.RevertServer():
                return await self._actions.revert(effect, await self._offers.hosts())
            case effects.StartServer():
                return await self._actions.start(effect)
            case effects.StopServer():
                return await self._actions.stop(effect)
        return None

    async def _image(self, effect: effects.EnsureServer | effects.RebuildServer) -> str:
        return effect.image_id or await self._images.image_id(effect.datastore, effect.datastore_version)

    async def _user_data(self, effect: effects.EnsureServer | effects.RebuildServer) -> bytes:
        return await self._enrolment.user_data(effect.instance_id, effect.datastore, effect.datastore_version)

    async def _has_server(self, server_id: str) -> bool:
        return await self._servers.get(server_id) is not None

    async def _resource_absent(self, effect: effects.ResourceAbsent) -> Facts:
        """By its id, if it still bears the name and our mark."""
        found = await self._marked(effect)
        if found is None:
            return {}
        name, mine = found
        refuse_stranger(effect, name if mine else None)
        match effect.kind:
            case ResourceKind.SERVER:
                await self._servers.remove(effect.resource_id)
            case ResourceKind.PORT:
                await self._ports.remove(effect.resource_id)
            case ResourceKind.VOLUME:
                await self._volumes.remove(effect.resource_id)
        return {}

    async def _marked(self, effect: effects.ResourceAbsent) -> tuple[str, bool] | None:
        """Its name, and whether it is ours; None when it is not there."""
        match effect.kind:
            case ResourceKind.SERVER:
                server = await self._servers.get(effect.resource_id)
                return None if server is None else (server.name, marks.in_metadata(effect.instance_id, server.metadata))
            case ResourceKind.PORT:
                port = await self._ports.get(effect.resource_id)
                return None if port is None else (port.name, marks.in_description(effect.instance_id, port.description))
            case ResourceKind.VOLUME:
                volume = await self._volumes.get(effect.resource_id)
                return None if volume is None else (volume.name, marks.in_metadata(effect.instance_id, volume.metadata))

    async def _surplus_absent(self, effect: effects.SurplusAbsent) -> Facts:
        holders = await self._ports.holders(effect.name, effect.instance_id)
        removed = await self._servers.surplus_absent(effect, holders) if holders else []
        removed += await self._volumes.surplus_absent(effect)
        removed += await self._addresses.surplus_absent(effect)
        removed += await self._groups.surplus_absent(effect)
        removed += await self._server_groups.surplus_absent(effect)
        return {"removed": removed}
