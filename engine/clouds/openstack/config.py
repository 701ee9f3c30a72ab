"""What an operator says of the OpenStack that servers are made on: one TOML file, checked as a whole when it is read.

Credentials do not stand in it: they come from clouds.yaml or the OS_* environment, as openstacksdk reads them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from aggregates.catalogue import Quota

Seconds = Annotated[float, msgspec.Meta(gt=0, le=86400)]
Name = Annotated[str, msgspec.Meta(min_length=1)]


class ConfigError(ValueError):
    """The configuration cannot be used; the message says where and why."""


class Networks(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where servers are reached: names or ids of Neutron's networks."""

    tenant: Name
    """The network of an instance's port: tenants reach their databases in it."""
    management: Name | None = None
    """A second network of every server, by which its agent reaches the broker."""
    external: Name | None = None
    """The network that floating addresses are taken from; without one, no instance can be public."""
    dns: bool = False
    """Whether the tenants' port, and by it a floating address, gets its name as a DNS name. Neutron publishes it in
    Designate where the network has a domain, and takes it back with the port."""
    security_groups: tuple[Name, ...] = ()
    """Security groups, by name or id, that every port has besides its instance's own."""


class Servers(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How servers are made."""

    flavors: tuple[Name, ...] = ("*",)
    """Which flavors are offered: patterns of their names, as a shell has them."""
    availability_zones: tuple[Name, ...] = ("*",)
    """Which availability zones are offered: patterns."""
    key_name: Name | None = None
    """A key pair of Nova's for whoever must look into a server."""
    boot_volume_size: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Size in GiB of a volume to boot from, which goes with its server; 0: from the flavor's own disk."""
    images: dict[Name, Name] = {}
    """Image ids by datastore and version, as `"postgresql/16" = "<id>"`. For all others the newest active image counts
    that has the properties `holdfast_datastore` and `holdfast_datastore_version`."""


class Volumes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How volumes are made."""

    types: tuple[Name, ...] = ("*",)
    """Which volume types are offered: patterns."""
    extended_offline: tuple[Name, ...] = ()
    """Types whose volumes Cinder cannot extend while a server has them, as patterns: databases are stopped for it."""
    default_type: Name | None = None
    """The type of a volume for which none was asked; without one, Cinder's own default."""
    availability_zone: Name | None = None
    """The zone of all volumes, where Cinder's zones are not Nova's; without one, that of the instance."""
    max_size: Annotated[int, msgspec.Meta(ge=1)] = 1024
    """The largest volume that may be asked for, in GiB."""


class Timing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long things may take, in seconds."""

    call: Seconds = 60.0
    """A call, before its answer counts as missing."""
    built: Seconds = 1800.0
    """The cloud's work on a server or a volume, before this try counts as failed; another follows."""
    busy: Seconds = 300.0
    """How long a call that is refused as one too many is repeated, as the cloud asks for patience."""
    latest_effect: Seconds = 180.0
    """For so long after its begin a call whose answer is missing may be carried out: the time that it can lie in a
    queue before an API (the timeouts of a proxy), and the time that the API then takes for it. Less than `call`
    makes no sense. Too short may leave doubles; longer only makes what is undone after a lost answer wait."""


class Region(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A further region, by the name that commands ask for it with. What is not said here is as at the top.

    By another entry of clouds.yaml it is that of another project, or of another OpenStack.
    """

    cloud: Name | None = None
    """The entry of clouds.yaml, instead of the one at the top."""
    region: Name | None = None
    """The region's name in Keystone's catalogue; without one, that of this table or, where `cloud` is said here, what
    that entry of clouds.yaml says."""
    networks: dict[Name, Any] = {}
    """Keys of `[networks]` that differ here."""
    servers: dict[Name, Any] = {}
    """Keys of `[servers]` that differ here. Ids of images rarely are the same in two regions."""
    volumes: dict[Name, Any] = {}
    """Keys of `[volumes]` that differ here."""


class CloudConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An OpenStack, as its service user has it: one region and one project, or several. Tenants are told apart by
    metadata.
    """

    networks: Networks
    cloud: Name | None = None
    """The entry of clouds.yaml; without one, `OS_CLOUD` or the other OS_* variables."""
    region: Name | None = None
    """The region of instances for which none is asked, where the cloud has several; without one, the `region_name` of
    clouds.yaml or the environment."""
    servers: Servers = Servers()
    volumes: Volumes = Volumes()
    timing: Timing = Timing()
    quota: Quota = Quota()
    """What a project may hold at once, in all regions together."""
    calls_at_once: Annotated[int, msgspec.Meta(ge=1, le=512)] = 32
    """Calls to a region at once, each in a thread of its own."""
    regions: dict[Name, Region] = {}
    """Further regions."""

    def within(self, name: str) -> CloudConfig:
        """The configuration of the further region alone. Raises `ConfigError` where what differs there is wrong."""
        told = self.regions[name]
        try:
            return msgspec.structs.replace(
                self,
                cloud=told.cloud or self.cloud,
                region=told.region or (name if told.cloud is None else None),
                networks=_differing(self.networks, told.networks),
                servers=_differing(self.servers, told.servers),
                volumes=_differing(self.volumes, told.volumes),
                regions={},
            )
        except msgspec.ValidationError as error:
            raise ConfigError(f"in [regions.{name}]: {error}") from error


S = TypeVar("S", bound=msgspec.Struct)


def _differing(top: S, told: dict[str, Any]) -> S:
    return msgspec.convert(msgspec.structs.asdict(top) | told, type(top))


def load_config(path: Path, **settings: Any) -> CloudConfig:
    """The configuration in the file; `settings` that are not None go before what stands there. Raises `ConfigError`."""
    try:
        config = msgspec.toml.decode(path.read_bytes(), type=CloudConfig)
        for region in config.regions:
            config.within(region)
    except OSError as error:
        raise ConfigError(f"the cloud's configuration {path} cannot be read: {error.strerror or error}") from error
    except (msgspec.MsgspecError, ConfigError) as error:
        raise ConfigError(f"the cloud's configuration {path} is wrong: {error}") from error
    return msgspec.structs.replace(config, **{name: value for name, value in settings.items() if value is not None})
