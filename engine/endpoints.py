"""What the worker itself answers, since only it may: secrets.put, instances.plan, catalogue.get, workers.list.

Requests and answers travel over core NATS and are stored nowhere, so a secret may be in one. They change nothing but
the vault.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Set
from typing import Annotated, Any, Protocol
from uuid import UUID, uuid4

import msgspec
import structlog
from msgspec import Meta
from nats.aio.client import Client
from nats.aio.msg import Msg

from aggregates.base import Context, Refusal, path
from aggregates.catalogue import Catalogue
from aggregates.commands import COMMANDS
from engine.clock import Now, utc_now
from engine.deciding import AGGREGATES
from engine.event_log import fold
from engine.messages import ErrorReply, query_subject
from engine.partitions import Member, Ownership
from engine.replies import Answerable
from engine.store import EventStore

log = structlog.get_logger(__name__)

GROUP = "worker"  # one of several workers answers


class SecretRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The request of `secrets.put`."""

    secret: Annotated[str, Meta(min_length=1, max_length=4096)]


class SecretReply(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `secrets.put`: the reference to send in commands."""

    secret_ref: str


class PlanRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The request of `instances.plan`: a command as it would be sent. `instance_id` may be left out for a create."""

    command: str
    args: dict[str, Any] = {}
    instance_id: UUID | None = None


class PlanStep(msgspec.Struct, frozen=True, kw_only=True):
    """A state to pass, and what it owes."""

    state: str
    effect: str


class PlanReply(msgspec.Struct, frozen=True, kw_only=True):
    """What the command would do, or why it would be refused. Nothing was changed.

    `downtime`: none, restart (seconds), or full (until the plan's end). `makes` and `frees`: kinds of resources.
    """

    accepted: bool
    code: str | None = None
    reason: str | None = None
    plan: list[PlanStep] = []
    downtime: str = "none"
    makes: list[str] = []
    frees: list[str] = []


class WorkersReply(msgspec.Struct, frozen=True, kw_only=True):
    """Every worker that lives, as it presented itself within the last seconds."""

    items: list[Member]


class Vault(Protocol):
    """Where secrets are kept."""

    def put(self, secret: str, *, project: str) -> str:
        """Keep it; the reference."""
        ...


RESTARTING = {"restart", "reboot", "resize_flavor", "migrate", "rebuild"}
FULL = {"stop_instance", "delete_instance"}


def _downtime(command: str, effects: Set[str]) -> str:
    if command in FULL:
        return "full"
    # An extension stops the database only where its volume cannot be extended in use.
    return "restart" if command in RESTARTING or "StopDatabase" in effects else "none"


class Endpoints:
    """Serves the worker's queries for all projects."""

    def __init__(
        self,
        client: Client,
        store: EventStore,
        vault: Vault,
        catalogue: Callable[[], Catalogue],
        ownership: Ownership,
        now: Now = utc_now,
    ) -> None:
        self._client = client
        self._store = store
        self._vault = vault
        self._catalogue = catalogue
        self._ownership = ownership
        self._now = now
        self._may_answer = Answerable(client)
        self._running: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until cancelled."""
        served = {
            "secrets.put": self._put_secret,
            "instances.plan": self._plan,
            "catalogue.get": self._get_catalogue,
            "workers.list": self._list_workers,
        }
        subscriptions = []
        for name, serve in served.items():
            model, _, verb = name.partition(".")
            subscriptions.append(
                await self._client.subscribe(query_subject("*", model, verb), queue=GROUP, cb=self._answering(serve))
            )
        try:
            await asyncio.Event().wait()
        finally:
            if self._client.is_connected:
                for subscription in subscriptions:
                    await subscription.unsubscribe()

    def _answering(self, serve: Callable[[str, bytes], Awaitable[Any]]) -> Callable[[Msg], Awaitable[None]]:
        async def answer(message: Msg) -> None:
            project = message.subject.split(".")[3]
            try:
                reply = await serve(project, message.data or b"{}")
            except msgspec.MsgspecError as error:
                reply = ErrorReply(code="invalid_argument", message=str(error))
            except Exception:
                log.exception("query_broke", subject=message.subject)
                reply = ErrorReply(code="internal_error", message="the query could not be answered; the log says why")
            if self._may_answer(message.reply):
                await message.respond(msgspec.json.encode(reply))

        async def begin(message: Msg) -> None:
            task = asyncio.create_task(answer(message))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

        return begin

    async def _put_secret(self, project: str, body: bytes) -> SecretReply:
        wanted = msgspec.json.decode(body, type=SecretRequest)
        reference = await asyncio.to_thread(self._vault.put, wanted.secret, project=project)
        return SecretReply(secret_ref=reference)

    async def _get_catalogue(self, project: str, body: bytes) -> Catalogue:
        del project, body
        return self._catalogue()

    async def _list_workers(self, project: str, body: bytes) -> WorkersReply:
        del project, body
        return WorkersReply(items=await self._ownership.members())

    async def _plan(self, project: str, body: bytes) -> PlanReply:
        wanted = msgspec.json.decode(body, type=PlanRequest)
        try:
            return await self._planned(project, wanted)
        except Refusal as refusal:
            return PlanReply(accepted=False, code=refusal.code, reason=refusal.message)

    async def _planned(self, project: str, wanted: PlanRequest) -> PlanReply:
        known = COMMANDS.get(("instance", wanted.command))
        if known is None:
            raise Refusal("unknown_command", f"no command {wanted.command} for an instance")
        try:
            command = msgspec.convert(wanted.args, known)
        except msgspec.ValidationError as error:
            raise Refusal("invalid_argument", str(error)) from None
        instance_id = wanted.instance_id or uuid4()
        context = Context(
            at=self._now(),
            command_id=uuid4(),
            actor="plan",
            project=project,
            partition=0,
            catalogue=self._catalogue(),
        )
        # A copy of its own: what is decided here is never committed.
        instance = fold(await self._store.events_of(instance_id))
        if instance is None and not command.creates:
            raise Refusal("not_found", f"no instance {instance_id} in project {project}")
        if instance is None:
            instance = AGGREGATES["instance"].create(instance_id, command, context)
        else:
            instance.execute(command, context)
        running = "" if instance.operation is None else instance.operation.command
        ahead = path(type(instance), instance.state, instance)
        effects = [(state, instance.owing[state].effect(instance)) for state in ahead]
        return PlanReply(
            accepted=True,
            plan=[PlanStep(state=state, effect=effect.type_name) for state, effect in effects],
            downtime=_downtime(running, {effect.type_name for _, effect in effects}),
            makes=[e.type_name.removeprefix("Ensure").lower() for _, e in effects if e.type_name.startswith("Ensure")],
            frees=[e.type_name.removesuffix("Absent").lower() for _, e in effects if e.type_name.endswith("Absent")],
        )
