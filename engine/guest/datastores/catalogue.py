"""Which database software this machine has: for a cloud's catalogue, and for the agent that runs one of them.

A datastore whose programs are missing is left out; whether an unprivileged user can reach them is checked by the agent.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import structs

from aggregates.catalogue import Datastore as Offered
from engine.guest.datastores import mariadb, postgresql, redis
from engine.guest.datastores.base import Datastore, DatastoreError, Place

_SOFTWARE: Mapping[str, type[Datastore]] = {
    "postgresql": postgresql.PostgreSQL,
    "mariadb": mariadb.MariaDB,
    "redis": redis.Redis,
}
# What an agent can run on a machine that has the programs, by manager.
KNOWN: Mapping[str, Offered] = {
    manager: Offered(
        manager=manager,
        port=software.default_port,
        versions=(),
        parameters=software.parameters,
        has_databases=software is not redis.Redis,
    )
    for manager, software in _SOFTWARE.items()
}


def available() -> tuple[Offered, ...]:
    """The datastores that this machine can run, each with its versions, oldest first."""
    return tuple(offer for offer in (_postgresql(), _mariadb(), _redis()) if offer is not None)


def open_datastore(manager: str, version: str, place: Place) -> Datastore:
    """The datastore of this name and version. Raises `DatastoreError`."""
    if manager == "postgresql":
        return postgresql.PostgreSQL(place, version)
    if manager == "mariadb":
        return mariadb.MariaDB(place, version)
    if manager == "redis":
        return redis.Redis(place, version)
    raise DatastoreError("datastore_unknown", f"no datastore {manager}; there are: mariadb, postgresql, redis")


def _postgresql() -> Offered | None:
    versions = tuple(v for v in ("16", "18") if postgresql.binaries(v) is not None)
    if not versions:
        return None
    return structs.replace(KNOWN["postgresql"], versions=versions)


def _mariadb() -> Offered | None:
    program = mariadb.binary()
    if program is None:
        return None
    return structs.replace(KNOWN["mariadb"], versions=(_minor(mariadb.full_version(program)),))


def _redis() -> Offered | None:
    program = redis.binary()
    if program is None:
        return None
    return structs.replace(KNOWN["redis"], versions=(_minor(redis.full_version(program)),))


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
