"""Database processes: started so that they outlive the agent, and found again by their configuration file.

Finding needs no process file, so no death of the agent between start and note loses one. It does not keep two agents
from starting the same database: the agent's lock file does.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import structlog

from engine.guest.datastores.base import DatastoreError, environment
from engine.guest.desired import private_opener

_log = structlog.get_logger()
_POLL = 0.02


class DatabaseProcess:
    """A running database's main process: the leader of its own session, so its children are told from it."""

    def __init__(self, process: psutil.Process, child: subprocess.Popen[bytes] | None = None) -> None:
        self._process = process
        self._child = child
        self.pid = process.pid
        self.started = process.create_time()

    def alive(self) -> bool:
        """Whether it runs. A process that ended is reaped if it is ours."""
        if self._child is not None:
            return self._child.poll() is None
        with contextlib.suppress(psutil.NoSuchProcess):
            # A zombie is a process whose parent (a dead agent's heir) has not looked yet.
            return self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE
        return False

    def end(self, signals: tuple[tuple[signal.Signals, float], ...]) -> None:
        """End it, by ever harder signals, each with its time in seconds. Raises `DatastoreError` if it lives on."""
        for number, seconds in signals:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._process.send_signal(number)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                if not self.alive():
                    return
                time.sleep(_POLL)
            _log.warning("database_ignores_signal", pid=self.pid, signal=number.name, seconds=seconds)
        raise DatastoreError(
            "stop_failed", f"database process {self.pid} does not end, not even killed", transient=True
        )


def start(command: list[str], *, cwd: Path, log: Path) -> DatabaseProcess:
    """Run a database in a session of its own, its words going to the log."""
    with open(log, "ab", opener=private_opener) as output:
        child = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    return DatabaseProcess(psutil.Process(child.pid), child)


def find(configuration: Path) -> DatabaseProcess | None:
    """The database that was started with this configuration file, if it runs."""
    for process in _naming(str(configuration)):
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(process.pid) == process.pid and process.status() != psutil.STATUS_ZOMBIE:
                return DatabaseProcess(process)
    return None


def end_leftovers(path: Path) -> None:
    """Kill what still works on this path and leads no session: an installation or a child whose parent died."""
    killed = []
    for process in _naming(str(path)):
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(process.pid) != process.pid:
                _log.warning("leftover_process_killed", pid=process.pid, program=process.name())
                process.kill()
                killed.append(process)
    psutil.wait_procs(killed, timeout=5.0)


def _naming(path: str) -> Iterator[psutil.Process]:
    """This user's processes with an argument that is the path, or ends in `=` and the path."""
    user, me = os.geteuid(), os.getpid()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.pid == me or process.uids().effective != user:
                continue
            if any(word == path or word.endswith("=" + path) for word in process.cmdline()):
                yield process


def last_words(log: Path, lines: int = 12, size: int = 4096) -> str:
    """The end of a database's log, for an error message."""
    if not log.exists():
        return "(no log)"
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - size))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])


def trim(log: Path, limit: int = 32 << 20) -> None:
    """Set aside a log that has grown too long, in place of the one before; its process goes on writing to it."""
    if not log.exists() or log.stat().st_size <= limit:
        return
    shutil.copyfile(log, log.with_suffix(".old.log"))
    os.truncate(log, 0)
