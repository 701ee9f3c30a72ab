"""What many tests begin with: a catalogue, a context, an instance on its way."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from aggregates.base import Context
from aggregates.catalogue import Catalogue, Datastore, Flavor, Quota
from aggregates.commands import CreateInstance
from aggregates.instance import Instance

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)

CATALOGUE = Catalogue(
    flavors=(
        Flavor(id="small", name="small", vcpus=1, ram=512),
        Flavor(id="large", name="large", vcpus=2, ram=2048),
    ),
    datastores=(
        Datastore(manager="postgresql", versions=("16", "18"), parameters=frozenset({"work_mem"})),
        Datastore(manager="redis", versions=("6.2",), parameters=frozenset(), has_databases=False),
    ),
    availability_zones=("az-1", "az-2"),
    volume_types=("local",),
    hosts=("host-1", "host-2"),
    quota=Quota(),
)

# What the cloud and the guest yield for each transition whose event records more than the state.
YIELDS: dict[str, dict[str, Any]] = {
    "port_created": {"port_id": "port-1", "address": "127.9.9.9"},
    "volume_created": {"volume_id": "volume-1"},
    "server_created": {"server_id": "server-1", "host": "host-1"},
    "database_prepared": {"port": 5432},
    "server_migrated": {"new_host": "host-2"},
}


def context(command_id: UUID | None = None, **changes: Any) -> Context:
    """A decision's context: tenant's command at noon."""
    given: dict[str, Any] = {
        "at": NOON,
        "command_id": command_id or uuid4(),
        "actor": "alice",
        "project": "acme",
        "partition": 7,
        "catalogue": CATALOGUE,
    }
    return Context(**{**given, **changes})


def requested(instance_id: UUID | None = None, **arguments: Any) -> Instance:
    """An instance whose create was accepted and nothing else."""
    given: dict[str, Any] = {"name": "orders", "flavor": "small", "datastore": "postgresql", "volume_size": 1}
    command = CreateInstance(**{**given, **arguments})
    return Instance.create(instance_id or uuid4(), command, context())


def settle(instance: Instance) -> list[str]:
    """Pay all that is owed, every effect succeeding; the states passed."""
    passed = []
    while (owed := instance.owes()) is not None:
        passed.append(instance.state)
        instance.take(owed.then, at=NOON, **owed.facts, **YIELDS.get(owed.then, {}))
    return passed


def active(**arguments: Any) -> Instance:
    """An instance that is ACTIVE."""
    instance = requested(**arguments)
    settle(instance)
    return instance
