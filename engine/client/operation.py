"""The handle of a published command: its decision, its progress, its outcome, from any process and at any time.

Guarantees that `accepted` and `done` tell what the engine recorded, asked again over lost connections until the time
given is over. Progress shows the latest state at each look: a state that lasts less than a look may not be seen.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec

from engine.client.connection import Connection
from engine.client.errors import (
    ClientError,
    InvalidCommand,
    OperationCancelled,
    OperationFailed,
    QueryFailed,
    Rejected,
    TimedOut,
)
from engine.clock import monotonic
from engine.messages import PREFIX, Decision, Outcome, query_subject

_ROUND = 5.0  # seconds that one waiting query may take before it is asked again
_LOOK = 1.0  # seconds between two looks at the progress when no event comes
_PAUSE = (0.2, 2.0)  # seconds before a query that found nothing yet is asked again: doubled up to the second
_NOT_YET = frozenset({"not_found", "timeout", "overloaded", "no_responders"})


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Where an operation is: step `n` of the `m` of its plan, what its state owes, tries so far, the last error."""

    n: int
    m: int
    state: str | None
    effect: str | None
    attempts: int = 0
    error: str | None = None
    parked: bool = False
    plan: tuple[str, ...] = ()


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """An operation that is done, with its record as the read model shows it."""

    operation_id: str
    instance_id: str | None
    outcome: str
    record: dict[str, Any]


About = Callable[[str, str, str | None, dict[str, Any]], Awaitable["Operation"]]


