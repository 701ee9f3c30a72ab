"""The command record: the one event that every command leaves, and by whose key it is decided once for ever.

Its id follows from project and command id, and its version is 1: a second decision about the same command is a
conflict in the store. It says what was decided, never what came of it: that is the operation's story.
"""

from __future__ import annotations

from typing import ClassVar
from uuid import NAMESPACE_URL, UUID, uuid5

from eventsourcing.domain import Aggregate as LibraryAggregate

from aggregates.base import Event


def record_id(project: str, command_id: UUID) -> UUID:
    """The id of the record of a command."""
    return uuid5(NAMESPACE_URL, f"holdfast:command:{project}:{command_id}")


class CommandRecord(LibraryAggregate):
    """Never loaded as an aggregate: its only event says everything."""


class Decided(Event):
    """Base: which command, from whom, about what. `content` is the hash of the body, `sequence` the broker's."""

    kind: ClassVar[str] = ""

    project: str
    command_id: UUID
    command: str
    aggregate_kind: str
    aggregate_id: str
    actor: str
    content: str
    sequence: int


class CommandAccepted(Decided):
    """The aggregate accepted the command and is at `version` with it."""

    kind: ClassVar[str] = "command"

    version: int


class CommandRejected(Decided):
    """The command was refused; nothing else was written."""

    kind: ClassVar[str] = "command"

    code: str
    reason: str
