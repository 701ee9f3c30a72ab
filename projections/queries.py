"""The query service: answers from the read models, for the project that the subject names and no other.

Every request is answered once, or the asker has a deadline of its own; answers are as new as the projector. A request
that waits holds no thread. The service's own statistics count requests, not how long an answer took.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from uuid import UUID

import msgspec
import nats.errors
import nats.micro
import structlog
from nats.aio.client import Client
from nats.micro.request import Request as ServiceRequest
from nats.micro.service import Service

from engine.clock import monotonic, utc_now
from engine.messages import PREFIX, ErrorReply, heartbeat_subject, query_subject
from projections import troubles
from projections.answers import CommandAnswer, ListAnswer, TroublesAnswer, WatchAnswer
from projections.heartbeats import HeartbeatView
from projections.listing import DEFAULT_LIMIT, ListRequest, QueryError
from projections.projector import Projector
from projections.questions import (
    QUESTIONS,
    GetCommand,
    GetInstance,
    GetNumbers,
    Question,
    WatchRequest,
    as_list,
    not_found,
    settled,
)
from projections.reading import Reader, ReadTimeoutError

log = structlog.get_logger(__name__)

NAME = "holdfast-projections"
VERSION = "1.0.0"
GROUP = "projections"
IN_FLIGHT = 4096  # requests at once, waiting ones included
HEADROOM = 4096  # bytes of the broker's limit that are left to headers

T = TypeVar("T")
Serve = Callable[[str, bytes], Awaitable[Any]]


class QueryService:
    """Serves all projects' queries from one file of read models and the heartbeat view."""

    def __init__(self, client: Client, projector: Projector, reader: Reader, beats: HeartbeatView) -> None:
        self._client = client
        self._projector = projector
        self._reader = reader
        self._beats = beats
        self._service: Service | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._serve: dict[tuple[str, str], Serve] = {}
        for model, question in QUESTIONS.items():
            self._serve[model, "get"] = self._getting(question)
            self._serve[model, "watch"] = self._watching(question)
            if question.listing is not None:
                self._serve[model, "list"] = self._listing(question)
        self._serve["commands", "get"] = self._get_command
        self._serve["troubles", "get"] = self._get_troubles
        self._serve["heartbeats", "get"] = self._get_heartbeat
        self._serve["heartbeats", "list"] = self._list_heartbeats
        self._serve["heartbeats", "watch"] = self._watch_heartbeats

    async def start(self) -> None:
        """Begin to answer."""
        self._service = await nats.micro.add_service(
            self._client, name=NAME, version=VERSION, description="The read models of Holdfast", queue_group=GROUP
        )
        for model in dict.fromkeys(model for model, _ in self._serve):
            # Other verbs of instances are answered elsewhere; of all other models every verb is ours, unknown ones too.
            verbs = [verb for m, verb in self._serve if m == model] if model == "instances" else ["*"]
            for verb in verbs:
                name = model if verb == "*" else f"{model}-{verb}"
                await self._service.add_endpoint(
                    name=name, subject=query_subject("*", model, verb), handler=self._begin
                )
        await self._acknowledged()

    async def close(self) -> None:
        """Take no more requests; who still waits is answered by nobody and asks again."""
        if self._service is not None and self._client.is_connected:
            try:
                await self._service.stop()
                await self._acknowledged()
            except (nats.errors.Error, OSError) as error:
                log.warning("query_service_not_stopped_in_order", error=repr(error))
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _acknowledged(self) -> None:
        """Wait until the broker knows what was subscribed or given up."""
        # The client writes a flush's PING before the commands that are pending: the first flush only gets them sent.
        await self._client.flush()
        await self._client.flush()

    # --- requests -------------------------------------------------------------------------------------------------

    async def _begin(self, request: ServiceRequest) -> None:
        # The client hands over one request at a time until this returns, so the answer is another task's.
        task = asyncio.create_task(self._answer(request, overloaded=len(self._running) >= IN_FLIGHT))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _answer(self, request: ServiceRequest, *, overloaded: bool) -> None:
        try:
            if overloaded:
                raise QueryError("overloaded", f"{IN_FLIGHT} queries are being answered; ask again later")  # noqa: TRY301
            body = await self._serving(request.subject, request.data)
        except QueryError as error:
            await self._refuse(request, ErrorReply(code=error.code, message=error.message))
        except ReadTimeoutError as error:
            await self._refuse(request, ErrorReply(code="timeout", message=str(error)))
        except Exception:
            log.exception("query_broke", subject=request.subject)
            await self._refuse(
                request, ErrorReply(code="internal_error", message="the query broke; the projector's log says why")
            )
        else:
            await self._send(request, request.respond(body))

    async def _refuse(self, request: ServiceRequest, reply: ErrorReply) -> None:
        header = " ".join(reply.message.split())[:500]
        await self._send(request, request.respond_error(reply.code, header, msgspec.json.encode(reply)))

    async def _send(self, request: ServiceRequest, sending: Awaitable[None]) -> None:
        try:
            await sending
        except (nats.errors.Error, ValueError, OSError) as error:
            # Without a reply subject or a connection there is nobody to tell.
            log.warning("query_not_answered", subject=request.subject, error=repr(error))

    async def _serving(self, subject: str, body: bytes) -> bytes:
        _, _, _, project, model, verb = subject.split(".")
        serve = self._serve.get((model, verb))
        if serve is None:
            verbs = sorted(v for m, v in self._serve if m == model)
            raise QueryError("unknown_query", f"no query {model}.{verb}; {model} knows: {', '.join(verbs)}")
        encoded = msgspec.json.encode(await serve(project, body or b"{}"))
        if len(encoded) > self._room:
            raise QueryError("too_large", f"the answer has {len(encoded)} bytes, more than a message takes")
        return encoded

    @property
    def _room(self) -> int:
        return self._client.max_payload - HEADROOM

    # --- verbs ----------------------------------------------------------------------------------------------------

    def _getting(self, question: Question) -> Serve:
        async def get(project: str, body: bytes) -> Any:
            wanted = _arguments(body, question.get)
            return await self._reader.read(lambda c: question.look_up(c, project, wanted))

        return get

    def _listing(self, question: Question) -> Serve:
        listing = question.listing
        assert listing is not None  # noqa: S101 - a model without one is not listed

        async def page(project: str, wanted: ListRequest) -> ListAnswer:
            return await self._reader.read(lambda c: listing.page(c, project, wanted))

        async def list_(project: str, body: bytes) -> ListAnswer:
            return await self._fitting(page, project, _arguments(body, ListRequest))

        return list_

    def _watching(self, question: Question) -> Serve:
        async def snapshot(project: str, wanted: WatchRequest) -> WatchAnswer:
            return await self._reader.read(lambda c: question.watch(c, project, wanted))

        async def watch(project: str, body: bytes) -> WatchAnswer:
            return await self._fitting(snapshot, project, _arguments(body, WatchRequest))

        return watch

    async def _fitting(self, ask: Callable[[str, Any], Awaitable[T]], project: str, wanted: Any) -> T:
        """The answer, with a shorter page than asked for if a message does not take the whole."""
        while True:
            answer: Any = await ask(project, wanted)
            items = answer.items
            size = 0 if not items else len(msgspec.json.encode(answer))
            if size <= self._room or len(items) == 1:
                return answer  # type: ignore[no-any-return]
            limit = max(1, min(len(items) - 1, len(items) * self._room * 9 // (size * 10)))
            log.debug("page_shortened", asked=wanted.limit or DEFAULT_LIMIT, given=limit)
            wanted = msgspec.structs.replace(wanted, limit=limit)

    async def _get_command(self, project: str, body: bytes) -> CommandAnswer:
        wanted = _arguments(body, GetCommand)
        answer = await self._waited(project, wanted)
        if answer is not None:
            return answer
        if wanted.wait:
            raise QueryError(
                "timeout", f"command {wanted.command_id} is not decided after {wanted.wait:g} s; ask again"
            )
        raise not_found(project, f"command_id {wanted.command_id}")

    async def _waited(self, project: str, wanted: GetCommand) -> CommandAnswer | None:
        command_id = str(wanted.command_id)
        deadline = monotonic() + wanted.wait
        ids = {command_id}
        while True:
            with self._projector.changes(ids) as changed:
                answer: CommandAnswer | None = await self._reader.read(
                    lambda c: QUESTIONS["commands"].find(c, project, wanted)
                )
                left = deadline - monotonic()
                if settled(answer, wanted.until) or left <= 0:
                    return answer
                if answer is not None and answer.aggregate_id not in ids:
                    ids.add(answer.aggregate_id)
                    continue
                try:
                    async with asyncio.timeout(left):
                        await changed.wait()
                except TimeoutError:
                    continue

    async def _get_troubles(self, project: str, body: bytes) -> TroublesAnswer:
        _arguments(body, GetNumbers)
        answer = await self._reader.read(lambda c: troubles.get(c, project, utc_now()))
        return msgspec.structs.replace(answer, lag=self._projector.lag, stopped=self._projector.stopped)

    async def _get_heartbeat(self, project: str, body: bytes) -> Any:
        return await self._beat(project, _arguments(body, GetInstance).instance_id)

    async def _list_heartbeats(self, project: str, body: bytes) -> ListAnswer:
        return await self._fitting(self._beats.page, project, _arguments(body, ListRequest))

    async def _watch_heartbeats(self, project: str, body: bytes) -> WatchAnswer:
        wanted = _arguments(body, WatchRequest)
        position = self._projector.position
        if wanted.instance_id is not None:
            beat = await self._beat(project, wanted.instance_id)
            return WatchAnswer(position=position, subject=heartbeat_subject(wanted.instance_id), item=beat)
        page = await self._fitting(self._beats.page, project, as_list(wanted))
        return WatchAnswer(
            position=position,
            subject=f"{PREFIX}.evt.{project}.health.*.>",
            items=page.items,
            next_marker=page.next_marker,
        )

    async def _beat(self, project: str, instance_id: UUID) -> Any:
        found = await self._beats.get(project, str(instance_id))
        if found is None:
            raise not_found(project, f"instance_id {instance_id}")
        return found


def _arguments(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise QueryError("invalid_argument", str(error)) from None
