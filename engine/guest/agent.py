"""The guest agent: answers verbs over NATS, beats, and keeps its database as it was last told to be.

A verb is carried out at least once and its recorded answer given for ever after. The agent holds nothing in memory that
matters: it may be killed at any point, and the database goes on without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec
import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from engine.guest.belongings import leave
from engine.guest.config import AgentConfig
from engine.guest.connection import Credentials, read_credentials, stay_connected
from engine.guest.database import Database
from engine.guest.datastores.base import DatastoreError, Place
from engine.guest.datastores.catalogue import open_datastore
from engine.guest.desired import DesiredFile
from engine.guest.journal import Journal
from engine.guest.membership import MembershipFile
from engine.guest.mount import Mount
from engine.guest.presence import Presence
from engine.guest.replication import Replication
from engine.guest.volume import Use
from engine.messages import (
    AdmitReplicaArgs,
    AwaitPositionArgs,
    ConfigureSourceArgs,
    DismissReplicaArgs,
    FollowSourceArgs,
    GrowArgs,
    GuestReply,
    GuestRequest,
    GuestState,
    GuestStatus,
    GuestVerb,
    Heartbeat,
    PrepareArgs,
    PromoteReplicaArgs,
    RebuildArgs,
    ReplicationArgs,
    SeedReplicaArgs,
    StartArgs,
    StopArgs,
    VolumeUse,
    heartbeat_subject,
)
from engine.tasks import end

_log = structlog.get_logger()
_T = TypeVar("_T")

_LOOK_EVERY = 0.2
_MEASURE_EVERY = 1.0
_STAMP_EVERY = 0.5
_LONGEST_WAIT = 60.0


async def run(config: AgentConfig, credentials: Credentials | None = None, stop: asyncio.Event | None = None) -> None:
    """Serve until `stop` is set or the task cancelled. The database goes on running. Raises `DatastoreError`."""
    with Journal(config.directory) as journal:
        agent = Agent(config, journal)
        await agent.serve(credentials or read_credentials(config), stop or asyncio.Event())


class Agent:
    """One agent process: its database, its journal, its connection."""

    def __init__(self, config: AgentConfig, journal: Journal) -> None:
        self._config = config
        self._journal = journal
        place = Place(
            instance_id=config.instance_id, address=config.address, directory=config.directory, volume=config.volume
        )
        self._datastore = open_datastore(config.datastore, config.datastore_version, place)
        self._desired = DesiredFile(config.directory)
        mount = Mount(volume=config.volume, requests=config.requests)
        membership = MembershipFile(config.volume)
        self._database = Database(
            self._datastore, self._desired, membership, mount, config.gibibyte, self._status_changed
        )
        self._replication = Replication(
            config.instance_id, self._datastore, self._database, self._desired, membership, config.gibibyte
        )
        self._presence = Presence(config.directory)
        self._verbs = self._table()
        self._boot = secrets.token_hex(8)
        self._sequence = 0
        self._version: str | None = None
        self._progress: str | None = None
        self._turn = asyncio.Lock()  # whoever holds it has the database to itself
        self._running: dict[str, asyncio.Task[GuestReply]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._statuses: asyncio.Queue[GuestStatus] = asyncio.Queue()
        self._threads = ThreadPoolExecutor(3, thread_name_prefix="database")

    async def serve(self, credentials: Credentials, stop: asyncio.Event) -> None:
        """Everything that the agent does, until stopped."""
        with contextlib.suppress(DatastoreError):  # the verb that needs the programs says what is wrong with them
            self._version = await self._in_thread(self._datastore.version)
        await self._be_present()  # before anything starts a database
        tasks: list[asyncio.Task[Any]] = [
            asyncio.create_task(work, name=name)
            for name, work in (
                ("broker", stay_connected(self._config, credentials, self._take, self._beat)),
                ("supervision", self._supervise()),
                ("volume", self._watch_volume()),
                ("presence", self._stay_present()),
                ("stop", stop.wait()),
            )
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            # A verb under way is cut off as by a kill: it is carried out again when asked for again.
            unfinished = len(self._running)
            await end(*tasks, *self._answering, *self._running.values())
            self._threads.shutdown(wait=False, cancel_futures=True)
            _log.info("agent_stopped", unfinished=unfinished)

    def _table(self) -> dict[GuestVerb, tuple[type[msgspec.Struct] | None, Callable[..., dict[str, Any]]]]:
        """What each verb takes, and what it does."""
        database, replication = self._database, self._replication

        def settled(work: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
            """What may start a database does so once it is known whether tenants may write."""

            def first(*given: Any) -> dict[str, Any]:
                if self._desired.now.prepared or work == database.rebuild:
                    database.mount.take()
                    replication.settle_absence()
                return work(*given)

            return first

        return {
            GuestVerb.PREPARE: (PrepareArgs, database.prepare),
            GuestVerb.REBUILD: (RebuildArgs, settled(database.rebuild)),
            GuestVerb.START: (StartArgs, settled(database.start)),
            GuestVerb.GROW: (GrowArgs, database.grow),
            GuestVerb.STOP: (None, database.stop),
            GuestVerb.RESTART: (None, settled(database.restart)),
            GuestVerb.ADMIT_REPLICA: (AdmitReplicaArgs, replication.admit_replica),
            GuestVerb.DISMISS_REPLICA: (DismissReplicaArgs, replication.dismiss_replica),
            GuestVerb.CONFIGURE_SOURCE: (ConfigureSourceArgs, replication.configure_source),
            GuestVerb.SEED_REPLICA: (SeedReplicaArgs, replication.seed_replica),
            GuestVerb.FOLLOW_SOURCE: (FollowSourceArgs, replication.follow_source),
            GuestVerb.DETACH_REPLICA: (ReplicationArgs, replication.detach_replica),
            GuestVerb.AWAIT_POSITION: (AwaitPositionArgs, replication.await_position),
            GuestVerb.PROMOTE_REPLICA: (PromoteReplicaArgs, replication.promote_replica),
            GuestVerb.FENCE_SOURCE: (ReplicationArgs, replication.fence_source),
            GuestVerb.UNFENCE_SOURCE: (ReplicationArgs, replication.unfence_source),
        }

    # --- beats ------------------------------------------------------------------------------------------------

    async def _beat(self, client: Client, closed: asyncio.Event) -> None:
        """Beat on time and at each change, until the connection is closed for good."""
        subject = heartbeat_subject(self._config.instance_id)
        status = self._database.status
        while not closed.is_set():
            if client.is_connected:  # else old beats would pile up and all arrive late
                await client.publish(subject, msgspec.json.encode(self._heartbeat(status)))
            try:
                async with asyncio.timeout(self._config.beat_interval):
                    status = await self._statuses.get()
            except TimeoutError:
                status = self._database.status

    def _heartbeat(self, status: GuestStatus) -> Heartbeat:
        self._sequence += 1
        progress = self._database.progress
        return Heartbeat(
            instance_id=self._config.instance_id,
            boot=self._boot,
            sequence=self._sequence,
            sent_at=datetime.now(UTC),
            interval=self._config.beat_interval,
            status=status,
            role=progress.role if progress else None,
            position=progress.position if progress else None,
            datastore=self._config.datastore,
            datastore_version=self._version,
            volume=self._volume(),
            replication=self._replication.state(),
        )

    def _volume(self) -> VolumeUse | None:
        use = self._database.use
        if use is None:
            return None
        return VolumeUse(used=use.used, size=use.size, warning=use.warning, read_only=self._database.read_only)

    def _status_changed(self, status: GuestStatus) -> None:
        _log.info("status", status=status.value)
        self._loop.call_soon_threadsafe(self._statuses.put_nowait, status)

    # --- verbs ------------------------------------------------------------------------------------------------

    async def _take(self, message: Msg) -> None:
        task = asyncio.create_task(self._answer(message))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer(self, message: Msg) -> None:
        reply = await self.reply(message.subject.rsplit(".", 1)[-1], message.data)
        if not message.reply:
            return
        try:
            await message.respond(msgspec.json.encode(reply))
        except nats.errors.Error as error:
            _log.warning("reply_lost", subject=message.subject, reason=str(error) or repr(error))

    async def reply(self, name: str, body: bytes) -> GuestReply:
        """What a request is answered: at once, or when its verb is done, or `running` when that takes too long."""
        try:
            verb = GuestVerb(name)
            request = msgspec.json.decode(body, type=GuestRequest)
            if verb is GuestVerb.REPORT:
                return GuestReply(state=GuestState.DONE, facts=self._report())
            work = self._work(verb, request)
        except (ValueError, msgspec.MsgspecError) as error:
            return GuestReply(state=GuestState.FAILED, error=f"malformed_request: {error}")
        known = self._journal.verb(request.key)
        if known not in (None, verb.value):
            return GuestReply(state=GuestState.FAILED, error=f"key_reused: this key was used for {known}")
        answer = self._journal.answer(request.key)
        if answer is not None:
            return answer
        task = self._running.get(request.key)
        if task is None:
            task = asyncio.create_task(self._carry_out(request.key, verb, work))
            self._running[request.key] = task
            task.add_done_callback(lambda _: self._running.pop(request.key, None))
        await asyncio.wait({task}, timeout=min(max(request.wait, 0.0), _LONGEST_WAIT) * 0.9)
        if not task.done():
            return GuestReply(state=GuestState.RUNNING, progress=self._progress)
        return task.result()

    def _work(self, verb: GuestVerb, request: GuestRequest) -> Callable[[], dict[str, Any]]:
        """The verb with its arguments, checked. Raises `msgspec.ValidationError`, which names the field."""
        if verb is GuestVerb.STOP and msgspec.convert(request.args, StopArgs).release_volume:
            return lambda: self._stop_and_let_go(request.key)
        kind, work = self._verbs[verb]
        if kind is None:
            return work
        checked = msgspec.convert(request.args, kind)
        return lambda: work(checked)

    def _stop_and_let_go(self, key: str) -> dict[str, Any]:
        """The database is stopped, what a server made anew must find is on the volume, and nothing holds that."""
        self._database.stop()
        done = GuestReply(state=GuestState.DONE, facts={"volume_released": True})
        if self._config.kept is not None and self._database.mount.there:
            self._leave()
            # On the server made anew this is long done, whenever somebody asks for it once more.
            with Journal(self._config.kept) as copy:
                copy.end(key, GuestVerb.STOP.value, done)
        self._database.mount.let_go()
        return done.facts

    async def _carry_out(self, key: str, verb: GuestVerb, work: Callable[[], dict[str, Any]]) -> GuestReply:
        async with self._turn:
            self._progress = verb.value
            _log.info("verb_begun", verb=verb.value, key=key)
            try:
                reply = await self._in_thread(self._recorded, key, verb, work)
            finally:
                self._progress = None
            _log.info("verb_ended", verb=verb.value, key=key, state=reply.state.value, error=reply.error)
            return reply

    def _recorded(self, key: str, verb: GuestVerb, work: Callable[[], dict[str, Any]]) -> GuestReply:
        try:
            self._journal.begin(key, verb.value)
            try:
                reply = GuestReply(state=GuestState.DONE, facts=work())
            except DatastoreError as error:
                reply = GuestReply(state=GuestState.FAILED, error=str(error), transient=error.transient)
            self._journal.end(key, verb.value, reply)
            self._leave()
        except Exception as error:  # noqa: BLE001 -- the caller must hear of any failure; this is the edge
            _log.exception("verb_broke", verb=verb.value, key=key)
            return GuestReply(
                state=GuestState.FAILED, error=f"agent_error: {type(error).__name__}: {error}", transient=True
            )
        return reply

    def _leave(self) -> None:
        """A server that is lost between two verbs is made anew with what the last one left."""
        if self._config.kept is None or not self._database.mount.there:
            return
        try:
            leave(self._config.directory, self._config.kept)
        except OSError as error:  # the volume may be full, which is no reason to fail a verb that is done
            _log.warning("nothing_left_on_volume", reason=str(error))

    def _report(self) -> dict[str, Any]:
        use, progress, replication = self._volume(), self._database.progress, self._replication.state()
        return {
            "status": self._database.status.value,
            "role": progress.role if progress else None,
            "position": progress.position if progress else None,
            "replication": msgspec.to_builtins(replication) if replication else None,
            "port": self._database.port,
            "volume": msgspec.to_builtins(use) if use else None,
            "datastore_version": self._version,
            "boot": self._boot,
        }

    # --- supervision ------------------------------------------------------------------------------------------

    async def _supervise(self) -> None:
        while True:
            async with self._turn:
                await self._tried("absence_not_noted", self._replication.settle_absence)
                await self._tried("supervision_failed", self._database.look)
                await self._tried("replication_failed", self._replication.look)
            await asyncio.sleep(_LOOK_EVERY)

    async def _stay_present(self) -> None:
        while True:
            await asyncio.sleep(_STAMP_EVERY)
            await self._be_present()

    async def _be_present(self) -> None:
        """A gap is looked for without waiting for anybody; acting on it takes its turn."""
        gap = self._presence.renew()
        if gap > _STAMP_EVERY * 2:
            async with self._turn:
                await self._tried("absence_not_noted", lambda: self._replication.note_absence(gap))

    async def _watch_volume(self) -> None:
        while True:
            if self._desired.now.volume and self._database.mount.there:
                await self._measure()
            await asyncio.sleep(_MEASURE_EVERY)

    async def _measure(self) -> None:
        """Measuring reads the volume alone, so it waits for nobody; acting on it takes its turn."""
        found: list[Use] = []
        await self._tried("volume_not_measured", lambda: found.append(self._database.measure()))
        async with self._turn:
            for use in found:
                await self._tried("volume_not_guarded", lambda use=use: self._database.watch_volume(use))  # type: ignore[misc]

    async def _tried(self, event: str, work: Callable[[], None]) -> None:
        """A step of supervision that fails is said and taken again; it never ends the agent."""
        try:
            await self._in_thread(work)
        except Exception as error:  # noqa: BLE001 -- whatever it is, the next look may do better
            _log.warning(event, reason=str(error), exc_info=not isinstance(error, DatastoreError))

    async def _in_thread(self, work: Callable[..., _T], *args: Any) -> _T:
        return await self._loop.run_in_executor(self._threads, work, *args)
