"""An instance that exists nowhere, to be asked what it would decide and owe in each of its states.

The documents are derived from the same code that decides, so they cannot say anything else. Its facts are made up;
only names of states, effects and transitions are read off it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from aggregates.base import Context, Refusal
from aggregates.catalogue import Catalogue, Datastore, Flavor
from aggregates.charts import configuration, decide, walk
from aggregates.commands import OPERATIONS, CreateInstance, example
from aggregates.instance import Instance

SMALL, LARGE = (Flavor(id=name, name=name, vcpus=1, ram=512) for name in ("small", "large"))
CATALOGUE = Catalogue(
    flavors=(SMALL, LARGE),
    datastores=(Datastore(manager="postgresql", versions=("18",), parameters=frozenset()),),
)
EXAMPLES = {name: example(command) for name, command in OPERATIONS.items()}
CREATE = example(CreateInstance)

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
    instance = Instance.create(UUID(int=0), CREATE, CONTEXT)
    instance.state = state
    instance.new_flavor = LARGE
    instance.keep_on_failure = keep_on_failure
    if not Instance.owes_in(state):
        instance.operation = None
    return instance


def leaves() -> list[str]:
    """Every state that an instance can be in, in the chart's order."""
    return [state.id for _, state in walk(Instance.chart.states) if not state.states]


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
    """The states that the command passes."""
    if name == "create_instance":
        operation = Instance.create(UUID(int=0), CREATE, CONTEXT).operation
        return operation.plan if operation is not None else ()
    return next(found for state in settled() if (found := _plan(name, state)) is not None)


def _plan(name: str, state: str) -> tuple[str, ...] | None:
    instance = instance_in(state)
    try:
        instance.execute(EXAMPLES[name], CONTEXT)
    except Refusal:
        return None
    return instance.operation.plan if instance.operation is not None else None


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