class Operation:
    """One command from publishing to outcome. `id` is the command's and the operation's id."""

    def __init__(
        self,
        connection: Connection,
        project: str,
        operation_id: str,
        instance_id: str | None,
        about: About | None = None,
    ) -> None:
        self.id = operation_id
        self._about = about
        self.instance_id = instance_id
        self._connection = connection
        self._project = project
        self._decision: Decision | None = None
        self._pause = _PAUSE[0]

    def __repr__(self) -> str:
        return f"Operation(id={self.id!r}, instance_id={self.instance_id!r})"

    async def accepted(self, timeout: float = 30.0) -> Decision:
        """The engine's decision. Raises `Rejected`, or `TimedOut` when there is none yet."""
        if self._decision is None:
            self._decision = await self._decided(timeout)
            self._connection.forget_decision(self.id)
            self.instance_id = self.instance_id or self._decision.aggregate_id
        if not self._decision.accepted:
            raise Rejected(self._decision.code or "rejected", self._decision.reason or "no reason was recorded")
        return self._decision

    async def done(self, timeout: float | None = None) -> Result:
        """Wait for the end. Raises `Rejected`, `OperationFailed`, `OperationCancelled`, or `TimedOut`."""
        deadline = _deadline(timeout)
        await self.accepted(_left(deadline, 3600.0))
        while monotonic() < deadline:
            record = await self._ask("outcome", deadline)
            if record is not None and (result := self._ended(record)) is not None:
                return result
        raise TimedOut(f"operation {self.id} goes on after {timeout} s; ask for it again by this id")

    async def progress(self, timeout: float | None = None) -> AsyncIterator[Progress]:
        """Each change of the operation's progress, until it has an outcome; `done` tells which."""
        deadline = _deadline(timeout)
        decision = await self.accepted(_left(deadline, 3600.0))
        changed = asyncio.Event()
        subject = f"{PREFIX}.evt.{self._project}.{decision.kind}.{decision.aggregate_id}.*"
        last: Progress | None = None
        async with self._connection.follow(subject, changed.set):
            while monotonic() < deadline:
                changed.clear()
                record = await self.record()
                if record is not None:
                    seen = progress_of(record)
                    if seen != last:
                        last = seen
                        yield seen
                    if outcome_of(record) is not Outcome.RUNNING:
                        return
                try:
                    async with asyncio.timeout(_left(deadline, _LOOK if record is not None else _PAUSE[0])):
                        await changed.wait()
                except TimeoutError:
                    continue
        raise TimedOut(f"operation {self.id} goes on after {timeout} s; ask for it again by this id")

    async def cancel(self, reason: str | None = None, timeout: float = 30.0) -> Decision:
        """Have it ended and undone. Raises `Rejected` where there is no way back; `done` tells how it ends."""
        return await self._intervene("cancel_operation", reason, timeout)

    async def retry(self, reason: str | None = None, timeout: float = 30.0) -> Decision:
        """Have what it is parked over, or waits to try again, tried now. Raises `Rejected` where it goes on anyway."""
        return await self._intervene("retry_operation", reason, timeout)

    async def _intervene(self, command: str, reason: str | None, timeout: float) -> Decision:
        if self._about is None:
            raise InvalidCommand("invalid_argument", f"this handle only looks; send {command} by a TaskManager")
        await self.accepted(timeout)
        sent = await self._about(command, self.id, self.instance_id, {} if reason is None else {"reason": reason})
        return await sent.accepted(timeout)

    async def record(self) -> dict[str, Any] | None:
        """The operation as the read model shows it; None while it does not know it yet."""
        try:
            found = await self._connection.request(
                query_subject(self._project, "operations", "get"), {"operation_id": self.id}
            )
        except QueryFailed as e:
            if e.code in _NOT_YET:
                return None
            raise
        except TimedOut:
            return None
        return dict(found)

    async def _decided(self, timeout: float) -> Decision:
        deadline = monotonic() + timeout
        sent = asyncio.ensure_future(self._connection.decision(self.id))
        asked = asyncio.ensure_future(self._asked_decision(deadline))
        try:
            waiting: set[asyncio.Future[Any]] = {sent, asked}
            while waiting and (left := deadline - monotonic()) > 0:
                done, waiting = await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                # Another handle of this command, which had its decision already, has given the inbox up.
                if sent in done and not sent.cancelled():
                    return msgspec.json.decode(sent.result(), type=Decision)
                if asked in done and (decision := asked.result()) is not None:
                    return decision
        finally:
            for task in (sent, asked):
                task.cancel()
            await asyncio.gather(sent, asked, return_exceptions=True)
        raise TimedOut(
            f"command {self.id} is stored and not decided within {timeout:g} s; see whether the engine runs, then ask "
            "for the operation again by this id"
        )

    async def _asked_decision(self, deadline: float) -> Decision | None:
        while monotonic() < deadline:
            answer = await self._ask("decision", deadline)
            if answer is not None and isinstance(answer.get("accepted"), bool):
                return msgspec.convert(answer, Decision, strict=False)
        return None

    async def _ask(self, what: str, deadline: float) -> dict[str, Any] | None:
        wait = _left(deadline, _ROUND)
        try:
            answer = await self._connection.request(
                query_subject(self._project, "commands", "get"),
                {"command_id": self.id, "wait": wait, "for": what},
                timeout=wait + 2.0,
            )
        except (QueryFailed, TimedOut) as e:
            if e.code not in _NOT_YET:
                raise
            await asyncio.sleep(self._pause)
            self._pause = min(2 * self._pause, _PAUSE[1])
            return None
        self._pause = _PAUSE[0]
        return dict(answer)

    def _ended(self, record: dict[str, Any]) -> Result | None:
        outcome = outcome_of(record)
        if outcome is Outcome.DONE:
            return Result(operation_id=self.id, instance_id=self.instance_id, outcome=outcome, record=record)
        if outcome is Outcome.FAILED:
            raise failure_of(record)
        if outcome is Outcome.CANCELLED:
            raise OperationCancelled(_cancelled(self.id, record))
        return None


def outcome_of(record: dict[str, Any]) -> Outcome:
    """The outcome in an operation's record."""
    return Outcome(record.get("outcome") or Outcome.RUNNING)


def failure_of(record: dict[str, Any]) -> ClientError:
    """The failure in the record of an operation that failed."""
    error = record.get("error")
    if isinstance(error, dict):
        return OperationFailed(str(error.get("code", "failed")), str(error.get("message", "")))
    return OperationFailed(str(record.get("code") or "failed"), str(error or "no error was recorded"))


def _cancelled(operation_id: str, record: dict[str, Any]) -> str:
    error = record.get("error")
    by = f": {error['message']}" if isinstance(error, dict) and error.get("message") else ""
    return f"operation {operation_id} was cancelled{by}"


def progress_of(record: dict[str, Any]) -> Progress:
    """The progress in an operation's record."""
    error = record.get("error")
    if isinstance(error, dict):
        error = error.get("message")
    return Progress(
        n=int(record.get("n", 0)),
        m=int(record.get("m", 0)),
        state=record.get("state"),
        effect=record.get("effect"),
        attempts=int(record.get("attempts", 0)),
        error=error,
        parked=bool(record.get("parked", False)),
        plan=tuple(record.get("plan") or ()),
    )


def _deadline(timeout: float | None) -> float:
    return float("inf") if timeout is None else monotonic() + timeout


def _left(deadline: float, most: float) -> float:
    return max(0.01, min(most, deadline - monotonic()))
