"""What may be asked for: flavors, datastores and the arguments that a cloud honours, as data given to each decision.

A decision records what it took from here as facts, so a later change of the catalogue never changes history.
"""

from __future__ import annotations

import msgspec


class Flavor(msgspec.Struct, frozen=True, kw_only=True):
    """The size of a server: virtual CPUs and memory in MiB."""

    id: str
    name: str
    vcpus: int
    ram: int


class Datastore(msgspec.Struct, frozen=True, kw_only=True):
    """A database software: its versions, the TCP port it is reached at, the parameters a tenant may set, what its
    instances can hold.
    """

    manager: str
    port: int
    versions: tuple[str, ...]
    parameters: frozenset[str]
    has_databases: bool = True
    has_users: bool = True


class Quota(msgspec.Struct, frozen=True, kw_only=True):
    """What a project may hold at once; -1 is without limit. `ram` in MiB, `volumes` in GiB, `backups` by number."""

    instances: int = -1
    ram: int = -1
    volumes: int = -1
    backups: int = -1


class Catalogue(msgspec.Struct, frozen=True, kw_only=True):
    """What the cloud behind the engine offers; where it has regions, what its own region does.

    `honours` names the optional arguments of create_instance and rebuild that this cloud carries out; any other one
    that a command sets is refused `unsupported`, and so is a command about what it names. Where it names `access`,
    every instance gets a security group. `extended_offline`: the types of volumes that cannot be extended while a
    server has them, None for those made without a type. `management_network`: where guest agents are reached, if
    not by the tenant's network. `region` is the name of the region, `regions` what each of the others offers.
    `unavailable`: why nothing is known of what the region offers, which then can be asked for nothing.
    """

    flavors: tuple[Flavor, ...]
    datastores: tuple[Datastore, ...]
    availability_zones: tuple[str, ...] = ()
    volume_types: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    honours: frozenset[str] = frozenset()
    extended_offline: frozenset[str | None] = frozenset()
    management_network: str | None = None
    max_volume_size: int = 1024
    quota: Quota = Quota()
    region: str | None = None
    regions: dict[str, Catalogue] = {}
    unavailable: str | None = None

    @property
    def region_names(self) -> tuple[str, ...]:
        """The regions there are, its own first; none where it has none to choose from."""
        return () if self.region is None else (self.region, *self.regions)

    @property
    def whole(self) -> bool:
        """Whether it is known of each region what it offers."""
        return self.unavailable is None and all(each.unavailable is None for each in self.regions.values())

    def within(self, region: str | None) -> Catalogue | None:
        """What the region offers, its own where none is named; None for a region that there is not."""
        return self if region in (None, self.region) else self.regions.get(region or "")

    def flavor(self, wanted: str) -> Flavor | None:
        """The flavor of this id or name."""
        return next((f for f in self.flavors if wanted in (f.id, f.name)), None)

    def datastore(self, manager: str) -> Datastore | None:
        """The datastore of this manager name."""
        return next((d for d in self.datastores if d.manager == manager), None)
