"""What can be asked of the read models: the arguments of each query, and how each model is looked up, listed, watched.

Pure reading, scoped by a project: another project's record is not found. It knows no transport.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from msgspec import Meta

from engine.messages import PREFIX, Outcome
from projections import commands, fleet, history, instances, operations, quota
from projections.answers import CommandAnswer, OperationAnswer, WatchAnswer
from projections.listing import Listing, ListRequest, QueryError

MAX_WAIT = 60.0  # seconds that commands.get waits at most; ask again to wait longer


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of a query's arguments."""


class GetCommand(Request, frozen=True, kw_only=True, rename={"until": "for"}):
    """Arguments of `commands.get`: waits up to `wait` seconds `for` the decision, or for the outcome.

    Not decided by then is the error `timeout`; an operation still running is an answer like any other.
    """

    command_id: UUID
    wait: Annotated[float, Meta(ge=0, le=MAX_WAIT)] = 0.0
    until: Literal["decision", "outcome"] = "decision"


class GetInstance(Request, frozen=True, kw_only=True):
    """Arguments of `instances.get` and `heartbeats.get`."""

    instance_id: UUID


class GetOperation(Request, frozen=True, kw_only=True):
    """Arguments of `operations.get`. An operation has the id of the command that began it."""

    operation_id: UUID


class GetEvent(Request, frozen=True, kw_only=True):
    """Arguments of `history.get`."""

    aggregate_id: UUID
    version: Annotated[int, Meta(ge=1, le=2**63 - 1)]


class GetNumbers(Request, frozen=True, kw_only=True):
    """`fleet.get`, `quota.get` and `troubles.get` take no arguments."""


class WatchRequest(ListRequest, frozen=True, kw_only=True):
    """Arguments of `watch`: the id of one record, or what `list` takes."""

    command_id: UUID | None = None
    instance_id: UUID | None = None
    operation_id: UUID | None = None


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """How one read model is asked.

    `rows` names the model whose position an answer stands at; `key` the id under which a record is watched.
    """

    rows: str
    get: type[Request]
    find: Callable[[sqlite3.Connection, str, Any], Any]
    listing: Listing | None = None
    key: str | None = None
    subject: Callable[[str, Any], str]

    def watch(self, connection: sqlite3.Connection, project: str, wanted: WatchRequest) -> WatchAnswer:
        """What there is, the position it stands at, and where changes are told. Raises `QueryError`."""
        position = _position(connection, self.rows)
        key = None if self.key is None else getattr(wanted, self.key)
        if key is not None or self.listing is None:
            arguments = {} if self.key is None or key is None else {self.key: key}
            item = self.look_up(connection, project, msgspec.convert(arguments, self.get))
            return WatchAnswer(position=position, subject=self.subject(project, item), item=item)
        page = self.listing.page(connection, project, as_list(wanted))
        return WatchAnswer(
            position=position,
            subject=self.subject(project, None),
            items=page.items,
            next_marker=page.next_marker,
        )

    def look_up(self, connection: sqlite3.Connection, project: str, wanted: Any) -> Any:
        """The record. Raises `QueryError`."""
        found = self.find(connection, project, wanted)
        if found is None:
            asked = ", ".join(f"{name} {value}" for name, value in msgspec.structs.asdict(wanted).items())
            raise not_found(project, asked)
        return found


def not_found(project: str, asked: str) -> QueryError:
    """The error for a record that is not there, or another project's."""
    return QueryError("not_found", f"project {project} has none with {asked}; it may not be in the read model yet")


def as_list(wanted: WatchRequest) -> ListRequest:
    """The arguments of `list` among those of `watch`."""
    return ListRequest(filter=wanted.filter, sort=wanted.sort, marker=wanted.marker, limit=wanted.limit)


def _position(connection: sqlite3.Connection, model: str) -> int:
    row = connection.execute(
        "SELECT notification_id FROM tracking WHERE application_name = ?",
        (model,),
    ).fetchone()
    return 0 if row is None else int(row[0])


def settled(answer: CommandAnswer | None, until: str) -> bool:
    """Whether what is waited for is there."""
    if answer is None or until == "decision":
        return answer is not None
    return answer.outcome is not Outcome.RUNNING


def _of_instance(project: str, found: Any) -> str:
    return _events(project, "instance", "*" if found is None else found.id)


def _of_operation(project: str, found: OperationAnswer | None) -> str:
    return _events(project, "*", "*") if found is None else _events(project, found.kind, found.instance_id)


def _of_command(project: str, found: CommandAnswer | None) -> str:
    return _events(project, "command", "*") if found is None else _events(project, found.kind, found.aggregate_id)


def _of_project(project: str, found: Any) -> str:
    del found
    return f"{PREFIX}.evt.{project}.>"


def _events(project: str, kind: str, aggregate_id: UUID | str) -> str:
    return f"{PREFIX}.evt.{project}.{kind}.{aggregate_id}.>"


QUESTIONS: dict[str, Question] = {
    "commands": Question(
        rows="commands",
        get=GetCommand,
        find=lambda c, project, q: commands.get(c, project, str(q.command_id)),
        listing=commands.LISTING,
        key="command_id",
        subject=_of_command,
    ),
    "instances": Question(
        rows="instances",
        get=GetInstance,
        find=lambda c, project, q: instances.get(c, project, str(q.instance_id)),
        listing=instances.LISTING,
        key="instance_id",
        subject=_of_instance,
    ),
    "operations": Question(
        rows="operations",
        get=GetOperation,
        find=lambda c, project, q: operations.get(c, project, str(q.operation_id)),
        listing=operations.LISTING,
        key="operation_id",
        subject=_of_operation,
    ),
    "history": Question(
        rows="history",
        get=GetEvent,
        find=lambda c, project, q: history.get(c, project, str(q.aggregate_id), q.version),
        listing=history.LISTING,
        subject=_of_project,
    ),
    "fleet": Question(
        rows="instances",
        get=GetNumbers,
        find=lambda c, project, _: fleet.get(c, project),
        subject=_of_project,
    ),
    "quota": Question(
        rows="quota",
        get=GetNumbers,
        find=lambda c, project, _: quota.get(c, project),
        subject=_of_project,
    ),
}
