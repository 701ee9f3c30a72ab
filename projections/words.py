"""The words that readers know: our status and Trove's two words, and the effect that a state owes.

All follow from the chart, the obligations and one table; an unknown status maps to Trove's own UNKNOWN.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from typing import Any
from uuid import UUID

from aggregates.base import Context, Lifecycled, configuration
from aggregates.catalogue import Catalogue, Datastore, Flavor
from aggregates.commands import CreateInstance
from aggregates.health import HealthStatus
from aggregates.instance import Instance

LIFECYCLES: dict[str, type[Lifecycled]] = {Instance.kind: Instance}

# Trove has no words for stop and start: its clients know SHUTDOWN and REBOOT for a database that is down, or coming up.
_TROVE = {
    "BUILD": "BUILD",
    "ACTIVE": "ACTIVE",
    "REBOOT": "REBOOT",
    "RESIZE": "RESIZE",
    "MIGRATE": "RESIZE",
    "STOP": "SHUTDOWN",
    "START": "REBOOT",
    "SHUTOFF": "SHUTDOWN",
    "SHUTDOWN": "SHUTDOWN",
    "ERROR": "ERROR",
    "FAILED": "FAILED",
    "DELETED": "SHUTDOWN",
    "UPGRADE": "UPGRADE",
    "REBUILD": "BUILD",
    "UPDATE": "ACTIVE",
    "PROMOTE": "PROMOTE",
    "EJECT": "EJECT",
    "DETACH": "DETACH",
}

# A short silence is none to Trove, whose guests are believed for 90 s; a long one is its ERROR.
_OPERATING = {
    HealthStatus.UNKNOWN: "NEW",
    HealthStatus.HEALTHY: "HEALTHY",
    HealthStatus.SUSPECT: "HEALTHY",
    HealthStatus.DOWN: "ERROR",
}


def status(kind: str, state: str) -> str:
    """The top state."""
    return configuration(LIFECYCLES[kind].chart, state)[0]


def owes(kind: str, state: str) -> bool:
    """Whether the state owes something."""
    return LIFECYCLES[kind].owes_in(state)


def trove_status(word: str) -> str:
    """Trove's `status` for our status."""
    return _TROVE.get(word, "UNKNOWN")


def operating_status(word: str, health: str) -> str:
    """Trove's `operating_status`: empty unless the instance is at rest and ACTIVE."""
    return _OPERATING[HealthStatus(health)] if word == "ACTIVE" else ""


def effect_owed(kind: str, state: str) -> str | None:
    """The name of the effect that the state owes."""
    return _effects(kind).get(state)


@cache
def _effects(kind: str) -> dict[str, str]:
    subject = _SPECIMENS[kind]()
    return {state: _effect(subject, state) for state in LIFECYCLES[kind].owing}


def _effect(subject: Any, state: str) -> str:
    subject.state = state
    return str(subject.owing[state].effect(subject).type_name)


def _instance() -> Instance:
    """What a state owes is derived from an aggregate, so one that exists nowhere is asked for the names."""
    flavor = Flavor(id="1", name="specimen", vcpus=1, ram=1)
    specimen = Instance.create(
        UUID(int=0),
        CreateInstance(name="specimen", flavor="1", datastore="specimen", volume_size=1),
        Context(
            at=datetime.fromtimestamp(0, UTC),
            command_id=UUID(int=0),
            actor="specimen",
            project="specimen",
            partition=0,
            catalogue=Catalogue(
                flavors=(flavor,),
                datastores=(Datastore(manager="specimen", port=5432, versions=("1",), parameters=frozenset()),),
            ),
        ),
    )
    specimen.new_flavor = flavor
    return specimen


_SPECIMENS = {Instance.kind: _instance}
