"""What the cloud offers, as Nova, Cinder and Glance list it and the configuration narrows it down."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from openstack.block_storage.v3._proxy import Proxy as Cinder
from openstack.compute.v2._proxy import Proxy as Nova

from aggregates.catalogue import Catalogue, Datastore, Flavor
from engine.clouds.openstack.calls import Service
from engine.clouds.openstack.config import CloudConfig
from engine.clouds.openstack.images import Images
from engine.clouds.port import FinalError

HONOURS = frozenset({"access", "image_id", "locality", "nics", "snapshot"})


class Offers:
    """The catalogue. `datastores`: what guests can run, of which that is offered for which there are images."""

    def __init__(
        self,
        nova: Service[Nova],
        cinder: Service[Cinder],
        images: Images,
        config: CloudConfig,
        datastores: Mapping[str, Datastore],
    ) -> None:
        self._nova = nova
        self._cinder = cinder
        self._images = images
        self._config = config
        self._datastores = datastores

    async def now(self) -> Catalogue:
        """What is offered now."""
        servers, volumes = self._config.servers, self._config.volumes
        flavors = await self._nova.look("list_flavors", lambda nova: list(nova.flavors()))
        zones = await self._nova.look("list_availability_zones", lambda nova: list(nova.availability_zones()))
        types = await self._cinder.look("list_volume_types", lambda cinder: list(cinder.types()))
        return Catalogue(
            flavors=tuple(
                Flavor(id=each.id, name=each.name, vcpus=each.vcpus, ram=each.ram)
                for each in sorted(flavors, key=lambda each: (each.ram, each.vcpus, each.name))
                if fits(each.name, servers.flavors)
            ),
            datastores=await self._with_images(),
            availability_zones=tuple(
                each.name
                for each in zones
                if each.state.get("available", True) and fits(each.name, servers.availability_zones)
            ),
            volume_types=tuple(each.name for each in types if fits(each.name, volumes.types)),
            extended_offline=self._extended_offline(each.name for each in types),
            management_network=self._config.networks.management,
            hosts=await self.hosts(),
            honours=HONOURS,
            max_volume_size=volumes.max_size,
            quota=self._config.quota,
        )

    def _extended_offline(self, types: Iterable[str]) -> frozenset[str | None]:
        volumes = self._config.volumes
        offline: set[str | None] = {each for each in types if fits(each, volumes.extended_offline)}
        if fits(volumes.default_type or "", volumes.extended_offline):
            offline.add(None)
        return frozenset(offline)

    async def hosts(self) -> tuple[str, ...]:
        """The hosts that servers may be moved to; none when Nova does not show them to us."""
        try:
            services = await self._nova.look(
                "list_compute_services", lambda nova: list(nova.services(binary="nova-compute"))
            )
        except FinalError:
            return ()
        return tuple(sorted(each.host for each in services if each.status == "enabled"))

    async def _with_images(self) -> tuple[Datastore, ...]:
        versions: dict[str, list[str]] = {}
        for manager, version in await self._images.offered():
            versions.setdefault(manager, []).append(version)
        return tuple(
            Datastore(
                manager=manager,
                port=known.port,
                versions=tuple(sorted(versions[manager], key=_by_number)),
                parameters=known.parameters,
                has_databases=known.has_databases,
                has_users=known.has_users,
            )
            for manager, known in self._datastores.items()
            if manager in versions
        )


def fits(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns, as a shell has them, is the name's."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _by_number(version: str) -> tuple[int | str, ...]:
    return tuple(int(part) if part.isdigit() else part for part in version.split("."))
