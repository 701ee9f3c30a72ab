"""A real `holdfast up` of the tests' own: started, killed, started again; nothing of it is left at the end."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nats.errors
import psutil
from nats.aio.client import Client

from engine.broker import BrokerSettings, connect
from engine.credentials import inbox_prefix
from tests.support.publisher import Publisher

HOLDFAST = Path(sys.executable).parent / "holdfast"
PROJECT = "acme"


class Installation:
    """One state directory and the processes that belong to it."""

    def __init__(self, directory: Path) -> None:
        self.state = directory / "state"
        self.log = directory / "up.log"
        self.servers: set[str] = set()
        self._process: subprocess.Popen[bytes] | None = None

    # --- processes ------------------------------------------------------------------------------------------------

    def start(self, within: float = 90, *, arguments: Sequence[str] = (), directory: Path | None = None) -> None:
        """Start it, with more arguments and in the directory if given, and wait until it serves."""
        command = [str(HOLDFAST), "up", "--state", str(self.state), "--port", "0", *arguments]
        offset = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, cwd=directory)
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            said = self.log.read_bytes()[offset:].decode(errors="replace")
            if "inbox_reading" in said and "projector_started" in said:
                return
            if self._process.poll() is not None:
                raise RuntimeError(f"holdfast up ended with {self._process.returncode}:\n{said}")
            time.sleep(0.02)
        raise TimeoutError(f"holdfast up did not serve within {within:.0f} s:\n{self.said()}")

    def kill(self) -> None:
        """kill -9 of the task manager alone: the broker, the agents and the databases go on."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(30)

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(60)

    def said(self) -> str:
        """The end of the log."""
        return self.log.read_text(errors="replace")[-6000:]

    def processes(self) -> list[psutil.Process]:
        """Every process that belongs to it: its own, the broker, and all of any server it ever had."""
        self.servers.update(path.name for path in self.state.glob("cloud/hosts/*/servers/*"))
        found = []
        for process in psutil.process_iter():
            try:
                if (
                    str(self.state) in " ".join(process.cmdline())
                    or process.environ().get("HOLDFAST_SERVER") in self.servers
                ):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return found

    def clean_up(self) -> None:
        """End every process, unmount every volume, remove every file."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(30)
        deadline = time.monotonic() + 20
        while (left := self.processes()) and time.monotonic() < deadline:
            for process in left:
                try:
                    # PostgreSQL's shared memory goes when its main process may end it, and stays when that is killed.
                    process.send_signal(signal.SIGQUIT if process.name() == "postgres" else signal.SIGKILL)
                except psutil.NoSuchProcess:
                    continue
            psutil.wait_procs(left, timeout=2)
        for line in Path("/proc/mounts").read_text().splitlines():
            mounted = line.split()[1]
            if mounted.startswith(str(self.state)):
                subprocess.run(["umount", "-l", mounted], check=True, timeout=30)
        shutil.rmtree(self.state.parent, ignore_errors=True)

    # --- talking to it --------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The embedded broker's URL."""
        return f"nats://127.0.0.1:{(self.state / 'broker' / 'port').read_text().strip()}"

    async def connect(self, user: str = "publisher") -> Client:
        """A connection as one of the broker's users."""
        settings = BrokerSettings(url=self.url, seed_file=self.state / "credentials" / f"{user}.nk")
        return await connect(settings, name=f"test-{user}", inbox_prefix=inbox_prefix(user))

    def holdfast(self, *arguments: str, within: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the command line against it."""
        return subprocess.run(
            [HOLDFAST, "--state", str(self.state), *arguments],
            capture_output=True,
            text=True,
            timeout=within,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "HOLDFAST_PROJECT": PROJECT, **environment},
        )


class Tenant(Publisher):
    """A publisher that also asks."""

    async def query(self, what: str, **body: Any) -> dict[str, Any]:
        """Ask a read model; asked again while nobody answers, as after a kill."""
        deadline = time.monotonic() + 60
        while True:
            try:
                reply = await self.client.request(
                    f"holdfast.v1.qry.{self.project}.{what}", json.dumps(body).encode(), timeout=20
                )
            except nats.errors.Error:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.1)
            else:
                answer: dict[str, Any] = json.loads(reply.data)
                return answer

    async def secret(self, value: str) -> str:
        """Keep a secret; its reference."""
        return str((await self.query("secrets.put", secret=value))["secret_ref"])

    async def outcome(self, command_id: str, within: float = 120) -> dict[str, Any]:
        """The command's outcome, waited for."""
        deadline = time.monotonic() + within
        while True:
            answer = await self.query("commands.get", command_id=command_id, wait=10, **{"for": "outcome"})
            if answer.get("outcome") not in (None, "running") or answer.get("accepted") is False:
                return answer
            if time.monotonic() > deadline:
                raise TimeoutError(f"command {command_id}: {answer}")


@contextmanager
def installation() -> Iterator[Installation]:
    """An installation that is not started yet, under a directory that guests may pass through."""
    directory = Path(tempfile.mkdtemp(prefix="holdfast-"))
    directory.chmod(0o755)
    made = Installation(directory)
    try:
        yield made
    finally:
        made.clean_up()
