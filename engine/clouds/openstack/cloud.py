"""OpenStack as a cloud: which of its services brings what about. Each looks, changes only what is missing, and waits.

At most one request that changes something goes out for each resource and payment, each has a deadline, and what a lost
answer hides is seen by the next payment's look. Nothing is kept in this process that another could not look up.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Protocol
from uuid import UUID

from aggregates import effects
from aggregates.catalogue import Catalogue, Datastore
from aggregates.effects import CloudEffect
from engine.clouds.openstack import connection
from engine.clouds.openstack.actions import Actions
from engine.clouds.openstack.attachments import Attachments
from engine.clouds.openstack.calls import Calls, Service
from engine.clouds.openstack.config import CloudConfig
from engine.clouds.openstack.images import Images
from engine.clouds.openstack.offers import Offers
from engine.clouds.openstack.ports import Ports
from engine.clouds.openstack.servers import Servers
from engine.clouds.openstack.volumes import Volumes
from engine.clouds.port import Facts, FinalError
from engine.clouds.turns import Turns


class Enrolment(Protocol):
    """How a guest comes to its own credentials."""

    async def ensure(self, instance_id: UUID) -> object:
        """The instance's agent may enrol, or has."""
        ...

    async def revoke(self, instance_id: UUID) -> object:
        """The instance's agent is refused from now on."""
        ...

    async def user_data(self, instance_id: UUID, datastore: str, datastore_version: str) -> bytes:
        """What the instance's server reads when it begins."""
        ...


class OpenStackCloud:
    """The region and project that the configuration names. `datastores`: what guests can run, by manager."""

    def __init__(self, config: CloudConfig, *, enrolment: Enrolment, datastores: Mapping[str, Datastore]) -> None:
        self.latest_effect = timedelta(seconds=config.timing.latest_effect)
        self._enrolment = enrolment
        self._calls = calls = Calls(connection.connect(config), at_once=config.calls_at_once, timing=config.timing)
        nova = Service("nova", calls, connection.nova)
        cinder = Service("cinder", calls, connection.cinder)
        neutron = Service("neutron", calls, connection.neutron)
        glance = Service("glance", calls, connection.glance)
        self._ports = Ports(neutron, config.networks)
        self._volumes = Volumes(cinder, config.volumes, patience=config.timing.built)
        self._servers = Servers(nova, config.servers, patience=config.timing.built)
        self._actions = Actions(nova, self._servers, config.timing.latest_effect)
        self._attachments = Attachments(nova, self._servers, self._volumes)
        self._images = Images(glance, config.servers.images)
        self._offers = Offers(nova, cinder, self._images, config, datastores)
        self._making: Turns[str] = Turns()

    async def start(self) -> None:
        """See that the cloud can be reached and takes our credentials. Raises `PayError`."""
        await self._offers.hosts()

    async def close(self) -> None:
        """Stop waiting, and let go of connections."""
        self._servers.close()
        self._volumes.close()
        self._calls.close()

    async def catalogue(self) -> Catalogue:
        """What the cloud offers now."""
        return await self._offers.now()

    async def pay(self, effect: CloudEffect, key: str) -> Facts:  # noqa: PLR0911, C901 - a table
        """Make the effect true. Raises `TransientError` or `FinalError`."""
        match effect:
            case effects.EnsureCredentials():
                await self._enrolment.ensure(effect.instance_id)
                return {}
            case effects.CredentialsAbsent():
                await self._enrolment.revoke(effect.instance_id)
                return {}
            case effects.EnsurePort():
                return await self._ports.ensure(effect)
            case effects.PortAbsent():
                return await self._ports.absent(effect, self._has_server)
            case effects.EnsureVolume():
                async with self._making.take(effect.name):
                    return await self._volumes.ensure(effect)
            case effects.ExtendVolume():
                return await self._volumes.extend(effect)
            case effects.VolumeAbsent():
                return await self._volumes.absent(effect)
            case effects.EnsureAttachment():
                return await self._attachments.ensure(effect)
            case effects.DetachVolume():
                return await self._attachments.absent(effect)
            case effects.SurplusAbsent():
                return await self._surplus_absent(effect)
            case effects.EnsureServer():
                async with self._making.take(effect.name):
                    return await self._ensure_server(effect)
            case effects.ServerAbsent():
                return await self._servers.absent(effect)
        return await self._act(effect, key)

    async def _act(self, effect: CloudEffect, key: str) -> Facts:  # noqa: PLR0911 - a table
        match effect:
            case effects.RebootServer():
                return await self._actions.reboot(effect, key)
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
        raise FinalError("unsupported", f"OpenStack is not asked for {effect.type_name}")

    async def _ensure_server(self, effect: effects.EnsureServer) -> Facts:
        async def image() -> str:
            return effect.image_id or await self._images.image_id(effect.datastore, effect.datastore_version)

        async def user_data() -> bytes:
            return await self._enrolment.user_data(effect.instance_id, effect.datastore, effect.datastore_version)

        return await self._servers.ensure(
            effect, image=image, user_data=user_data, port_holder=lambda: self._holder(effect.port_id)
        )

    async def _holder(self, port_id: str) -> str | None:
        port = await self._ports.get(port_id)
        return None if port is None else port.device_id or None

    async def _has_server(self, server_id: str) -> bool:
        return await self._servers.get(server_id) is not None

    async def _surplus_absent(self, effect: effects.SurplusAbsent) -> Facts:
        return {"removed": await self._volumes.surplus_absent(effect)}
