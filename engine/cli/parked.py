"""What can be done about an operation that is parked, as commands to copy, each with what it would do.

Derived from what its state owes; the engine decides anew when the command comes.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """A command and what it would do."""

    command: str
    effect: str


def ways_on(operation: dict[str, Any]) -> list[Way]:
    """The ways on from where the operation is parked."""
    from aggregates.instance import Instance  # noqa: PLC0415 - all other commands start faster without it

    operation_id, state, owes = operation["id"], str(operation["state"]), operation["effect"]
    owed = Instance.owing.get(state)
    ways = [Way(command=f"holdfast operation retry {operation_id}", effect=f"tries {owes} again, now")]
    if owed is not None and owed.absence:
        ways.append(
            Way(
                command=f"holdfast operation skip {operation_id}",
                effect=f"goes on without {owes}; what it would have removed is left and must be removed by hand",
            )
        )
    else:
        ways.append(
            Way(
                command=f"holdfast operation skip {operation_id} --by-hand",
                effect=f"goes on as if {owes} was done: make it true by hand first",
            )
        )
    ways.append(
        Way(
            command=f"holdfast operation abandon {operation_id}",
            effect="ends it where it is, in ERROR, and lists what is left; then the instance can be deleted",
        )
    )
    if operation["command"] != "delete_instance":
        ways.append(
            Way(
                command=f"holdfast delete {operation['instance_id']}",
                effect="cancels it and removes the instance with its data",
            )
        )
    return ways
