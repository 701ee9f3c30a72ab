"""What the worker answers about orphans: `list` shows them, `delete` has one removed, `adopt` recorded as own.

An orphan bears our name or mark and is no instance's own, and the observer leaves it alone: its instance is not in this
log, or it may be all that is left, or somebody had it left there. Only the worker that owns the instance's range
removes one, under the same permit, checks and deadlines as any effect. Of an instance in the log the removal is on
record first, so that a death in the middle is made good by the observer; of any other it is in the worker's log alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

import msgspec
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from aggregates import observation
from aggregates.base import Refusal
from aggregates.effects import Effect, ResourceAbsent
from aggregates.instance import Instance
from aggregates.resources import Resource, ResourceKind
from engine.clock import Now, utc_now
from engine.clouds.port import Cloud, PayError, permit
from engine.hot import HotAggregates
from engine.messages import EVERY_PROJECT, ErrorReply, query_subject
from engine.partitions import Ownership, range_of_aggregate
from engine.replies import Answerable
from engine.store import Conflict, EventStore

log = structlog.get_logger(__name__)

GROUP = "worker"  # one of several workers answers what is only looked at
WITHIN = 60.0  # seconds for one removal

Pay = Callable[[Effect, str], Awaitable[Mapping[str, Any]]]


class Orphan(msgspec.Struct, frozen=True, kw_only=True):
    """A resource that is no instance's own. `why`: how it is one. `project`: the instance's, or what its mark says.

    `size` in GiB; `server_id`: the server that has it, which must go first.
    """

    kind: ResourceKind
    id: str
    name: str
    instance_id: UUID
    project: str | None
    status: str
    size: int | None
    host: str | None
    server_id: str | None
    region: str | None = None
    why: str


class OrphansRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`orphans.list` takes no arguments."""


class OrphansReply(msgspec.Struct, frozen=True, kw_only=True):
    """The orphans of the project; of all projects, and of none, for operators, who ask for `$all`.

    `silent`: regions that did not say what they hold, whose orphans are not among these, and why.
    """

    items: list[Orphan]
    silent: Mapping[str, str] = {}


class ChosenOrphan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of those listed, and who has chosen it."""

    kind: ResourceKind
    id: str
    instance_id: UUID
    actor: str


class DeleteOrphanRequest(ChosenOrphan, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The request of `orphans.delete`."""


