"""A server with a guest agent, as a cloud makes one: two directories, an address, and the agent as a real process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec
import nats
import psutil
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NoRespondersError

from engine.guest import config as configuration
from engine.messages import GuestReply, GuestRequest, GuestState, Heartbeat, guest_subject, heartbeat_subject
from tests.guest.tenants import MariaDBTenant, PostgreSQLTenant, RedisTenant, Tenant

PROJECT = Path(__file__).parents[2]
NOBODY = "65534:65534"
PASSWORD, ROOT_PASSWORD = "a-user's pass:word", 'the root"s pass'
PATIENCE = 120.0  # seconds; nothing here takes so long unless the machine is very busy


class GuestServer:
    """One server. `close` leaves no process and no file behind."""

    def __init__(self, nats_url: str, datastore: str, version: str, **settings: Any) -> None:
        self.id: UUID = uuid4()
        self.mark = f"test-{self.id}"
        self.datastore = datastore
        # Not below pytest's own directory, which is closed to other users; short, for there are sockets in it.
        self.root = Path(tempfile.mkdtemp(prefix="holdfast-guest-"))
        self.root.chmod(0o711)
        self.volume, self.directory = self.root / "volume", self.root / "agent"
        for folder in (self.volume, self.directory):
            folder.mkdir()
        self.config = configuration.AgentConfig(
            instance_id=self.id,
            nats_url=nats_url,
            seed_file=settings.pop("seed_file", None),
            datastore=datastore,
            datastore_version=version,
            address=settings.pop("address", None) or _address(),
            volume=self.volume,
            directory=self.directory,
            beat_interval=settings.pop("beat_interval", 0.5),
            **settings,
        )
        configuration.write(self.root / "agent.json", self.config)
        self.agent: subprocess.Popen[bytes] | None = None
        self.beats: list[Heartbeat] = []
        self.client: Client | None = None

    async def open(self) -> None:
        """Listen to the agent's beats, and start it."""
        await self.listen()
        self.start_agent()

    async def listen(self) -> None:
        """Connect to the broker."""
        self.client = await nats.connect(self.config.nats_url, reconnect_time_wait=0.1, max_reconnect_attempts=-1)
        await self.client.subscribe(heartbeat_subject(self.id), cb=self._hear)

    async def _hear(self, message: Msg) -> None:
        self.beats.append(msgspec.json.decode(message.data, type=Heartbeat))

    def start_agent(self) -> None:
        """Start the agent; under root as nobody, for databases refuse root."""
        argv = [sys.executable, "-m", "engine.guest", str(self.root / "agent.json")]
        if os.geteuid() == 0:
            argv += ["--run-as", NOBODY]
        with (self.root / "agent.log").open("ab") as log:
            self.agent = subprocess.Popen(
                argv, cwd=PROJECT, env={**os.environ, "HOLDFAST_SERVER": self.mark}, stdout=log, stderr=log
            )

    async def renew(self) -> None:
        """As a cloud makes a server anew: all that lay on it is gone but its volume, and another agent is there."""
        self.kill_agent()
        before = self.directory.stat()
        shutil.rmtree(self.directory)
        self.directory.mkdir(mode=0o700)
        os.chown(self.directory, before.st_uid, before.st_gid)
        self.start_agent()
        await self.report()

    def kill_agent(self) -> None:
        """As the machine's memory killer would."""
        assert self.agent is not None
        self.agent.kill()
        self.agent.wait()

    async def post(self, verb: str, key: str, wait: float = 0.0, **args: Any) -> GuestReply:
        """One request, whatever its answer; tried until an agent is there."""
        assert self.client is not None
        request = msgspec.json.encode(GuestRequest(key=key, args=args, wait=wait))
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                answer = await self.client.request(guest_subject(self.id, verb), request, timeout=wait + 10)
                return msgspec.json.decode(answer.data, type=GuestReply)
            except (NoRespondersError, TimeoutError):
                assert time.monotonic() < deadline, self.log()
                await asyncio.sleep(0.02)

    async def ask(self, verb: str, key: str, **args: Any) -> GuestReply:
        """The request's final answer, asked for as the engine does: again and again under one key."""
        deadline = time.monotonic() + PATIENCE
        while (reply := await self.post(verb, key, wait=5.0, **args)).state is GuestState.RUNNING:
            assert time.monotonic() < deadline, self.log()
        return reply

    async def do(self, verb: str, key: str, **args: Any) -> dict[str, Any]:
        """The facts of a verb that must be done."""
        reply = await self.ask(verb, key, **args)
        assert reply.state is GuestState.DONE, (reply, self.log())
        return reply.facts

    async def prepare(self, key: str = "prepare-1", **changed: Any) -> int:
        """A database with two users of two databases and one of none; its port."""
        facts = await self.do("prepare", key, **{**self.prepare_args(), **changed})
        return int(facts["port"])

    def prepare_args(self) -> dict[str, Any]:
        """What the contract's tests prepare."""
        shop, s_op = ([], []) if self.datastore == "redis" else (["shop"], ["s_op"])
        return {
            "ram": 256,
            "volume_size": 1,
            "databases": [{"name": name} for name in shop + s_op],
            "users": [
                {"name": "app", "password": PASSWORD, "host": "%", "databases": shop},
                {"name": "other", "password": PASSWORD + "2", "host": "%", "databases": s_op},
                {"name": "loner", "password": PASSWORD + "3", "host": "%", "databases": []},
            ],
            "root_password": ROOT_PASSWORD,
            "overrides": {},
        }

    def tenant(self, port: int, user: str = "app", password: str = PASSWORD, database: str = "shop") -> Tenant:
        """An account as its owner uses it."""
        if self.datastore == "redis":
            return RedisTenant(self.config.address, port, user, password)
        kind = PostgreSQLTenant if self.datastore == "postgresql" else MariaDBTenant
        return kind(self.config.address, port, user, password, database)

    async def report(self) -> dict[str, Any]:
        """What the agent says of its database now."""
        return (await self.post("report", "report")).facts

    async def until_status(self, status: str) -> None:
        """Wait until the agent reports this."""
        await self.until(f"status {status}", lambda report: bool(report["status"] == status))

    async def until(self, what: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait until a report is as wanted."""
        deadline = time.monotonic() + PATIENCE
        while not holds(report := await self.report()):
            assert time.monotonic() < deadline, f"never came to pass: {what}; last {report}\n{self.log()}"
            await asyncio.sleep(0.05)
        return report

    def database(self) -> psutil.Process:
        """The database's main process: marked, leading its own session, no agent."""
        assert self.agent is not None
        found = [p for p in self.processes() if p.pid != self.agent.pid and os.getsid(p.pid) == p.pid]
        assert len(found) == 1, [p.cmdline() for p in found]
        return found[0]

    def processes(self) -> list[psutil.Process]:
        """All that runs and bears the server's mark."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                running = process.status() != psutil.STATUS_ZOMBIE
                if running and process.environ().get("HOLDFAST_SERVER") == self.mark:
                    found.append(process)
        return found

    def log(self) -> str:
        """The last of what agent and database said."""
        said = ""
        for file in (self.root / "agent.log", self.directory / "database.log"):
            if file.exists():
                said += f"--- {file.name}\n" + "\n".join(file.read_text(errors="replace").splitlines()[-30:]) + "\n"
        return said

    def journal(self) -> list[dict[str, Any]]:
        """The agent's journal."""
        return [json.loads(line) for line in (self.directory / "journal.jsonl").read_text().splitlines()]

    async def close(self) -> None:
        """End everything at once, in a way that gives shared memory back."""
        if self.agent is not None:
            self.agent.kill()
            self.agent.wait()
        if self.client is not None:
            await self.client.close()
        left = self.processes()
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGQUIT if process.name() == "postgres" else signal.SIGKILL)
        _, stubborn = psutil.wait_procs(left, timeout=20)
        for process in stubborn:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(stubborn, timeout=20)
        shutil.rmtree(self.root, ignore_errors=True)
        assert not self.root.exists(), list(self.root.rglob("*"))


def _address() -> str:
    """A loopback address that no other test is likely to have."""
    second, third, fourth = secrets.token_bytes(3)
    return f"127.{64 + second % 128}.{third}.{1 + fourth % 254}"
