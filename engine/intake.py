"""From a stored message to a command that can be decided, or to the reason why it cannot be.

Nothing here raises: whatever a publisher sends becomes a `Received`, with a stable code where it is no good. A
message without a readable command id can only be a dead letter; with one, its refusal becomes a command record.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from aggregates.base import Refusal
from aggregates.commands import COMMANDS, Command
from engine.messages import MAX_BODY, PROJECT_PATTERN, CommandEnvelope, CommandSubject, content_hash

# Keys whose clear value never belongs in a command: passwords come as references.
SECRET_KEYS = frozenset({"password", "root_password", "secret", "passwd", "token", "private_key"})


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """A command in good form: to which aggregate, in which envelope, with which arguments."""

    aggregate_id: UUID
    envelope: CommandEnvelope
    command: Command


class Received(msgspec.Struct, kw_only=True):
    """A message of the command stream, read as far as it can be: a `wish`, or the `refusal` of it.

    `dead`: it is kept as a dead letter, since it is no command at all, or broke the decider: that has a `traceback`,
    unless the process died of it, and the number of its `tries`.
    """

    sequence: int
    partition: int
    subject: CommandSubject
    body: bytes
    content: str
    reply_to: str | None
    command_id: UUID | None = None
    actor: str = ""
    wish: Wish | None = None
    refusal: Refusal | None = None
    dead: bool = False
    tries: int = 0
    put_off: int = 0  # times
    traceback: str | None = None


_envelope = msgspec.json.Decoder(CommandEnvelope)


def receive(sequence: int, stored_subject: str, body: bytes, reply_to: str | None, put_off: int = 0) -> Received:
    """Read a message as it stands in the stream: `holdfast.v1.cmdp.<partition>.<project>.<kind>.<id>.<command>`."""
    _, _, _, partition, project, kind, aggregate_id, command = stored_subject.split(".")
    received = Received(
        sequence=sequence,
        partition=int(partition),
        subject=CommandSubject(project, kind, aggregate_id, command),
        body=body,
        content=content_hash(body),
        reply_to=reply_to,
        put_off=put_off,
    )
    try:
        received.wish = _read(received)
    except Refusal as refusal:
        received.refusal = refusal
    return received


def _read(received: Received) -> Wish:
    if not re.fullmatch(PROJECT_PATTERN, received.subject.project):
        received.dead = True
        raise Refusal("malformed", "a project has letters, digits, - and _ only, at most 64")
    if len(received.body) > MAX_BODY:
        received.dead = True
        received.command_id = _salvage_id(received.body)
        raise Refusal("too_large", f"the body has {len(received.body)} bytes; a command has at most {MAX_BODY}")
    try:
        envelope = _envelope.decode(received.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        received.dead = True
        received.command_id = _salvage_id(received.body)
        raise Refusal("malformed", f"the body is no command envelope: {error}") from None
    received.command_id = envelope.command_id
    received.actor = envelope.actor
    try:
        aggregate_id = UUID(received.subject.aggregate_id)
    except ValueError:
        received.dead = True
        raise Refusal("malformed", f"the id in the subject is no UUID: {received.subject.aggregate_id[:80]}") from None
    if str(aggregate_id) != received.subject.aggregate_id:
        received.dead = True
        raise Refusal("malformed", f"write the id in the subject as {aggregate_id}: it chooses the partition")
    if envelope.issued_at.tzinfo is None or _naive(envelope.deadline):
        raise Refusal("malformed", "issued_at and deadline need a time zone, as in 2026-01-31T12:00:00Z")
    clear = _clear_secret(envelope.args)
    if clear is not None:
        raise Refusal(
            "secret_in_clear",
            f"the argument {clear} holds a secret in clear; change it, then hand it to the query secrets.put and send "
            "the reference it gives",
        )
    return Wish(aggregate_id=aggregate_id, envelope=envelope, command=_command(received, envelope))


def _command(received: Received, envelope: CommandEnvelope) -> Command:
    known = COMMANDS.get((received.subject.kind, received.subject.command))
    if known is None:
        received.dead = True
        raise Refusal("unknown_command", f"no command {received.subject.command} for a {received.subject.kind}")
    try:
        return msgspec.convert(envelope.args, known, str_keys=True)
    except msgspec.ValidationError as error:
        raise Refusal("invalid_argument", str(error)) from None


def _naive(moment: datetime | None) -> bool:
    return moment is not None and moment.tzinfo is None


def _clear_secret(value: Any, name: str = "args") -> str | None:
    """The path of the first value under a key that names a secret."""
    if isinstance(value, dict):
        for key, inner in value.items():
            where = f"{name}.{key}"
            if str(key).lower() in SECRET_KEYS and inner is not None:
                return where
            if (found := _clear_secret(inner, where)) is not None:
                return found
    elif isinstance(value, list):
        for ordinal, inner in enumerate(value):
            if (found := _clear_secret(inner, f"{name}[{ordinal}]")) is not None:
                return found
    return None


def _salvage_id(body: bytes) -> UUID | None:
    """The command id of a body that is otherwise no good, so that its publisher can be answered."""
    try:
        content = json.loads(body)
        return UUID(content["command_id"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
