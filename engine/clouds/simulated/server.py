"""A simulated cloud and its guests in a process of its own, so that ledger and journals outlive killed workers.

A question that has arrived is carried out whether or not its caller lives to hear the answer. All of it is gone with
this process.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import structlog
from nats.errors import NoRespondersError

from engine.clouds.errors import CloudAnswerError
from engine.clouds.simulated.site import Site
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

log = structlog.get_logger(__name__)


class SocketInUseError(OSError):
    """Another simulated cloud answers at the socket."""


async def serve(path: Path, site: Site, settings: Settings, stop: asyncio.Event) -> None:
    """Serve at the socket until told to stop. Raises `SocketInUseError`, or `OSError` when there can be none."""
    await _refuse_if_served(path)
    server = await asyncio.start_unix_server(_Connections(site, settings).serve, path, limit=LIMIT)
    log.info("simulated_cloud_serves", socket=str(path))
    try:
        await stop.wait()
    finally:
        server.close()
        path.unlink(missing_ok=True)  # noqa: ASYNC240 - the last thing that happens
        site.close()


async def _refuse_if_served(path: Path) -> None:
    with suppress(ConnectionRefusedError, FileNotFoundError):
        _, writer = await asyncio.open_unix_connection(path)
        writer.close()
        raise SocketInUseError(f"another simulated cloud answers at {path}: end it, or name another socket")


class _Connections:
    def __init__(self, site: Site, settings: Settings) -> None:
        self._site = site
        self._settings = settings
        self._answering: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client, until it goes; what it asked last is carried out all the same."""
        try:
            while line := await reader.readline():
                question = msgspec.json.decode(line, type=Question)
                task = asyncio.create_task(self._answer(question, writer))
                self._answering.add(task)
                task.add_done_callback(self._answering.discard)
        except (ConnectionError, ValueError) as error:
            log.warning("client_lost", reason=str(error))
        finally:
            writer.close()

    async def _answer(self, question: Question, writer: asyncio.StreamWriter) -> None:
        try:
            answer = msgspec.Raw(msgspec.json.encode(await self._carried_out(question.body)))
            reply = Reply(id=question.id, answer=answer)
        except CloudAnswerError as error:
            status = Status(status=error.status, words=error.words, retry_after=error.retry_after)
            reply = Reply(id=question.id, error=status)
        except NoRespondersError:
            reply = Reply(id=question.id, error=Nobody())
        except TimeoutError:
            return  # it is the caller's own deadline that has passed
        except ConnectionError as error:
            reply = Reply(id=question.id, error=Broken(words=str(error)))
        except (TypeError, ValueError, LookupError) as error:
            reply = Reply(id=question.id, error=Status(status=400, words=f"{type(error).__name__}: {error}"))
        with suppress(ConnectionError):
            writer.write(msgspec.json.encode(reply) + b"\n")
            await writer.drain()

    async def _carried_out(self, body: AskCloud | AskGuest | Show | Plan | PlanGuest | Offer) -> Any:
        match body:
            case AskCloud(call=call):
                return await self._site.api.call(call)
            case AskGuest(subject=subject, payload=payload, timeout=timeout):
                return (await self._site.agents.request(subject, payload, timeout)).data
            case Plan(call=name, fault=fault, times=times):
                self._site.api.faults.plan(name, fault, times)
            case PlanGuest(verb=verb, fault=guest_fault, times=times):
                self._site.agents.faults.plan(verb, guest_fault, times)
            case Offer(catalogue=catalogue):
                self._site.api.offer(catalogue)
            case Show(what=what):
                return await self._shown(what)
        return None

    async def _shown(self, what: str) -> Any:
        if what == "inventory":
            return await self._site.api.inventory()
        injected = self._site.api.faults.injected + self._site.agents.faults.injected
        return {
            "settings": self._settings,
            "ledger": self._site.api.ledger,
            "deeds": self._site.agents.ledger,
            "injected": [Injected(call=call, kind=kind, times=times) for (call, kind), times in injected.items()],
        }[what]
