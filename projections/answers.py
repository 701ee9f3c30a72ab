"""What queries answer, as typed data; part of the wire contract and of the AsyncAPI document.

Every field of a record is a column of its read model of the same name; nested ones are stored as JSON.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import cache
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints
from uuid import UUID

import msgspec

from aggregates.effects import Access
from aggregates.quota import OwnLimits
from engine.messages import GuestStatus, Outcome, VolumeUse


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all records."""


class Error(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong, in the cause's own words, and the state it happened in where it is known."""

    code: str
    message: str
    state: str | None = None


class CommandAnswer(Answer, frozen=True, kw_only=True):
    """A command: what was decided, and what has come of it.

    `version` is the aggregate's with the command; `outcome` is None for a rejected one; `error` is the operation's.
    """

    command_id: UUID
    command: str
    accepted: bool
    kind: str
    aggregate_id: str
    version: int | None
    code: str | None
    reason: str | None
    actor: str
    decided_at: datetime
    outcome: Outcome | None
    error: Error | None
    finished_at: datetime | None


class DriftAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """In what the cloud's resource differs from what is recorded of it, in words and taken apart; since when.

    `what`: gone, status, flavor, host, size (GiB), detached or port. `believed` and `seen` as the cloud words them.
    """

    resource: str
    id: str
    what: str
    believed: str | None
    seen: str | None
    says: str
    since: datetime


class InstanceAnswer(Answer, frozen=True, kw_only=True):
    """An instance. `ram` MiB, `volume_size` GiB. `access` is what there is now, None where nobody's is guarded; in a
    create it is what is to be. `region` None: the cloud has one only, or had when the instance was
    made. The last three fields say what led to the present state.

    `drift`: in what the cloud differs from what is recorded, as it was last observed. `lifecycle_version` is what a
    command may expect (`expected_version`); `version` counts every event.
    """

    id: UUID
    name: str
    state: str
    status: str
    trove_status: str
    operating_status: str
    health: str
    flavor_id: str
    flavor: str
    vcpus: int
    ram: int
    datastore: str
    datastore_version: str
    address: str | None
    port: int | None
    volume_size: int
    volume_type: str | None
    region: str | None
    availability_zone: str | None
    image_id: str | None
    locality: str | None
    public_address: str | None
    access: Access | None
    host: str | None
    server_id: str | None
    volume_id: str | None
    snapshot_id: str | None
    port_id: str | None
    operation_id: UUID | None
    operation: str | None
    parked: bool
    failure: Error | None
    drift: tuple[DriftAnswer, ...]
    created_at: datetime
    updated_at: datetime
    deleted_at: datetime | None
    version: int
    lifecycle_version: int
    last_event: str
    last_command: str
    last_actor: str


class StatePassed(msgspec.Struct, frozen=True, kw_only=True):
    """A state that the operation entered, and when."""

    state: str
    at: datetime


class OperationAnswer(Answer, frozen=True, kw_only=True):
    """An operation: at step `n` of the `m` of its plan, or how far it came, what it owes now, and how it ended.

    `error` is the last try's while it runs, the failure's once it has left its plan. `duration` in seconds.
    """

    id: UUID
    kind: str
    instance_id: UUID
    command: str
    actor: str
    plan: tuple[str, ...]
    n: int
    m: int
    state: str | None
    effect: str | None
    attempts: int
    error: Error | None
    retry_at: datetime | None
    deadline: datetime
    started_at: datetime
    finished_at: datetime | None
    duration: float | None
    outcome: Outcome
    failure: Error | None
    parked: bool
    cancelled_by: UUID | None
    states: tuple[StatePassed, ...]


class OperationTrouble(Answer, frozen=True, kw_only=True):
    """An operation that may need a person: what it owes, how often that was tried, and the last error."""

    project: str
    id: UUID
    command: str
    instance_id: UUID
    actor: str
    state: str
    effect: str
    attempts: int
    error: Error | None
    retry_at: datetime | None
    deadline: datetime
    started_at: datetime


class InstanceTrouble(Answer, frozen=True, kw_only=True):
    """An instance that should run and is not heard."""

    project: str
    id: UUID
    name: str
    status: str
    health: str
    host: str | None


class DriftTrouble(Answer, frozen=True, kw_only=True):
    """An instance that is not, in the cloud, what it is believed to be."""

    project: str
    id: UUID
    name: str
    status: str
    drift: tuple[DriftAnswer, ...]


class TroublesAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What may need a person, the oldest first; `numbers` counts also what is not listed.

    `overdue`: past its deadline and still running. `struggling`: tried many times already. `drifted`: the cloud differs
    from what is recorded. `lag`: how far the slowest
    read model stands behind the end of the log; `stopped`: those that stand still, and why.
    """

    parked: tuple[OperationTrouble, ...]
    overdue: tuple[OperationTrouble, ...]
    struggling: tuple[OperationTrouble, ...]
    down: tuple[InstanceTrouble, ...]
    drifted: tuple[DriftTrouble, ...]
    numbers: dict[str, int]
    lag: int = 0
    stopped: dict[str, str] = {}


class HistoryAnswer(Answer, frozen=True, kw_only=True):
    """An event. `instance_id` is whom it is about, also where another aggregate recorded it."""

    position: int
    kind: str
    aggregate_id: UUID
    instance_id: str | None
    version: int
    name: str
    at: datetime
    operation_id: UUID | None
    command: str | None
    actor: str | None
    facts: dict[str, Any]
    sentence: str


class HeartbeatAnswer(Answer, frozen=True, kw_only=True):
    """The last beat heard of an instance and its age in seconds, by the receiver's clock."""

    instance_id: UUID
    received_at: datetime
    age: float
    sent_at: datetime
    boot: str
    sequence: int
    interval: float
    status: GuestStatus
    role: str | None
    position: str | None
    datastore: str | None
    datastore_version: str | None
    volume: VolumeUse | None


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """What one instance holds: memory in MiB, volumes in GiB."""

    instance_id: UUID
    ram: int
    volumes: int


class QuotaAnswer(Answer, frozen=True, kw_only=True):
    """What the project holds together, and each of its instances (up to 1000).

    `limits` are those that were set for the project; where they are None the catalogue's hold (`catalogue.get`).
    """

    instances: int
    ram: int
    volumes: int
    backups: int
    limits: OwnLimits
    held: tuple[Holding, ...]


class FleetAnswer(Answer, frozen=True, kw_only=True):
    """The project's instances and operations in numbers. `ram` MiB, `volume_size` GiB; what is deleted is left out.

    `datastores` counts by datastore and version, `hosts` those that have a server.
    """

    instances: int
    statuses: dict[str, int]
    healths: dict[str, int]
    datastores: dict[str, dict[str, int]]
    hosts: dict[str, int]
    ram: int
    volume_size: int
    running: int
    parked: int
    failed: int
    done: int
    cancelled: int


class ListAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A page of records; `next_marker` asks for the next one, None after the last."""

    items: list[Any]
    next_marker: str | None


class WatchAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What there is now, the log position it stands at, and the subject on which changes are published.

    `item` for one record, else a page as `list` answers it. Subscribe first, then ask, so that nothing is missed.
    """

    position: int
    subject: str
    item: Any = None
    items: list[Any] | None = None
    next_marker: str | None = None


# --- rows to answers ----------------------------------------------------------------------------------------------

A = TypeVar("A", bound=Answer)


@cache
def columns(answer: type[Answer]) -> str:
    """The columns to select."""
    return ", ".join(answer.__struct_fields__)


def from_row(answer: type[A], row: Any) -> A:
    """The record of a row."""
    return answer(**{name: convert(row[name]) for name, convert in _converters(answer)})


@cache
def _converters(answer: type[Answer]) -> tuple[tuple[str, Callable[[Any], Any]], ...]:
    hints = get_type_hints(answer)
    return tuple((name, _converter(hints[name])) for name in answer.__struct_fields__)


def _converter(hint: Any) -> Callable[[Any], Any]:
    union = get_origin(hint) in {Union, UnionType}
    kinds = [kind for kind in get_args(hint) if kind is not type(None)] if union else [hint]
    if len(kinds) == 1 and kinds[0] in _PLAIN:
        return _PLAIN[kinds[0]]
    decode = msgspec.json.Decoder(hint).decode
    return lambda value: None if value is None else decode(value)


def _same(value: Any) -> Any:
    return value


_PLAIN: dict[Any, Callable[[Any], Any]] = {
    str: _same,
    int: _same,
    float: _same,
    bool: bool,
    datetime: lambda value: value and datetime.fromisoformat(value),
    UUID: lambda value: value and UUID(value),
    Outcome: lambda value: value and Outcome(value),
    GuestStatus: lambda value: value and GuestStatus(value),
}
