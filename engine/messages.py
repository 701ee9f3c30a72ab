"""The wire contract, v1: subjects, envelopes and answers as typed data. JSON on the wire.

Whatever any publisher, guest agent or reader exchanges with the engine is declared here and nowhere else; the
AsyncAPI document is generated from this module.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID

import msgspec
from msgspec import Meta

PREFIX = "holdfast.v1"
LOG_SUBJECT = f"{PREFIX}.log"  # among workers: there is more in the log
PAUSE_SUBJECT = f"{PREFIX}.pause"  # among workers: a service of the cloud takes no calls for a while
MAX_BODY = 256 * 1024  # bytes of a command's body; the broker's own limit lies above it
PARTITIONS = 64  # fixed for life: another number would reorder the commands of an aggregate
PUBLIC_KEY_PATTERN = r"^U[A-Z2-7]{55}$"  # of a user, as NKeys are written
PROJECT_PATTERN = r"^[A-Za-z0-9_-]{1,64}$"

EVERY_PROJECT = "$all"  # in the subject of a query about the whole installation; no project can be named so

Project = Annotated[str, Meta(pattern=PROJECT_PATTERN)]

# Headers.
MSG_ID = "Nats-Msg-Id"
REPLY_TO = "Holdfast-Reply-To"
TIMES_PUT_OFF = "Holdfast-Put-Off"  # set by the engine alone, on a command that waits for a worker of a newer version


# --- commands -----------------------------------------------------------------------------------------------------


class CommandEnvelope(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The body of a command. `args` are those of the command's type in `aggregates/commands.py`.

    `deadline`: the command is rejected `expired` if decided later, and its operation counts as failed if not done by
    then. `expected_version`: the aggregate's version at its last lifecycle transition, else rejected `conflict`.
    """

    command_id: UUID
    args: dict[str, Any]
    actor: Annotated[str, Meta(min_length=1, max_length=255)]
    issued_at: datetime
    expected_version: int | None = None
    deadline: datetime | None = None
    traceparent: Annotated[str, Meta(max_length=255)] | None = None


class CommandSubject(msgspec.Struct, frozen=True):
    """The parts of a command's subject."""

    project: str
    kind: str
    aggregate_id: str
    command: str

    def __str__(self) -> str:
        return f"{PREFIX}.cmd.{self.project}.{self.kind}.{self.aggregate_id}.{self.command}"


def message_id(project: str, command_id: UUID, body: bytes) -> str:
    """The `Nats-Msg-Id` of a command: lets the broker drop a repeated publish. Only a saving, never the truth."""
    return f"{project}:{command_id}:{content_hash(body)[:16]}"


def content_hash(body: bytes) -> str:
    """The hash by which two bodies under one command id are the same command or not."""
    return hashlib.sha256(body).hexdigest()


class Outcome(StrEnum):
    """How an operation ended, or that it has not."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What was decided about a command: accepted (`version` of the aggregate then), or rejected (`code`, `reason`)."""

    command_id: UUID | None
    accepted: bool
    kind: str
    aggregate_id: str
    version: int | None = None
    code: str | None = None
    reason: str | None = None
    duplicate: bool = False


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A message that is no command, or that could not be decided: why, where it stood, and what was in it.

    `body` has every secret blanked out. `original` is the very body, kept so that the command can be replayed, where
    there was nothing to blank out and only a defect of ours stood in its way; `traceback` shows that defect.
    """

    code: str
    reason: str
    subject: str
    sequence: int
    size: int
    content: str
    body: str
    received_at: datetime
    command_id: UUID | None = None
    tries: int = 0
    traceback: str | None = None
    original: str | None = None


class CloudEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event as it is published: CloudEvents 1.0 in structured mode, with the extension `sequence`.

    `id` is aggregate id and version, `sequence` the position in the log as text; `data` the event's facts.
    """

    specversion: str = "1.0"
    id: str
    source: str
    type: str
    subject: str
    time: datetime
    sequence: str
    datacontenttype: str = "application/json"
    data: dict[str, Any]


