"""The processes of servers: started apart from the engine, told from all others, and ended for certain.

A process belongs to a server if its environment says so, if it works in the server's directories, or if it descends
from one that does: databases that write their title over their environment keep their working directory.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from engine.clouds.local.records import Process
from engine.clouds.port import TransientError

MARK = "HOLDFAST_SERVER"
_LOG_LIMIT = 10 * 1024 * 1024
_GONE = (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess)
_CLOCK = 2.0  # seconds by which the time of creation may seem to move when the system's clock is set

# Agents that this process started; kept so that the system can be asked for the dead, whichever cloud started them.
_children: list[subprocess.Popen[bytes]] = []


def spawn(argv: Sequence[str], server_id: str, log: Path) -> tuple[int, float]:
    """Start an agent in a session of its own: number and time of creation. It inherits nothing and outlives us."""
    reap()
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", MARK: server_id}
    # The directory belongs to the guest's user, who could have put a link there.
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600), "ab") as output:
        if os.fstat(output.fileno()).st_size > _LOG_LIMIT:
            output.truncate(0)
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd="/",
            start_new_session=True,
        )
    _children.append(child)
    try:
        return child.pid, psutil.Process(child.pid).create_time()
    except _GONE:
        return child.pid, 0.0  # ended already; no process is of that time


def reap() -> None:
    """Let the system forget agents of this process that have ended."""
    _children[:] = [child for child in _children if child.poll() is None]


def alive(process: Process | None) -> bool:
    """Whether this very process runs."""
    if process is None:
        return False
    try:
        found = psutil.Process(process.pid)
        return abs(found.create_time() - process.created) < _CLOCK and _runs(found)
    except _GONE:
        return False


def agents(server_id: str, config: Path) -> list[psutil.Process]:
    """Every agent that was started with this config."""
    found = []
    for process in psutil.process_iter():
        with suppress(*_GONE):
            if str(config) in process.cmdline() and _is_marked(process, server_id):
                found.append(process)
    return found


def belonging(server_id: str, directories: Sequence[Path]) -> list[psutil.Process]:
    """Every process of a server."""
    places = [os.path.realpath(directory) for directory in directories]
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        with suppress(*_GONE):
            if _is_marked(process, server_id) or _works_in(process, places):
                found.add(process)
                found.update(process.children(recursive=True))
    return [process for process in found if _runs(process) and process.pid != os.getpid()]


def end(server_id: str, directories: Sequence[Path], *, grace: float, timeout: float = 30.0) -> None:
    """No process of the server is left. Asks first, if there is grace; then kills. Raises `TransientError`."""
    start = time.monotonic()
    asked: set[psutil.Process] = set()
    while running := belonging(server_id, directories):
        passed = time.monotonic() - start
        if passed > grace + timeout:
            left = ", ".join(str(process.pid) for process in running)
            raise TransientError("timeout", f"processes {left} of server {server_id} do not end")
        for process in running:
            with suppress(*_GONE):
                if passed >= grace:
                    process.kill()
                elif process not in asked:
                    process.terminate()
        asked.update(running)
        psutil.wait_procs(running, timeout=0.1)
        reap()


def kill(process: psutil.Process) -> None:
    """End this one process at once."""
    with suppress(*_GONE, psutil.TimeoutExpired):
        process.kill()
        process.wait(timeout=10)
    reap()


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except _GONE:
        return False


def _is_marked(process: psutil.Process, server_id: str) -> bool:
    try:
        return process.environ().get(MARK) == server_id
    except (psutil.AccessDenied, OSError):
        return False


def _works_in(process: psutil.Process, places: Sequence[str]) -> bool:
    """A person's shell may stand in these directories too: a process with a terminal is not a server's."""
    place = process.cwd()
    return any(place == p or place.startswith(f"{p}/") for p in places) and process.terminal() is None
