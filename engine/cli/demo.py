"""`holdfast demo`: the whole story on a real database, told with the program's own commands.

It works in a directory of its own, which it removes, and ends with a look for anything that is left: directories,
processes, ports. It fails, with the command that failed, when a step does not do what it says.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import psycopg
from rich.console import Console
from rich.panel import Panel

from engine.clouds.local.processes import MARK

console = Console(highlight=False)
NAME = "orders"
ROWS = 1000
READY = ("inbox_reading", "projector_started")


class DemoError(Exception):
    """A step did not do what it says."""


def run() -> bool:
    """Tell the story; whether every step did what it says."""
    began = time.monotonic()
    # Guests run as another user under root, so the directory can be passed through.
    directory = Path(tempfile.mkdtemp(prefix="holdfast-demo-"))
    directory.chmod(0o755)
    story = _Story(directory)
    try:
        story.tell()
    except (DemoError, OSError, psycopg.Error, subprocess.SubprocessError) as error:
        console.print(f"[bold red]The demo failed:[/] {error}")
        console.print(story.log())
        return False
    finally:
        story.clean_up()
    console.print(f"\n[bold green]Done in {time.monotonic() - began:.0f} s.[/] Next: docs/tutorial/first-database.md")
    return True


class _Story:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._state = directory / "state"
        self._log = directory / "up.log"
        self._up: subprocess.Popen[bytes] | None = None
        self._password = secrets.token_urlsafe(18)
        self._servers: set[str] = set()

    def tell(self) -> None:
        """All steps, in order."""
        self._say("Start everything on this machine: broker, worker, projector, a local cloud")
        self._start()
        self._say("Create a PostgreSQL: the command goes over NATS, each state of the instance owes one effect")
        self._holdfast("create", NAME, "--datastore", "postgresql", "--flavor", "small", "--volume", "1",
                       "--database", "shop", "--user", "app:shop", "--password-env", "DEMO_PASSWORD")  # fmt: skip
        instance = self._instance()
        self._servers.add(instance["server_id"])
        self._holdfast("show", NAME)
        self._say(f"Use it: SQL over TCP at {instance['address']}:{instance['port']}, as the tenant")
        self._sql("CREATE TABLE sale (id int PRIMARY KEY, at timestamptz DEFAULT now())")
        self._sql(f"INSERT INTO sale SELECT generate_series(1, {ROWS})")
        self._check_rows()
        self._say("Resize it: a larger volume, then more memory; the rows stay, the settings follow")
        self._holdfast("resize-volume", NAME, "2")
        before = self._sql("SHOW shared_buffers")
        self._holdfast("resize-flavor", NAME, "medium")
        console.print(f"   shared_buffers was {before}, is {self._sql('SHOW shared_buffers')}")
        self._check_rows()
        self._say("Kill the database (-9): the guest agent sees it and starts it again")
        self._kill_database(instance["server_id"])
        self._check_rows()
        self._say("Kill the task manager (-9) in the middle of a restart: the next one goes on where it was")
        self._holdfast("restart", NAME, "--no-wait")
        self._kill_task_manager()
        self._start()
        self._until(lambda: self._instance()["status"] == "ACTIVE", "the restart to end", 60)
        self._check_rows()
        self._say("Every event of its life, with who and why")
        self._holdfast("history", NAME)
        self._say("Delete it, and look for anything that is left")
        self._holdfast("delete", NAME)
        self._stop()
        self._check_nothing_left(instance)

    # --- steps ----------------------------------------------------------------------------------------------------

    def _say(self, sentence: str) -> None:
        console.print()
        console.print(Panel(sentence, border_style="cyan", expand=False))

    def _holdfast(self, *arguments: str) -> None:
        console.print(f"[bold]$ holdfast {' '.join(arguments)}[/]")
        done = subprocess.run(self._argv(*arguments), env=self._environment(), timeout=120, check=False)
        if done.returncode:
            raise DemoError(f"holdfast {' '.join(arguments)} ended with {done.returncode}")

    def _argv(self, *arguments: str) -> list[str]:
        return [str(Path(sys.executable).parent / "holdfast"), *arguments]

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "HOLDFAST_STATE": str(self._state), "DEMO_PASSWORD": self._password}

    def _start(self) -> None:
        console.print("[bold]$ holdfast up --port 0 &[/]")
        seen = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            self._up = subprocess.Popen(
                self._argv("up", "--port", "0"), env=self._environment(), stdout=log, stderr=log, start_new_session=True
            )
        up = self._up

        def ready() -> bool:
            if up.poll() is not None:
                raise DemoError(f"holdfast up ended with {up.returncode}")
            said = self._log.read_bytes()[seen:].decode(errors="replace")
            return all(sign in said for sign in READY)

        self._until(ready, "holdfast up to serve", 90)

    def _stop(self) -> None:
        if self._up is not None and self._up.poll() is None:
            self._up.send_signal(signal.SIGTERM)
            status = self._up.wait(60)
            if status:
                raise DemoError(f"holdfast up ended with {status} after SIGTERM")

    def _kill_task_manager(self) -> None:
        if self._up is not None:
            console.print(f"[bold]$ kill -9 {self._up.pid}[/]")
            self._up.kill()
            self._up.wait(30)

    def _kill_database(self, server_id: str) -> None:
        for process in _of_servers({server_id}):
            if process.name().startswith("postgres"):
                console.print(f"[bold]$ kill -9 {process.pid}[/]   [dim]{process.name()}[/]")
                process.kill()
                break

    def _instance(self) -> dict[str, Any]:
        done = subprocess.run(
            self._argv("show", NAME, "--json"),
            env=self._environment(),
            capture_output=True,
            timeout=60,
            check=False,
        )
        if done.returncode:
            raise DemoError(f"holdfast show {NAME} ended with {done.returncode}: {done.stderr.decode()}")
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def _sql(self, statement: str) -> Any:
        """Run it as the tenant; a database that is just coming back is tried again."""
        instance = self._instance()
        deadline = time.monotonic() + 30
        while True:
            try:
                with psycopg.connect(
                    host=instance["address"],
                    port=instance["port"],
                    user="app",
                    password=self._password,
                    dbname="shop",
                    connect_timeout=5,
                ) as connection:
                    answer = connection.execute(statement)
                    row = answer.fetchone() if answer.description else None
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
            else:
                console.print(f"[bold]shop=> {statement}[/]" + (f"   [green]{row[0]}[/]" if row else ""))
                return row[0] if row else None

    def _check_rows(self) -> None:
        found = self._sql("SELECT count(*) FROM sale")
        if found != ROWS:
            raise DemoError(f"{found} rows are there, not {ROWS}")

    def _until(self, true: Callable[[], bool], what: str, within: float) -> None:
        deadline = time.monotonic() + within
        while not true():
            if time.monotonic() > deadline:
                raise DemoError(f"waited {within:.0f} s for {what}")
            time.sleep(0.1)

    def _check_nothing_left(self, instance: dict[str, Any]) -> None:
        cloud = self._state / "cloud"
        directories = [
            path
            for pattern in ("hosts/*/servers/*", "volumes/*", "ports/*", "claims/*/*")
            for path in cloud.glob(pattern)
        ]
        processes = _of_servers(self._servers)
        with socket.socket() as probe:
            probe.settimeout(2)
            listening = probe.connect_ex((instance["address"], instance["port"])) == 0
        for what, left in (
            ("servers, volumes, ports", [str(path.relative_to(cloud)) for path in directories]),
            ("processes", [str(process) for process in processes]),
            ("listening ports", [f"{instance['address']}:{instance['port']}"] if listening else []),
        ):
            console.print(f"   {what} left: {', '.join(left) or 'none'}")
            if left:
                raise DemoError(f"{what} are left after the delete")

    # --- afterwards -----------------------------------------------------------------------------------------------

    def log(self) -> str:
        """The end of what `holdfast up` said."""
        return self._log.read_text(errors="replace")[-3000:] if self._log.exists() else ""

    def clean_up(self) -> None:
        """End what still runs, also after a failure, and remove the directory."""
        if self._up is not None and self._up.poll() is None:
            self._up.terminate()
            try:
                self._up.wait(30)
            except subprocess.TimeoutExpired:
                self._up.kill()
        self._servers.update(path.name for path in self._state.glob("cloud/hosts/*/servers/*"))
        left = _of_servers(self._servers)
        for process in left:
            process.kill()
        psutil.wait_procs(left, timeout=10)
        shutil.rmtree(self._directory, ignore_errors=True)


def _of_servers(servers: set[str]) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) in servers:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found
