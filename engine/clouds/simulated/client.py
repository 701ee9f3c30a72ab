"""A simulated cloud in another process, reached by its Unix socket: the same cloud and guests to whoever uses them.

When the socket breaks, what is unanswered counts as broken and the next question connects anew.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from nats.errors import NoRespondersError

from aggregates.catalogue import Catalogue
from engine.clouds.errors import CloudAnswerError, sort_error
from engine.clouds.simulated.api import ANSWERS
from engine.clouds.simulated.cloud import SimulatedCloud
from engine.clouds.simulated.faults import Call, Fault
from engine.clouds.simulated.guests import Answer, Deed, GuestFault
from engine.clouds.simulated.resources import Entry
from engine.clouds.simulated.wire import (
    LIMIT,
    AskCloud,
    AskGuest,
    Broken,
    Injected,
    Nobody,
    Offer,
    Plan,
    PlanGuest,
    Question,
    Reply,
    Settings,
    Show,
    Status,
)

T = TypeVar("T")
_INVENTORY = dict[str, dict[str, dict[str, Any]]]


class FarSide:
    """The other end of the socket: cloud API, guest agents, and what tests want to see or plan."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[msgspec.Raw]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()

    async def call(self, call: Call) -> Any:
        """A call of the cloud API."""
        return await self._ask(AskCloud(call=call), ANSWERS[call.name])

    async def request(self, subject: str, payload: bytes, timeout: float) -> Answer:
        """A request to a guest agent."""
        async with asyncio.timeout(timeout):
            return Answer(await self._ask(AskGuest(subject=subject, payload=payload, timeout=timeout), bytes))

    async def settings(self) -> Settings:
        """What callers must know."""
        return await self._ask(Show(what="settings"), Settings)

    async def inventory(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Everything there is, by kind and id."""
        return await self._ask(Show(what="inventory"), _INVENTORY)

    async def ledger(self) -> list[Entry]:
        """Every change that the cloud has carried out."""
        return await self._ask(Show(what="ledger"), list[Entry])

    async def deeds(self) -> list[Deed]:
        """Everything that guests have carried out."""
        return await self._ask(Show(what="deeds"), list[Deed])

    async def injected(self) -> list[Injected]:
        """The faults that calls and requests have met."""
        return await self._ask(Show(what="injected"), list[Injected])

    async def plan(self, call: str, fault: Fault, times: int = 1) -> None:
        """The next so many calls of this name (`*`: of any) meet the fault."""
        await self._ask(Plan(call=call, fault=fault, times=times), type(None))

    async def plan_guest(self, verb: str, fault: GuestFault, times: int = 1) -> None:
        """The next so many requests of this verb meet the fault."""
        await self._ask(PlanGuest(verb=verb, fault=fault, times=times), type(None))

    async def offer(self, catalogue: Catalogue) -> None:
        """Have the cloud offer something else from now on."""
        await self._ask(Offer(catalogue=catalogue), type(None))

    async def close(self) -> None:
        """Hang up."""
        if self._writer is not None:
            self._writer.close()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait({self._reading})
        self._writer = self._reading = None

    # --- underneath -----------------------------------------------------------------------------------------------

    async def _ask(self, body: AskCloud | AskGuest | Show | Plan | PlanGuest | Offer, kind: type[T]) -> T:
        writer = await self._connected()
        number = next(self._numbers)
        self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            writer.write(msgspec.json.encode(Question(id=number, body=body)) + b"\n")
            return msgspec.json.decode(await self._asked[number], type=kind)
        finally:
            del self._asked[number]

    async def _connected(self) -> asyncio.StreamWriter:
        async with self._connecting:
            if self._writer is None or self._reading is None or self._reading.done():
                try:
                    reader, self._writer = await asyncio.open_unix_connection(self._path, limit=LIMIT)
                except OSError as error:
                    raise ConnectionRefusedError(
                        f"no simulated cloud answers at {self._path} ({error.strerror or error}); "
                        f"start one: python -m engine.clouds.simulated --socket {self._path}"
                    ) from error
                self._reading = asyncio.create_task(self._read(reader, self._writer), name="simulated-cloud")
            return self._writer

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                self._hear(msgspec.json.decode(line, type=Reply))
        except ConnectionError:
            pass
        finally:
            writer.close()
            for asked in self._asked.values():
                if not asked.done():
                    asked.set_exception(ConnectionResetError("the simulated cloud's process has gone"))

    def _hear(self, reply: Reply) -> None:
        asked = self._asked.get(reply.id)
        if asked is None or asked.done():
            return
        match reply.error:
            case Status(status=status, words=words, retry_after=retry_after):
                asked.set_exception(CloudAnswerError(status, words, retry_after=retry_after))
            case Broken(words=words):
                asked.set_exception(ConnectionResetError(words))
            case Nobody():
                asked.set_exception(NoRespondersError())
            case None:
                asked.set_result(reply.answer)


class RemoteCloud(SimulatedCloud):
    """The cloud behind a socket. What its calls can be trusted with is the far side's to say."""

    def __init__(self, far_side: FarSide, *, in_flight: int) -> None:
        super().__init__(api=far_side, caller=f"process {os.getpid()}", in_flight=in_flight)
        self._far_side = far_side

    async def start(self) -> None:
        """Ask what callers must know. Raises `TransientError` when nobody answers at the socket."""
        try:
            settings = await self._far_side.settings()
        except OSError as error:
            raise sort_error("settings", error, changes=False) from error
        self.latest_effect = self._calls.latest_effect = timedelta(seconds=settings.latest_effect)
        self._calls.deadline = settings.deadline
