"""Which database software this machine has: for a cloud's catalogue, and for the agent that runs one of them.

A datastore whose programs are missing is left out; whether an unprivileged user can reach them is checked by the agent.
"""

from __future__ import annotations

from aggregates.catalogue import Datastore as Offered
from engine.guest.datastores import postgresql
from engine.guest.datastores.base import Datastore, DatastoreError, Place


def available() -> tuple[Offered, ...]:
    """The datastores that this machine can run, each with its versions, oldest first."""
    return tuple(offer for offer in (_postgresql(),) if offer is not None)


def open_datastore(manager: str, version: str, place: Place) -> Datastore:
    """The datastore of this name and version. Raises `DatastoreError`."""
    if manager == "postgresql":
        return postgresql.PostgreSQL(place, version)
    raise DatastoreError("datastore_unknown", f"no datastore {manager}; there are: mariadb, postgresql, redis")


def _postgresql() -> Offered | None:
    versions = tuple(v for v in ("16", "18") if postgresql.binaries(v) is not None)
    if not versions:
        return None
    return Offered(manager="postgresql", versions=versions, parameters=postgresql.PostgreSQL.parameters)
