"""A publisher of the simulation: the engine's own client, that goes on asking until it knows what came of a command.

It keeps what it was told, for the promises to be checked against. It never dies: whoever published and is gone has no
claim that could be broken.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from nats.aio.client import Client

from engine.client import (
    ClientError,
    Connection,
    Context,
    NotPublished,
    OperationCancelled,
    OperationFailed,
    Rejected,
    TaskManager,
    TimedOut,
    Unreachable,
)
from engine.messages import Outcome
from tests.simulation.broker import Broker
from tests.simulation.virtual_time import Process

PATIENCE = 1800.0  # seconds that a publisher waits for an outcome before it asks again much later


class Sent(msgspec.Struct):
    """A command and what its publisher learned. `outcome`: an operation's, `rejected`, or None if unknown."""

    command_id: UUID
    command: str
    kind: str
    target: str
    args: dict[str, Any]
    options: dict[str, Any]
    acknowledged: bool = False
    outcome: str | None = None
    code: str | None = None


class SimulatedConnection(Connection):
    """The client's connection on the simulated broker."""

    def __init__(self, broker: Broker, name: str) -> None:
        super().__init__(name=name)
        self._simulated = broker

    async def _open(self) -> Client:
        async with self._opening:
            if self._client is None or self._client.is_closed:
                self._inbox = None
                self._client = await self._simulated.connect(self._name)
            return self._client


class Publisher(Process):
    """One project's publisher."""

    def __init__(
        self,
        broker: Broker,
        project: str,
        now: Callable[[], datetime],
        new_id: Callable[[], UUID],
        trace: Callable[..., None],
    ) -> None:
        super().__init__(f"publisher-{project}")
        self.project = project
        self.sent: dict[UUID, Sent] = {}
        self.connection = SimulatedConnection(broker, self.name)
        self._now = now
        self._new_id = new_id
        self._trace = trace
        self._decided: set[UUID] = set()

    def send(
        self,
        command: str,
        target: UUID | str,
        args: dict[str, Any] | None = None,
        *,
        kind: str = "instance",
        command_id: UUID | None = None,
        **options: Any,
    ) -> asyncio.Task[Sent]:
        """Publish a command until the broker acknowledges it, and follow it to its outcome. The task ends with it."""
        chosen = command_id or self._new_id()
        sent = Sent(chosen, command, kind, str(target), args or {}, {"issued_at": self._now(), **options})
        self.sent[chosen] = sent
        return self.start(self._follow(sent))

    def send_again(self, sent: Sent) -> asyncio.Task[Sent]:
        """Publish the same message once more, as a publisher does that missed the acknowledgement."""
        return self.start(self._follow(sent))

    def ask(self, sent: Sent, timeout: float) -> asyncio.Task[Sent]:
        """Ask for the outcome of a command that was sent before."""
        return self.start(self._learn(sent, timeout))

    def undecided(self, decided: Callable[[str, UUID], bool]) -> Iterator[UUID]:
        """The acknowledged commands that have no record yet."""
        for sent in self.sent.values():
            if sent.acknowledged and sent.command_id not in self._decided:
                if decided(self.project, sent.command_id):
                    self._decided.add(sent.command_id)
                else:
                    yield sent.command_id

    async def _follow(self, sent: Sent) -> Sent:
        manager = TaskManager(Context(project=self.project, actor=f"{self.project}-user"), self.connection)
        manager.kind = sent.kind
        while not await self._publish(manager, sent):
            await asyncio.sleep(2.0)
        return await self._learn(sent, PATIENCE)

    async def _publish(self, manager: TaskManager, sent: Sent) -> bool:
        options: Any = {**sent.options, "command_id": sent.command_id}
        try:
            await manager._send(sent.target, sent.command, sent.args, options)
        except (NotPublished, Unreachable, TimedOut):
            return False
        self._trace("acknowledged", command=sent.command, id=sent.command_id, target=sent.target)
        sent.acknowledged = True
        return True

    async def _learn(self, sent: Sent, timeout: float) -> Sent:
        operation = TaskManager(Context(project=self.project, actor=f"{self.project}-user"), self.connection).operation(
            sent.command_id
        )
        try:
            sent.outcome = (await operation.done(timeout)).outcome
        except Rejected as rejected:
            sent.outcome, sent.code = "rejected", rejected.code
        except OperationFailed as failed:
            sent.outcome, sent.code = Outcome.FAILED, failed.code
        except OperationCancelled:
            sent.outcome = Outcome.CANCELLED
        except ClientError as unknown:
            self._trace("not learned", id=sent.command_id, error=unknown)
        else:
            sent.code = None
        self._trace("learned", command=sent.command, id=sent.command_id, outcome=sent.outcome, code=sent.code)
        return sent
