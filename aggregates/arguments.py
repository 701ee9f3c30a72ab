"""Checks of a command's arguments against the catalogue. Pure; every error names the argument and what is allowed."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Any

from aggregates.base import Refusal
from aggregates.catalogue import Catalogue, Datastore, Flavor
from aggregates.commands import CreateInstance, UpdateAccess
from aggregates.effects import Access

# Arguments of create_instance that a cloud may or may not carry out: set, they need the catalogue's word for it.
OPTIONAL = (
    "image_id", "packages", "backup_id", "nics", "slave_of_id", "cluster_config", "modules", "locality", "access",
)  # fmt: skip
# What asks for nothing: the predecessor's callers set what they do not want to "", [] or {}.
NOTHING: tuple[Any, ...] = (None, "", (), [], {}, Access())
MOST_NETWORKS = 64  # a rule each; clouds allow a group some hundred
# What all three databases take unquoted in any position, and no more than PostgreSQL's 63 bytes.
IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
# Databases that are there already, in one datastore or another.
RESERVED_DATABASES = frozenset(
    {"postgres", "template0", "template1", "mysql", "sys", "information_schema", "performance_schema", "holdfast"}
)
CHARACTER_SET = re.compile(r"[A-Za-z0-9_.-]{1,63}")
HOST = re.compile(r"[A-Za-z0-9.:%_/-]{1,255}")
# Accounts that belong to the datastores or to the guest agent.
RESERVED_USERS = frozenset({"root", "postgres", "holdfast", "default", "mysql", "mariadb.sys", "os_admin"})


def check_create(command: CreateInstance, catalogue: Catalogue) -> dict[str, Any]:
    """The facts of an acceptable create_instance. Raises `Refusal`."""
    catalogue = check_region(command.region or None, catalogue)
    for name in OPTIONAL:
        if getattr(command, name) not in NOTHING:
            check_honoured(name, catalogue)
    if len(command.nics) > 1:
        raise Refusal("unsupported", "an instance lies on one tenant's network; name one in nics")
    flavor = check_flavor(command.flavor, catalogue)
    datastore, version = check_datastore(command, catalogue)
    if command.volume_size > catalogue.max_volume_size:
        raise Refusal("invalid_argument", f"volume_size may be at most {catalogue.max_volume_size} GiB")
    _one_of("volume_type", command.volume_type, catalogue.volume_types)
    _one_of("availability_zone", command.availability_zone, catalogue.availability_zones)
    _check_names(command, datastore)
    return {
        "name": command.name,
        "flavor": flavor,
        "datastore": datastore.manager,
        "datastore_version": version,
        "volume_size": command.volume_size,
        "volume_type": command.volume_type,
        "databases": command.databases,
        "users": command.users,
        "root_password_ref": command.root_password_ref,
        "overrides": check_overrides(command, datastore),
        "availability_zone": command.availability_zone,
        "keep_on_failure": command.keep_on_failure,
        "image_id": command.image_id or None,
        "nics": tuple(command.nics),
        "management_network": catalogue.management_network,
        "locality": command.locality or None,
        "access": _checked(command.access or Access()) if "access" in catalogue.honours else None,
        "datastore_port": datastore.port,
        "region": catalogue.region,
    }


def check_region(wanted: str | None, catalogue: Catalogue) -> Catalogue:
    """What is offered in the region that a create_instance wants. Raises `Refusal`."""
    if wanted is not None and catalogue.region is None:
        raise Refusal("unsupported", "this cloud has no regions to choose from; leave region out")
    offered = catalogue.within(wanted)
    if offered is None:
        raise Refusal("invalid_argument", f"no region {wanted}; there are: {', '.join(catalogue.region_names)}")
    return _known(offered)


def offered_where(region: str | None, catalogue: Catalogue) -> Catalogue:
    """What is offered in the region where an instance lies. Raises `Refusal`."""
    offered = catalogue.within(region)
    if offered is None:
        there_are = ", ".join(catalogue.region_names) or "none"
        raise Refusal(
            "forbidden_state",
            f"the instance lies in region {region}, which this installation has no more (there are: {there_are}); "
            "put the region back into the cloud's configuration",
        )
    return _known(offered)


def _known(offered: Catalogue) -> Catalogue:
    if offered.unavailable is not None:
        raise Refusal(
            "region_unavailable",
            f"it is not known what region {offered.region} offers, since it has not answered yet: "
            f"{offered.unavailable}; send the command again later, with a new id",
        )
    return offered


def check_honoured(argument: str, catalogue: Catalogue) -> None:
    """Raises `Refusal` for an argument that this cloud does not carry out."""
    if argument not in catalogue.honours:
        raise Refusal("unsupported", f"this cloud does not support the argument {argument}; leave it out")


def check_update(command: UpdateAccess, present: Access | None, catalogue: Catalogue) -> Access:
    """The access that the instance is to have. Raises `Refusal`."""
    if "access" not in catalogue.honours:
        raise Refusal("unsupported", "this cloud guards nobody's access: there is nothing to update")
    if command.public is None and command.allowed_cidrs is None:
        raise Refusal("invalid_argument", "say what shall change: public, allowed_cidrs or both")
    known = present or Access()
    public = known.public if command.public is None else command.public
    cidrs = known.allowed_cidrs if command.allowed_cidrs is None else command.allowed_cidrs
    return _checked(Access(public=public, allowed_cidrs=cidrs))


def same(one: Access, other: Access) -> bool:
    """Whether they let in the same, in whatever order they say so."""
    return (one.public, set(one.allowed_cidrs)) == (other.public, set(other.allowed_cidrs))


def _checked(access: Access) -> Access:
    return Access(public=access.public, allowed_cidrs=tuple(dict.fromkeys(_networks(access.allowed_cidrs))))


def _networks(cidrs: tuple[str, ...]) -> Iterable[str]:
    if len(cidrs) > MOST_NETWORKS:
        raise Refusal("invalid_argument", f"allowed_cidrs may be {MOST_NETWORKS} at most, not {len(cidrs)}")
    for cidr in cidrs:
        try:
            network = ipaddress.ip_network(cidr, strict=False)
        except ValueError:
            raise Refusal(
                "invalid_argument", f"allowed_cidrs: {cidr[:80]!r} is no network; write one as 192.0.2.0/24"
            ) from None
        if "/" in cidr and ipaddress.ip_interface(cidr).ip != network.network_address:
            # To widen it to what it may have been meant for would let in whom nobody named.
            raise Refusal("invalid_argument", f"allowed_cidrs: {cidr} names a host; write {network} for its network")
        yield str(network)


def check_flavor(wanted: str, catalogue: Catalogue) -> Flavor:
    """The flavor of this id or name. Raises `Refusal`."""
    flavor = catalogue.flavor(wanted)
    if flavor is None:
        names = ", ".join(f.name for f in catalogue.flavors)
        raise Refusal("invalid_argument", f"no flavor {wanted}; there are: {names}")
    return flavor


def check_datastore(command: CreateInstance, catalogue: Catalogue) -> tuple[Datastore, str]:
    """The datastore and the version to install, the newest by default. Raises `Refusal`."""
    datastore = catalogue.datastore(command.datastore)
    if datastore is None:
        names = ", ".join(d.manager for d in catalogue.datastores)
        raise Refusal("invalid_argument", f"no datastore {command.datastore}; there are: {names}")
    version = command.datastore_version or datastore.versions[-1]
    _one_of(f"datastore_version of {datastore.manager}", version, datastore.versions)
    return datastore, version


def check_overrides(command: CreateInstance, datastore: Datastore) -> dict[str, str]:
    """The overrides as strings. Raises `Refusal` for a parameter that may not be set, or a value on several lines."""
    unknown = sorted(command.overrides.keys() - datastore.parameters)
    if unknown:
        raise Refusal(
            "invalid_argument",
            f"overrides may not set {', '.join(unknown)}; {datastore.manager} takes: "
            f"{', '.join(sorted(datastore.parameters))}",
        )
    values = {name: _as_text(value) for name, value in command.overrides.items()}
    for name, value in values.items():
        if not re.fullmatch(r"[\w .,:/%+-]{1,255}", value):
            raise Refusal("invalid_argument", f"the value of override {name} has characters that may not be used")
    return values


def _as_text(value: str | float | bool) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


def _check_names(command: CreateInstance, datastore: Datastore) -> None:
    if command.databases and not datastore.has_databases:
        raise Refusal("unsupported", f"{datastore.manager} has no databases to create; leave databases out")
    if command.users and not datastore.has_users:
        raise Refusal("unsupported", f"{datastore.manager} has no users to create; leave users out")
    databases = [database.name for database in command.databases]
    _check_identifiers("database", databases, RESERVED_DATABASES)
    _check_identifiers("user", [user.name for user in command.users], RESERVED_USERS)
    for database in command.databases:
        for what, value in (("character_set", database.character_set), ("collate", database.collate)):
            if value is not None and not CHARACTER_SET.fullmatch(value):
                raise Refusal("invalid_argument", f"{what} {value[:80]!r} of database {database.name} is no such name")
    for user in command.users:
        if not HOST.fullmatch(user.host):
            raise Refusal("invalid_argument", f"host {user.host[:80]!r} of user {user.name} is no address or pattern")
        missing = sorted(set(user.databases) - set(databases))
        if missing:
            raise Refusal("invalid_argument", f"user {user.name} wants databases that are not made: {missing}")


def _check_identifiers(what: str, names: list[str], reserved: frozenset[str]) -> None:
    for name in names:
        if not IDENTIFIER.fullmatch(name):
            raise Refusal("invalid_argument", f"{what} name {name[:80]!r}: use letters, digits and _, at most 63")
        if name.lower() in reserved:
            raise Refusal("invalid_argument", f"{what} name {name} is reserved")
    if len(set(names)) < len(names):
        raise Refusal("invalid_argument", f"a {what} is named twice")


def _one_of(argument: str, value: str | None, allowed: tuple[str, ...]) -> None:
    if value is not None and value not in allowed:
        raise Refusal("invalid_argument", f"no {argument} {value}; there are: {', '.join(allowed) or 'none'}")
