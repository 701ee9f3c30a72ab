"""Dead letters as the operator handles them: looked at, replayed, discarded.

Guarantees that replaying one letter any number of times makes one command, and that its first decision stays what it
is. It reads the broker's stream itself, so it needs the rights of the operator; a letter that a full stream dropped is
gone.
"""

from __future__ import annotations

import base64
from datetime import UTC
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

import msgspec

from engine.broker import DEAD_LETTER_STREAM
from engine.client.connection import Connection
from engine.client.errors import ClientError, InvalidCommand, QueryFailed
from engine.client.operation import Operation
from engine.messages import MSG_ID, PREFIX, REPLY_TO, CommandEnvelope, CommandSubject, DeadLetter, message_id

_API = "$JS.API.STREAM.MSG"
_ABSENT = frozenset({10037, 10043})  # no such message
FIELDS = ("code", "project", "kind", "aggregate_id", "command", "command_id")  # by which letters can be chosen


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter under the id it has in its stream, with the parts of its subject."""

    id: int
    project: str
    kind: str
    aggregate_id: str
    command: str
    letter: DeadLetter

    @property
    def replayable(self) -> bool:
        """Whether its command was kept, and is a publisher's."""
        return self.letter.original is not None and self.kind != "quota"


class DeadLetters:
    """The dead letters of one project, or of all (`project` None). `actor` is who replays."""

    def __init__(self, connection: Connection, project: str | None, actor: str) -> None:
        self._connection = connection
        self._actor = actor
        self._filter = f"{PREFIX}.dlq.{project or '*'}.*"

    async def page(self, after: int = 0, limit: int = 100, **having: str) -> tuple[list[Letter], int | None]:
        """Letters after an id, oldest first, with these values; and the id to go on after, None at the end."""
        found: list[Letter] = []
        while len(found) < limit:
            letter = await self._next(after + 1)
            if letter is None:
                return found, None
            after = letter.id
            if all(str(_field(letter, name)) == value for name, value in having.items()):
                found.append(letter)
        return found, after

    async def get(self, letter_id: int) -> Letter:
        """One letter. Raises `QueryFailed` with `not_found`."""
        letter = await self._next(letter_id)
        if letter is None or letter.id != letter_id:
            raise QueryFailed(
                "not_found", f"there is no dead letter {letter_id} here; see `holdfast dead-letters list`"
            )
        return letter

    async def discard(self, letter_id: int) -> None:
        """Remove a letter for good, with all that it holds. Raises `QueryFailed` with `not_found`."""
        await self.get(letter_id)
        await self._ask("DELETE", {"seq": letter_id})

    async def replay(self, letter: Letter) -> Operation:
        """Publish its command again, under an id that follows from the first one, which keeps its decision.

        Raises `InvalidCommand` with `not_replayable`.
        """
        if not letter.replayable or letter.letter.original is None:
            raise InvalidCommand("not_replayable", f"dead letter {letter.id} cannot be replayed: {_why_not(letter)}")
        first = msgspec.json.decode(letter.letter.original, type=CommandEnvelope)
        envelope = msgspec.structs.replace(
            first,
            command_id=replay_id(first.command_id),
            actor=f"{first.actor}, replayed by {self._actor}"[:255],
            # One letter replayed twice makes one message twice, which the engine takes once.
            issued_at=letter.letter.received_at.astimezone(UTC),
        )
        body = msgspec.json.encode(envelope)
        command_id = str(envelope.command_id)
        headers = {
            MSG_ID: message_id(letter.project, envelope.command_id, body),
            REPLY_TO: await self._connection.expect_decision(command_id),
        }
        subject = CommandSubject(letter.project, letter.kind, letter.aggregate_id, letter.command)
        try:
            await self._connection.publish(str(subject), body, headers)
        except ClientError:
            self._connection.forget_decision(command_id)
            raise
        return Operation(self._connection, letter.project, command_id, letter.aggregate_id)

    async def _next(self, letter_id: int) -> Letter | None:
        """The first letter from an id on."""
        answer = await self._ask("GET", {"seq": letter_id, "next_by_subj": self._filter})
        message = answer.get("message")
        if message is None:
            return None
        letter = msgspec.json.decode(base64.b64decode(message["data"]), type=DeadLetter)
        _, _, _, project, kind, aggregate_id, command = letter.subject.split(".", 6)
        return Letter(
            id=message["seq"], project=project, kind=kind, aggregate_id=aggregate_id, command=command, letter=letter
        )

    async def _ask(self, verb: str, payload: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = await self._connection.request(f"{_API}.{verb}.{DEAD_LETTER_STREAM}", payload)
        error = answer.get("error")
        if error is not None and error.get("err_code") not in _ABSENT:
            raise QueryFailed("broker_refused", f"the broker refuses it: {error.get('description')}")
        return answer


def replay_id(command_id: UUID) -> UUID:
    """The id under which a command is replayed."""
    return uuid5(NAMESPACE_URL, f"holdfast:replay:{command_id}")


def _why_not(letter: Letter) -> str:
    if letter.kind == "quota":
        return "it is the engine's own; its operation says what came of it"
    if letter.letter.code != "internal_error":
        return "it is no command that could be decided; have its publisher send a good one"
    return "its body was not kept, since it may hold a secret; have its publisher send it anew"


def _field(letter: Letter, name: str) -> Any:
    return getattr(letter, name) if name in Letter.__struct_fields__ else getattr(letter.letter, name)
