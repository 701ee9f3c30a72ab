"""An instance that exists nowhere, to be asked what it would decide and owe in each of its states.

The documents are derived from the same code that decides, so they cannot say anything else. Its facts are made up;
only names of states, effects and transitions are read off it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import cast
from uuid import UUID

import msgspec

from aggregates.base import Context, Refusal, _walk, configuration, decide
from aggregates.catalogue import Catalogue, Datastore, Flavor
from aggregates.commands import OPERATIONS, CreateInstance, InstanceCommand, example, variants
from aggregates.effects import Access
from aggregates.instance import Instance

SMALL, LARGE = (Flavor(id=name, name=name, vcpus=1, ram=512) for name in ("small", "large"))
CATALOGUE = Catalogue(
    flavors=(SMALL, LARGE),
    datastores=(Datastore(manager="postgresql", port=5432, versions=("18",), parameters=frozenset()),),
    volume_types=("local", "remote"),
    honours=frozenset({"access", "image_id", "locality", "nics"}),
    extended_offline=frozenset({"remote"}),
    management_network="management",
)
BARE = msgspec.structs.replace(CATALOGUE, honours=frozenset(), extended_offline=frozenset(), management_network=None)
EXAMPLES = {name: example(command) for name, command in OPERATIONS.items()}
(CREATE,) = variants(CreateInstance)

CONTEXT = Context(
    at=datetime.fromtimestamp(0, UTC),
    command_id=UUID(int=0),
    actor="docs",
    project="docs",
    partition=0,
    catalogue=CATALOGUE,
)


def instance_in(state: str, *, keep_on_failure: bool = False) -> Instance:
    """The specimen, in this state."""
    instance = _created(CREATE, CONTEXT)
    instance.state = state
    instance.new_flavor = LARGE
    instance.port = 5432
    instance.offline = True
    if state == "ACTIVE" or top(state) == "UPDATE":
        instance.access = instance.old_access = Access()
        instance.new_access = Access(public=True, allowed_cidrs=("10.0.0.0/8",))
    instance.keep_on_failure = keep_on_failure
    if not Instance.owes_in(state):
        instance.operation = None
    return instance


def _created(command: InstanceCommand, context: Context) -> Instance:
    return Instance.create(UUID(int=0), cast("CreateInstance", command), context)


def leaves() -> list[str]:
    """Every state that an instance can be in, in the chart's order."""
    return [state.id for _, state in _walk(Instance.chart.states) if not state.states]


def settled() -> list[str]:
    """The states that owe nothing."""
    return [state for state in leaves() if not Instance.owes_in(state)]


def top(state: str) -> str:
    """The word that users see."""
    return configuration(Instance.chart, state)[0]


def effect(state: str) -> str:
    """The name of what the state owes."""
    return Instance.owing[state].effect(instance_in(state)).type_name


def entered(state: str, transition: str, *, keep_on_failure: bool = False) -> str | None:
    """The state that the transition leads to from this one; None where there is none."""
    try:
        return decide(Instance.chart, state, transition, subject=instance_in(state, keep_on_failure=keep_on_failure))
    except Refusal:
        return None


def allowed(name: str) -> list[str]:
    """The settled states in which the command is accepted."""
    return [state for state in settled() if _plan(name, state) is not None]


def plan(name: str) -> tuple[str, ...]:
    """The states that the command passes, where all that there is is asked for."""
    if name == "create_instance":
        return _planned(_created(CREATE, CONTEXT))
    return next(found for state in settled() if (found := _plan(name, state)) is not None)


def optional(name: str) -> frozenset[str]:
    """Those of them that are passed only where they are wanted, or the cloud works so."""
    bare = msgspec.structs.replace(CONTEXT, catalogue=BARE)
    plain = _created(EXAMPLES["create_instance"], bare)
    if name != "create_instance":
        plain.state, plain.operation, plain.port = next(each for each in settled() if _plan(name, each)), None, 5432
        try:
            plain.execute(EXAMPLES[name], bare)
        except Refusal:
            return frozenset(plan(name))
    return frozenset(plan(name)) - set(_planned(plain))


def _plan(name: str, state: str) -> tuple[str, ...] | None:
    instance = instance_in(state)
    try:
        instance.execute(EXAMPLES[name], CONTEXT)
    except Refusal:
        return None
    return _planned(instance)


def _planned(instance: Instance) -> tuple[str, ...]:
    return instance.operation.plan if instance.operation is not None else ()


def way(state: str) -> tuple[list[str], str]:
    """The states passed from this one on when all goes well, itself first, and the settled one at the end."""
    passed = []
    while Instance.owes_in(state):
        passed.append(state)
        following = entered(state, Instance.owing[state].then)
        if following is None:
            raise TypeError(f"{state} has no way on")
        state = following
    return passed, state