class AdoptOrphanRequest(ChosenOrphan, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The request of `orphans.adopt`."""


class DeleteOrphanReply(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `orphans.delete`: it is gone. Asked again, the answer is the error `not_found`."""

    deleted: str


class AdoptOrphanReply(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `orphans.adopt`: it is the instance's own. Asked again, the answer is the same."""

    adopted: str


class Orphans:
    """Serves them for all projects."""

    def __init__(
        self,
        client: Client,
        store: EventStore,
        hot: HotAggregates,
        cloud: Cloud,
        pay: Pay,
        ownership: Ownership,
        now: Now = utc_now,
    ) -> None:
        self._client = client
        self._store = store
        self._hot = hot
        self._cloud = cloud
        self._pay = pay
        self._ownership = ownership
        self._now = now
        self._may_answer = Answerable(client)
        self._running: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until cancelled."""
        subscriptions = [
            await self._client.subscribe(
                query_subject("*", "orphans", "list"), queue=GROUP, cb=self._answering(self._list)
            ),
            # Heard by all: whoever owns the instance's range answers.
            await self._client.subscribe(query_subject("*", "orphans", "delete"), cb=self._answering(self._delete)),
            await self._client.subscribe(query_subject("*", "orphans", "adopt"), cb=self._answering(self._adopt)),
        ]
        try:
            await asyncio.Event().wait()
        finally:
            if self._client.is_connected:
                for subscription in subscriptions:
                    await subscription.unsubscribe()

    def _answering(self, serve: Callable[[str, bytes], Awaitable[Any]]) -> Callable[[Msg], Awaitable[None]]:
        async def answer(message: Msg) -> None:
            reply = await self._reply(serve, message)
            if reply is not None and self._may_answer(message.reply):
                await message.respond(msgspec.json.encode(reply))

        async def begin(message: Msg) -> None:
            task = asyncio.create_task(answer(message))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

        return begin

    async def _reply(self, serve: Callable[[str, bytes], Awaitable[Any]], message: Msg) -> Any:
        try:
            return await serve(message.subject.split(".")[3], message.data or b"{}")
        except msgspec.MsgspecError as error:
            return ErrorReply(code="invalid_argument", message=str(error))
        except (Refusal, PayError) as error:
            return ErrorReply(code=error.code, message=error.message)
        except TimeoutError:
            return ErrorReply(code="timeout", message=f"it was not gone within {WITHIN:.0f} s; list the orphans again")
        except Conflict:
            return ErrorReply(code="not_decided", message="another worker has taken over meanwhile; ask again")
        except Exception:
            log.exception("query_broke", subject=message.subject)
            return ErrorReply(code="internal_error", message="the query could not be answered; the log says why")

    # --- looking --------------------------------------------------------------------------------------------------

    async def _list(self, project: str, body: bytes) -> OrphansReply:
        msgspec.json.decode(body, type=OrphansRequest)
        seen: dict[UUID, list[Resource]] = {}
        inventory = await self._cloud.inventory()
        for resource in inventory.resources:
            if resource.instance_id is not None:
                seen.setdefault(resource.instance_id, []).append(resource)
        known = await self._store.existing(seen)
        found: list[Orphan] = []
        for instance_id in sorted(seen):
            instance = await self._store.load(instance_id) if instance_id in known else None
            found.extend(_orphans(instance_id, instance, seen[instance_id]))
        items = [each for each in found if project in (EVERY_PROJECT, each.project)]
        return OrphansReply(items=items, silent=inventory.silent)

    # --- removing -------------------------------------------------------------------------------------------------

    async def _delete(self, project: str, body: bytes) -> DeleteOrphanReply | None:
        wanted = msgspec.json.decode(body, type=DeleteOrphanRequest)
        ours = range_of_aggregate(wanted.instance_id)
        if not self._ownership.serves(ours):
            return None  # its owner answers
        permit.set(self._ownership.permit(ours))
        found, _ = await self._listed(project, wanted)
        on_record = await self._put_on_record(found, wanted)
        async with asyncio.timeout(WITHIN):
            await self._pay(
                ResourceAbsent(
                    instance_id=wanted.instance_id,
                    region=found.region,
                    kind=found.kind,
                    name=found.name,
                    resource_id=found.id,
                ),
                f"{wanted.instance_id}:{found.id}:ResourceAbsent",
            )
        if on_record:
            async with self._hot.turn(wanted.instance_id) as turn:
                observation.note_removed(turn.aggregate, found, at=self._now())
                await self._hot.commit(turn)
        log.info("orphan_deleted", instance_id=str(wanted.instance_id), resource=str(found), actor=wanted.actor)
        return DeleteOrphanReply(deleted=found.id)

    async def _adopt(self, project: str, body: bytes) -> AdoptOrphanReply | None:
        wanted = msgspec.json.decode(body, type=AdoptOrphanRequest)
        if not self._ownership.serves(range_of_aggregate(wanted.instance_id)):
            return None  # its owner answers
        found, seen = await self._listed(project, wanted)
        async with self._hot.turn(wanted.instance_id) as turn:
            if turn.aggregate is None:
                raise Refusal("not_found", f"nobody can adopt {found}: its instance is not in this log")
            observation.adopt(turn.aggregate, found, seen, actor=wanted.actor, at=self._now())
            await self._hot.commit(turn)
        log.info("orphan_adopted", instance_id=str(wanted.instance_id), resource=str(found), actor=wanted.actor)
        return AdoptOrphanReply(adopted=found.id)

    async def _listed(self, project: str, wanted: ChosenOrphan) -> tuple[Resource, list[Resource]]:
        """It, and all of its instance's, as the cloud shows it now. Raises `Refusal`."""
        inventory = await self._cloud.inventory()
        seen = [each for each in inventory.resources if each.instance_id == wanted.instance_id]
        for each in seen:
            if (each.kind, each.id) == (wanted.kind, wanted.id):
                instance = await self._store.load(wanted.instance_id)
                whose = each.project if instance is None else instance.project
                if project in (EVERY_PROJECT, whose):
                    return each, seen
        raise Refusal(
            "not_found",
            f"project {project} has no orphan {wanted.kind} {wanted.id} of instance {wanted.instance_id}; it may be "
            "gone already: see `holdfast orphans`",
        )

    async def _put_on_record(self, found: Resource, wanted: DeleteOrphanRequest) -> bool:
        """Whether there is an instance on whose record it is that it is to be removed. Raises `Refusal`."""
        async with self._hot.turn(wanted.instance_id) as turn:
            instance = turn.aggregate
            if instance is None:
                return False
            observation.disown(instance, found, actor=wanted.actor, at=self._now())
            await self._hot.commit(turn)
            return True


def _orphans(instance_id: UUID, instance: Instance | None, seen: Sequence[Resource]) -> list[Orphan]:
    if instance is None:
        why, found = "no instance of this log has this id", tuple(seen)
    else:
        why = f"the instance is {instance.status} and does not know it as its own"
        found = observation.orphans(instance, seen)
    return [
        Orphan(
            kind=each.kind,
            id=each.id,
            name=each.name,
            instance_id=instance_id,
            project=each.project if instance is None else instance.project,
            status=each.status,
            size=each.size,
            host=each.host,
            server_id=each.server_id,
            region=each.region,
            why=why,
        )
        for each in found
    ]
