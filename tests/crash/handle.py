"""The publisher of a run: what any client does, and the same message again as one does that missed an acknowledgement.

What it learns it learns by the client's own handle, asked until its patience is over.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from uuid import UUID

import msgspec

from aggregates.commands import Command
from engine.client import (
    ClientError,
    Connection,
    NotPublished,
    OperationCancelled,
    OperationFailed,
    Rejected,
    TimedOut,
    Unreachable,
)
from engine.client.operation import Operation
from engine.messages import MSG_ID, REPLY_TO, CommandEnvelope, CommandSubject, Decision, Outcome, message_id
from tests.crash.verdict import Told

PROJECT = "acme"


class Message(msgspec.Struct, frozen=True):
    """A command on its way to an aggregate."""

    command_id: UUID
    target: UUID
    command: Command
    issued_at: datetime


class Handle:
    """One publisher's connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def publish(self, message: Message, *, try_number: int = 0) -> None:
        """Put it into the stream; a later try counts as one that the broker knows nothing of any more."""
        envelope = CommandEnvelope(
            command_id=message.command_id,
            args=msgspec.to_builtins(message.command),
            actor="alice",
            issued_at=message.issued_at,
        )
        body = msgspec.json.encode(envelope)
        name = message.command.wire_name()
        subject = str(CommandSubject(PROJECT, message.command.kind, str(message.target), name))
        while True:
            headers = {
                MSG_ID: f"{message_id(PROJECT, message.command_id, body)}:{try_number}",
                REPLY_TO: await self._connection.expect_decision(str(message.command_id)),
            }
            try:
                await self._connection.publish(subject, body, headers)
            except (NotPublished, Unreachable, TimedOut):
                await asyncio.sleep(0.1)
            else:
                return

    async def learn(self, message: Message, patience: float) -> Told:
        """What came of it."""
        told = Told(message.command_id, message.command.wire_name())
        handle = Operation(self._connection, PROJECT, str(message.command_id), str(message.target))
        try:
            told.outcome = (await handle.done(patience)).outcome
        except Rejected as rejected:
            told.outcome, told.code = "rejected", rejected.code
        except OperationFailed as failed:
            told.outcome, told.code = Outcome.FAILED, failed.code
        except OperationCancelled:
            told.outcome = Outcome.CANCELLED
        except ClientError as unknown:
            told.code = f"{unknown.code}: {unknown}"
        return told

    async def publish_again(self, message: Message, patience: float) -> Decision | None:
        """Publish it once more and wait for what is decided about that; None when nothing is."""
        self._connection.forget_decision(str(message.command_id))
        await self._connection.expect_decision(str(message.command_id))
        await self.publish(message, try_number=1)
        try:
            async with asyncio.timeout(patience):
                answer = await self._connection.decision(str(message.command_id))
        except TimeoutError:
            return None
        return msgspec.json.decode(answer, type=Decision)