class ErrorReply(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a query that cannot be answered. `code` is stable."""

    code: str
    message: str


# --- guest agents -------------------------------------------------------------------------------------------------


class GuestStatus(StrEnum):
    """What the agent sees of its database."""

    NEW = "NEW"  # nothing is installed yet
    BUILDING = "BUILDING"  # being prepared
    STARTING = "STARTING"  # the process runs and does not answer yet
    HEALTHY = "HEALTHY"  # answers a probe query
    SHUTDOWN = "SHUTDOWN"  # stopped on command
    CRASHED = "CRASHED"  # should run, and does not
    FAILED = "FAILED"  # could not be prepared


class VolumeUse(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes used and allowed. `warning` from 95 % on; `read_only` when the agent has made the database so."""

    used: int
    size: int
    warning: bool = False
    read_only: bool = False


class ReplicationState(msgspec.Struct, frozen=True, kw_only=True):
    """How a member of a replication set stands, small enough for a heartbeat.

    `generation`: the highest that the agent was told. `fenced`: tenants may not write although this is the source;
    `absent` when the agent itself has done so after a silence. `source`: whom a replica follows. `link`: whether it is
    connected. `received`: the position that is on the replica's disk, applied or not. `lag_bytes` and `lag_seconds`:
    how far what is applied is behind what is known of the source; None where the database cannot say.
    """

    role: str
    generation: int
    fenced: bool = False
    absent: bool = False
    source: UUID | None = None
    link: bool | None = None
    received: str | None = None
    lag_bytes: int | None = None
    lag_seconds: float | None = None


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent says every few seconds on `holdfast.v1.hb.<instance id>`. Receive time decides, not `sent_at`.

    `boot` changes with each start of the agent; `position` is the database's own: of PostgreSQL `timeline:LSN`, of
    MariaDB the GTID, of Redis `replication id:offset`; of a replica what it has applied. `replication`: None of an
    instance that is in no replication set.
    """

    instance_id: UUID
    boot: str
    sequence: int
    sent_at: datetime
    interval: float
    status: GuestStatus
    role: str | None = None
    position: str | None = None
    datastore: str | None = None
    datastore_version: str | None = None
    volume: VolumeUse | None = None
    replication: ReplicationState | None = None


class GuestVerb(StrEnum):
    """All that an agent can be asked; there is no shell among them."""

    PREPARE = "prepare"
    REBUILD = "rebuild"
    STOP = "stop"
    START = "start"
    RESTART = "restart"
    GROW = "grow"
    ADMIT_REPLICA = "admit_replica"
    DISMISS_REPLICA = "dismiss_replica"
    CONFIGURE_SOURCE = "configure_source"
    SEED_REPLICA = "seed_replica"
    FOLLOW_SOURCE = "follow_source"
    DETACH_REPLICA = "detach_replica"
    AWAIT_POSITION = "await_position"
    PROMOTE_REPLICA = "promote_replica"
    FENCE_SOURCE = "fence_source"
    UNFENCE_SOURCE = "unfence_source"
    REPORT = "report"


class GuestRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request on `holdfast.v1.guest.<instance id>.<verb>` (core NATS: stored nowhere, so it may carry secrets).

    `key` is the effect's idempotency key: a repeated request gets the recorded answer, or joins the running one. The
    agent answers within `wait` seconds, `running` if it is not finished by then: the caller asks again.
    """

    key: str
    args: dict[str, Any] = {}
    wait: float = 5.0


class GuestState(StrEnum):
    """How far a requested verb is."""

    DONE = "done"
    RUNNING = "running"
    FAILED = "failed"


class GuestReply(msgspec.Struct, frozen=True, kw_only=True):
    """The agent's answer. `facts` when done; `error` and whether trying again may help when failed."""

    state: GuestState
    facts: dict[str, Any] = {}
    error: str | None = None
    transient: bool = False
    progress: str | None = None


class PrepareArgs(msgspec.Struct, frozen=True, kw_only=True):
    """Arguments of `prepare`: a `PrepareDatabase` effect with its secrets filled in. `ram` MiB, `volume_size` GiB."""

    ram: int
    volume_size: int
    databases: list[dict[str, Any]]
    users: list[GuestUser]
    root_password: str | None
    overrides: dict[str, str]


class RebuildArgs(msgspec.Struct, frozen=True, kw_only=True):
    """Arguments of `rebuild`: the data that lie on the volume are served again, at this TCP port. Units as above."""

    ram: int
    volume_size: int
    port: int
    overrides: dict[str, str]


class StopArgs(msgspec.Struct, frozen=True, kw_only=True):
    """Arguments of `stop`. `release_volume`: the machine lets go of the volume as well; the answer's facts say so."""

    release_volume: bool = False


class GuestUser(msgspec.Struct, frozen=True, kw_only=True):
    """A database user with its password; lives in memory and on a local socket only."""

    name: str
    password: str
    host: str
    databases: list[str]


class StartArgs(msgspec.Struct, frozen=True, kw_only=True):
    """Arguments of `start`: the configuration for this memory (MiB) is written, then the database started."""

    ram: int
    overrides: dict[str, str]


class GrowArgs(msgspec.Struct, frozen=True, kw_only=True):
    """Arguments of `grow`: the volume has this size (GiB) now."""

    volume_size: int


# --- replication --------------------------------------------------------------------------------------------------


class ReplicationArgs(msgspec.Struct, frozen=True, kw_only=True):
    """Arguments that all verbs of replication have; `detach_replica`, `fence_source`, `unfence_source` have no others.

    `generation` rises with each change of the set's source: a verb with a lower one than the agent knows is refused.
    """

    replication_set: UUID
    generation: Annotated[int, Meta(ge=1)]


# It stands unescaped in connection strings and password files.
ReplicationPassword = Annotated[str, Meta(pattern="^[A-Za-z0-9_-]{16,64}$")]


class AdmitReplicaArgs(ReplicationArgs, frozen=True, kw_only=True):
    """Arguments of `admit_replica`, to the source: this replica, at this address, may follow with this password."""

    replica: UUID
    address: str
    password: ReplicationPassword


class DismissReplicaArgs(ReplicationArgs, frozen=True, kw_only=True):
    """Arguments of `dismiss_replica`, to the source: nothing of this replica is left behind."""

    replica: UUID


class ConfigureSourceArgs(ReplicationArgs, frozen=True, kw_only=True):
    """Arguments of `configure_source`: how the source holds with its replicas.

    `synchronous`: a write is acknowledged once one admitted replica has it; Redis has no such thing. `absence_limit`,
    seconds: a source whose agent was not at work for longer takes no more writes until it is told that it is still the
    source; 0 for no limit.
    """

    synchronous: bool = False
    absence_limit: Annotated[float, Meta(ge=0)] = 0.0


class ReplicationSource(msgspec.Struct, frozen=True, kw_only=True):
    """The instance that a replica follows, and where its database listens."""

    instance_id: UUID
    address: str
    port: int


class SeedReplicaArgs(ReplicationArgs, frozen=True, kw_only=True):
    """Arguments of `seed_replica`, to an empty instance: as `prepare`, but with the source's data, following it."""

    source: ReplicationSource
    password: ReplicationPassword
    ram: int
    volume_size: int
    overrides: dict[str, str]


class Repair(StrEnum):
    """What may be done to data that the new source does not know."""

    NONE = "none"  # nothing: the verb fails, `diverged`
    REWIND = "rewind"  # they are taken back to where both were the same; PostgreSQL alone
    SEED = "seed"  # all data are replaced by the source's


class FollowSourceArgs(ReplicationArgs, frozen=True, kw_only=True):
    """Arguments of `follow_source`: to a replica, or to a source of before, which takes no more writes from then on."""

    source: ReplicationSource
    password: ReplicationPassword
    repair: Repair = Repair.NONE


class AwaitPositionArgs(msgspec.Struct, frozen=True, kw_only=True):
    """Arguments of `await_position`: the database has applied all up to here. `patience` in seconds, at most 30.

    Without a position it yields at once how far the database is, newer than any heartbeat.
    """

    position: str | None = None
    patience: Annotated[float, Meta(ge=0, le=30)] = 10.0


class PromoteReplicaArgs(ConfigureSourceArgs, frozen=True, kw_only=True):
    """Arguments of `promote_replica`: the source from now on, once it has `position`, if any is named."""

    position: str | None = None
    patience: Annotated[float, Meta(ge=0, le=30)] = 10.0


# --- enrolment ----------------------------------------------------------------------------------------------------


class EnrolRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a new machine sends on `holdfast.v1.enrol`: it asks that its own key may speak for its instance.

    `public_key`: the NKey that the agent made for itself. `token`: the public half of the one-time token in its user
    data. `proof`: the token's signature, in base64, under `enrolment_claim`: the token itself is never sent, and who
    overhears the request can only repeat it.
    """

    instance_id: UUID
    public_key: Annotated[str, Meta(pattern=PUBLIC_KEY_PATTERN)]
    token: Annotated[str, Meta(pattern=PUBLIC_KEY_PATTERN)]
    proof: Annotated[str, Meta(max_length=128)]


class EnrolReply(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the broker takes the agent's key from now on; if not, a stable `code` and what to do about it."""

    accepted: bool
    code: str | None = None
    message: str | None = None


def enrolment_claim(instance_id: UUID, public_key: str) -> bytes:
    """What a token signs."""
    return f"holdfast enrolment v1\n{instance_id}\n{public_key}".encode()


# --- subjects -----------------------------------------------------------------------------------------------------


def command_filter() -> str:
    """The subjects that the command stream takes: exactly this number of tokens."""
    return f"{PREFIX}.cmd.*.*.*.*"


def heartbeat_subject(instance_id: UUID | str) -> str:
    """Where the agent of an instance beats; `*` for all."""
    return f"{PREFIX}.hb.{instance_id}"


def guest_subject(instance_id: UUID | str, verb: str) -> str:
    """Where the agent of an instance is asked."""
    return f"{PREFIX}.guest.{instance_id}.{verb}"


def enrolment_subject() -> str:
    """Where new machines present themselves."""
    return f"{PREFIX}.enrol"


def event_subject(project: str, kind: str, aggregate_id: UUID, name: str) -> str:
    """Where an event is published."""
    return f"{PREFIX}.evt.{project}.{kind}.{aggregate_id}.{name}"


def query_subject(project: str, model: str, verb: str) -> str:
    """Where a read model is asked."""
    return f"{PREFIX}.qry.{project}.{model}.{verb}"


def dead_letter_subject(project: str, code: str) -> str:
    """Where a message that is no command is kept."""
    return f"{PREFIX}.dlq.{project}.{code}"
