"""What many tests begin with: a catalogue, a context, an instance on its way."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any
from uuid import UUID, uuid4

import msgspec

from aggregates.base import Context, Failure, Refusal
from aggregates.catalogue import Catalogue, Datastore, Flavor, Quota
from aggregates.commands import (
    INTERVENTIONS,
    OPERATIONS,
    CreateInstance,
    InstanceCommand,
    OperationCommand,
    Rebuild,
    Restart,
    StopInstance,
    UpdateAccess,
    example,
    variants,
)
from aggregates.instance import Instance

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)

CATALOGUE = Catalogue(
    flavors=(
        Flavor(id="small", name="small", vcpus=1, ram=512),
        Flavor(id="large", name="large", vcpus=2, ram=2048),
    ),
    datastores=(
        Datastore(manager="postgresql", port=5432, versions=("16", "18"), parameters=frozenset({"work_mem"})),
        Datastore(manager="redis", port=6379, versions=("6.2",), parameters=frozenset(), has_databases=False),
    ),
    availability_zones=("az-1", "az-2"),
    volume_types=("local", "remote"),
    hosts=("host-1", "host-2"),
    honours=frozenset({"access", "image_id", "locality", "nics", "snapshot"}),
    extended_offline=frozenset({"remote"}),
    quota=Quota(),
)
# A cloud with a network of its own for guest agents, and one that knows none of what instances may ask for.
MANAGED = msgspec.structs.replace(CATALOGUE, management_network="management")
BARE = msgspec.structs.replace(CATALOGUE, honours=frozenset())
# A cloud with a second region, which offers other things.
REGIONS = msgspec.structs.replace(
    CATALOGUE,
    region="one",
    regions={
        "two": Catalogue(
            flavors=(
                Flavor(id="21", name="small", vcpus=1, ram=512),
                Flavor(id="22", name="large", vcpus=2, ram=4096),
                Flavor(id="23", name="huge", vcpus=8, ram=8192),
            ),
            datastores=CATALOGUE.datastores[:1],
            availability_zones=("az-9",),
            volume_types=("fast",),
            hosts=("host-8", "host-9"),
            extended_offline=frozenset({None}),
            management_network="management-2",
            max_volume_size=5,
            region="two",
        )
    },
)

# What the cloud and the guest yield for each transition whose event records more than the state.
YIELDS: dict[str, dict[str, Any]] = {
    "server_group_created": {"server_group_id": "server-group-1"},
    "security_group_created": {"security_group_id": "security-group-1"},
    "port_created": {"port_id": "port-1", "address": "127.9.9.9"},
    "management_port_created": {"management_port_id": "port-2"},
    "floating_address_created": {"floating_address_id": "address-1", "public_address": "203.0.113.7"},
    "volume_created": {"volume_id": "volume-1"},
    "snapshot_created": {"snapshot_id": "snapshot-1"},
    "server_created": {"server_id": "server-1", "host": "host-1"},
    "database_prepared": {"port": 5432},
    "server_migrated": {"new_host": "host-2"},
    "server_resized": {"new_host": "host-2"},
    "surplus_removed": {"removed": ("volume-2",)},
}

# One good command of every name that an existing instance knows and that begins an operation.
EXAMPLES: dict[str, InstanceCommand] = {
    name: example(command) for name, command in OPERATIONS.items() if not command.creates
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


def requested_fully() -> Instance:
    """One whose create asked for all that there is."""
    (command,) = variants(CreateInstance)
    assert isinstance(command, CreateInstance)
    return Instance.create(uuid4(), command, context(catalogue=MANAGED))


def requested_before() -> Instance:
    """One whose create a cloud took that guards nobody's access, as all did before."""
    command = example(CreateInstance)
    assert isinstance(command, CreateInstance)
    return Instance.create(uuid4(), command, context(catalogue=BARE))


def made_private() -> Instance:
    """One that was public, and gives its address up."""
    instance = requested_fully()
    settle(instance)
    instance.execute(UpdateAccess(public=False), context())
    return instance


def rebuilding(instance: Instance | None = None) -> Instance:
    """One whose rebuild is to keep a snapshot of its volume."""
    (command,) = variants(Rebuild)
    instance = active() if instance is None else instance
    instance.execute(command, context())
    return instance


