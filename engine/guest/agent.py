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
from engine.guest.mount import Mount
from engine.guest.volume import Use
from engine.messages import (
    GrowArgs,
    GuestReply,
    GuestRequest,
    GuestState,
    GuestStatus,
    GuestVerb,
    Heartbeat,
    PrepareArgs,
    RebuildArgs,
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
        place = Place(address=config.address, directory=config.directory, volume=config.volume)
        self._datastore = open_datastore(config.datastore, config.datastore_version, place)
        self._desired = DesiredFile(config.directory)
        mount = Mount(volume=config.volume, requests=config.requests)
        self._database = Database(self._datastore, self._desired, mount, config.gibibyte, self._status_changed)
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
        tasks: list[asyncio.Task[Any]] = [
            asyncio.create_task(work, name=name)
            for name, work in (
                ("broker", stay_connected(self._config, credentials, self._take, self._beat)),
                ("supervision", self._supervise()),
                ("volume", self._watch_volume()),
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
        return Heartbeat(
            instance_id=self._config.instance_id,
            boot=self._boot,
            sequence=self._sequence,
            sent_at=datetime.now(UTC),
            interval=self._config.beat_interval,
            status=status,
            role=self._database.role,
            position=self._database.position,
            datastore=self._config.datastore,
            datastore_version=self._version,
            volume=self._volume(),
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
        database, args = self._database, request.args
        if verb is GuestVerb.PREPARE:
            prepare = msgspec.convert(args, PrepareArgs)
            return lambda: database.prepare(prepare)
        if verb is GuestVerb.REBUILD:
            rebuild = msgspec.convert(args, RebuildArgs)
            return lambda: database.rebuild(rebuild)
        if verb is GuestVerb.START:
            start = msgspec.convert(args, StartArgs)
            return lambda: database.start(start)
        if verb is GuestVerb.GROW:
            grow = msgspec.convert(args, GrowArgs)
            return lambda: database.grow(grow)
        if verb is GuestVerb.STOP and msgspec.convert(args, StopArgs).release_volume:
            return lambda: self._stop_and_let_go(request.key)
        return database.stop if verb is GuestVerb.STOP else database.restart

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
        use = self._volume()
        return {
            "status": self._database.status.value,
            "role": self._database.role,
            "position": self._database.position,
            "port": self._database.port,
            "volume": msgspec.to_builtins(use) if use else None,
            "datastore_version": self._version,
            "boot": self._boot,
        }

    # --- supervision ------------------------------------------------------------------------------------------

    async def _supervise(self) -> None:
        while True:
            async with self._turn:
                await self._tried("supervision_failed", self._database.look)
            await asyncio.sleep(_LOOK_EVERY)

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
