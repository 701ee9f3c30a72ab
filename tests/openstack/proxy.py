"""A door before one of the cloud's interfaces: it counts what goes through, and loses, cuts or refuses what it is told.

HTTP as the services' clients speak it: one request after the other, bodies of a known length.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

import msgspec

Body = dict[str, Any]


class Door(StrEnum):
    """What becomes of a request."""

    ANSWER_LOST = "answer_lost"  # it is carried out, and the connection breaks
    CUT = "cut"  # the connection breaks, and nothing was carried out
    BUSY = "busy"  # 429, with Retry-After
    FAILS = "fails"  # 503 after it was carried out
    NEVER = "never"  # it is carried out, and no answer comes while the connection stays
    LATE = "late"  # the connection breaks at once, and it is carried out a while later
    AMENDED = "amended"  # it goes through, changed


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """A request that came, when by the loop's time, and what was answered; 0: nothing."""

    method: str
    path: str
    status: int
    at: float

    @property
    def changes(self) -> bool:
        """Whether it asked for a change."""
        return self.method not in ("GET", "HEAD")


class _Plan(msgspec.Struct, kw_only=True):
    method: str
    path: re.Pattern[str]
    door: Door
    times: int
    amend: Callable[[Body], None] | None = None


class Proxy:
    """Before the interface at `url`."""

    def __init__(self, url: str, *, retry_after: float = 1.0) -> None:
        parts = urlsplit(url)
        self._to = (parts.hostname or "", parts.port or 80)
        self._path = parts.path
        self.retry_after = retry_after  # seconds that it asks for when it is busy
        self.late = 0.0  # seconds for which a late request lies somewhere
        self.lying: set[asyncio.Task[None]] = set()  # the late ones
        self._plans: list[_Plan] = []
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._port = 0
        self.seen: list[Seen] = []

    async def open(self) -> None:
        """Take connections."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Take none, as a service that is down; `open` has it up again at the same port."""
        if self._server is not None:
            self._server.close()
            for writer in self._writers:
                writer.close()
            await self._server.wait_closed()
            self._server = None

    @property
    def url(self) -> str:
        """Where clients find the interface."""
        return f"http://127.0.0.1:{self._port}{self._path}"

    def plan(self, method: str, path: str, door: Door, *, times: int = 1) -> None:
        """The next so many requests whose path the regular expression is found in meet this."""
        self._plans.append(_Plan(method=method, path=re.compile(path), door=door, times=times))

    def amend(self, method: str, path: str, change: Callable[[Body], None], *, times: int = 1) -> None:
        """The next so many such requests go through with their body changed."""
        self._plans.append(_Plan(method=method, path=re.compile(path), door=Door.AMENDED, times=times, amend=change))

    def changes(self) -> list[Seen]:
        """The requests for a change that were not refused."""
        return [each for each in self.seen if each.changes and each.status < 400]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while (head := await _head(reader)) is not None:
                body = await reader.readexactly(_length(head))
                if not await self._pass(head, body, writer):
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _pass(self, head: list[bytes], body: bytes, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection stays."""
        came = asyncio.get_running_loop().time()
        method, path = head[0].decode().split()[:2]
        plan = self._due(method, path)
        door = None if plan is None else plan.door
        if door is Door.CUT:
            self._saw(came, method, path, 0)
            return False
        if door is Door.BUSY:
            self._saw(came, method, path, 429)
            writer.write(f"HTTP/1.1 429 Busy\r\nRetry-After: {self.retry_after}\r\nContent-Length: 0\r\n\r\n".encode())
            return True
        if plan is not None and plan.amend is not None:
            changed = json.loads(body)
            plan.amend(changed)
            body = json.dumps(changed).encode()
        if door is Door.LATE:
            lying = asyncio.create_task(self._carry_out_late(came, head, body))
            self.lying.add(lying)
            lying.add_done_callback(self.lying.discard)
            return False
        answer = await self._ask(head, body)
        if door is Door.NEVER:
            self._saw(came, method, path, 0)
            await asyncio.Event().wait()
        if door is Door.ANSWER_LOST:
            self._saw(came, method, path, 0)
            return False
        if door is Door.FAILS:
            self._saw(came, method, path, 0)
            writer.write(b"HTTP/1.1 503 Down\r\nContent-Length: 0\r\n\r\n")
            return True
        self._saw(came, method, path, int(answer.split(b" ", 2)[1]))
        writer.write(answer)
        await writer.drain()
        return False

    async def _carry_out_late(self, came: float, head: list[bytes], body: bytes) -> None:
        await asyncio.sleep(self.late)
        answer = await self._ask(head, body)
        method, path = head[0].decode().split()[:2]
        self._saw(came, method, path, int(answer.split(b" ", 2)[1]))

    async def _ask(self, head: list[bytes], body: bytes) -> bytes:
        kept = [line for line in head if not line.lower().startswith((b"connection:", b"content-length:"))]
        sent = b"\r\n".join([*kept, b"Connection: close", f"Content-Length: {len(body)}".encode(), b"", b""]) + body
        reader, writer = await asyncio.open_connection(*self._to)
        try:
            writer.write(sent)
            return await reader.read()
        finally:
            writer.close()

    def _due(self, method: str, path: str) -> _Plan | None:
        for plan in self._plans:
            if plan.times and plan.method == method and plan.path.search(path):
                plan.times -= 1
                return plan
        return None

    def _saw(self, at: float, method: str, path: str, status: int) -> None:
        self.seen.append(Seen(method=method, path=path, status=status, at=at))


async def _head(reader: asyncio.StreamReader) -> list[bytes] | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    return head.removesuffix(b"\r\n\r\n").split(b"\r\n")


def _length(head: list[bytes]) -> int:
    lines = (line.lower().partition(b":") for line in head)
    return next((int(value) for name, _, value in lines if name == b"content-length"), 0)
