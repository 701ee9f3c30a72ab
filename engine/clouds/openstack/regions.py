"""The regions of a configuration, each with a connection, threads and pollers of its own.

Guarantees that each has a name of its own and that no two are one place, as far as the configuration tells: what is in
one would else be taken for another's.
"""

from __future__ import annotations

from collections.abc import Mapping

from aggregates.catalogue import Datastore
from engine.clouds.openstack.calls import Pauses
from engine.clouds.openstack.cloud import OpenStackCloud
from engine.clouds.openstack.config import CloudConfig, ConfigError
from engine.clouds.regions import Regions
from engine.enrolment import MachineCredentials


def open_regions(
    config: CloudConfig,
    *,
    enrolment: MachineCredentials,
    datastores: Mapping[str, Datastore],
    pauses: Pauses | None = None,
) -> Regions:
    """The region at the top as the own one, and the others. Nothing is called yet. Raises `ConfigError`."""

    def opened(one: CloudConfig) -> OpenStackCloud:
        return OpenStackCloud(one, enrolment=enrolment, datastores=datastores, pauses=pauses)

    own = opened(config)
    others = {name: opened(config.within(name)) for name in config.regions}
    check_names(own.region, others)
    places: dict[object, str] = {own.project: str(own.region)}
    for name, cloud in others.items():
        if (known := places.setdefault(cloud.project, name)) != name:
            raise ConfigError(
                f"[regions.{name}] is the same place as {known}: the same region and project; "
                "say another cloud or region for it, or leave it out"
            )
    return Regions(own, own.region, others)


def check_names(own: str | None, others: Mapping[str, object]) -> None:
    """Raises `ConfigError` unless each region has a name of its own."""
    if others and own is None:
        raise ConfigError(
            "where there are several regions, the one at the top needs a name, too: say region, or region_name in "
            "clouds.yaml"
        )
    if own in others:
        raise ConfigError(f"[regions.{own}] bears the name of the region at the top; give it another name")