def keeping(instance: Instance) -> Instance:
    """ACTIVE again after a rebuild that failed, with the snapshot that it has kept."""
    fail(advance(rebuilding(instance), "rebuild_server"))
    instance.execute(Restart(), context())
    settle(instance)
    return instance


def pay(instance: Instance) -> None:
    """Pay what the state owes, successfully."""
    owed = instance.owes()
    assert owed is not None, f"{instance.state} owes nothing"
    instance.take(owed.then, at=NOON, **owed.facts, **YIELDS.get(owed.then, {}))


def fail(instance: Instance, code: str = "cloud_error", message: str = "No valid host was found.") -> None:
    """Have what the state owes fail for good."""
    instance.take("failed", at=NOON, failure=Failure(code=code, message=message, state=instance.state))


def unanswered(instance: Instance) -> Instance:
    """The instance, with a call on record whose answer nobody knows."""
    instance.note("CallUnanswered", at=NOON, effect="EnsureVolume", until=NOON + timedelta(seconds=60))
    return instance


def intervention(instance: Instance, name: str, **arguments: Any) -> OperationCommand:
    """The command of this name about the operation that runs, or about one that never was."""
    running = instance.operation.id if instance.operation is not None else UUID(int=0)
    return INTERVENTIONS[name](**{"operation_id": running, **arguments})


def park(instance: Instance, code: str = "cloud_error", message: str = "in use") -> Instance:
    """The instance, parked over what it owes."""
    owed = instance.owes()
    assert owed is not None, f"{instance.state} owes nothing"
    instance.note("OperationParked", at=NOON, effect=owed.effect.type_name, code=code, message=message)
    return instance


def settle(instance: Instance) -> list[str]:
    """Pay all that is owed, every effect succeeding; the states passed."""
    passed = []
    while instance.owes() is not None:
        passed.append(instance.state)
        pay(instance)
    return passed


def advance(instance: Instance, state: str) -> Instance:
    """Pay until the instance is in the state."""
    while instance.state != state:
        pay(instance)
    return instance


def active(**arguments: Any) -> Instance:
    """An instance that is ACTIVE."""
    instance = requested(**arguments)
    settle(instance)
    return instance


def started(name: str, **changes: Any) -> Instance:
    """An instance whose operation of this command has just begun."""
    if name == "create_instance":
        return requested()
    instance = active()
    if name == "start_instance":
        instance.execute(StopInstance(), context())
        settle(instance)
    instance.execute(EXAMPLES[name], context(**changes))
    return instance


class Copies(Mapping[str, Instance]):
    """Instances by name, of which everybody gets one of their own."""

    def __init__(self, originals: Mapping[str, Instance]) -> None:
        self._originals = originals

    def __getitem__(self, name: str) -> Instance:
        return deepcopy(self._originals[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._originals)

    def __len__(self) -> int:
        return len(self._originals)


def everywhere() -> Mapping[str, Instance]:
    """An instance in each state that commands, paid effects and failures lead to, the shortest way there."""
    return Copies(_everywhere())


@cache
def _everywhere() -> dict[str, Instance]:
    origins = (
        requested(),
        requested(keep_on_failure=True),
        advance(unanswered(requested()), "build_surplus"),
        requested_fully(),
        requested_before(),
        unanswered(requested_before()),
        made_private(),
        rebuilding(),
    )
    found: dict[str, Instance] = {}
    for origin in origins:
        for state, instance in _reached(origin).items():
            found.setdefault(state, instance)
    return found


def _reached(origin: Instance) -> dict[str, Instance]:
    found = {origin.state: origin}
    queue = deque([origin])
    while queue:
        instance = queue.popleft()
        for following in _following(instance):
            if following.state not in found:
                found[following.state] = following
                queue.append(following)
    return found


def _following(instance: Instance) -> list[Instance]:
    following = []
    if instance.owes() is not None:
        following.append(deepcopy(instance))
        pay(following[-1])
    if instance.can("failed"):
        following.append(deepcopy(instance))
        fail(following[-1])
    if instance.owes() is None:
        for command in EXAMPLES.values():
            copy = deepcopy(instance)
            try:
                copy.execute(command, context())
            except Refusal:
                continue
            following.append(copy)
    return following
