"""A local cloud in a directory of its own with a stand-in for the guest agent, and a clean sweep of what it left.

The stand-in is a real process that does nothing; what a guest agent does is shown elsewhere.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil

from aggregates.catalogue import Datastore
from engine.clouds.local import LocalCloud
from engine.clouds.local.processes import MARK

DATASTORES = (Datastore(manager="postgresql", port=5432, versions=("16",), parameters=frozenset()),)
NATS_URL = "nats://127.0.0.1:4222"


class NoCredentials:
    """For a broker that asks for none."""

    def __init__(self) -> None:
        self.known: set[UUID] = set()

    async def ensure(self, instance_id: UUID) -> Path | None:
        """No seed is needed."""
        self.known.add(instance_id)
        return None

    async def revoke(self, instance_id: UUID) -> None:
        """Forget the guest."""
        self.known.discard(instance_id)


def idle(config: Path, _run_as: tuple[int, int] | None) -> Sequence[str]:
    """A program that does nothing, and bears the config in its arguments as an agent does."""
    return ["tail", "-f", str(config)]


def launch(program: str) -> Callable[[Path, tuple[int, int] | None], Sequence[str]]:
    """Start this Python program in place of the guest agent."""
    return lambda config, _run_as: [sys.executable, "-S", "-c", program, str(config)]


def local_cloud(directory: Path, **options: Any) -> LocalCloud:
    """A cloud in this directory."""
    settings: dict[str, Any] = {"nats_url": NATS_URL, "launcher": idle, "grace": 3.0, **options}
    return LocalCloud(directory, credentials=NoCredentials(), datastores=DATASTORES, **settings)


@contextmanager
def cloud_directory() -> Iterator[Path]:
    """A directory that any user can pass through; what runs in it or is mounted in it is ended with it."""
    directory = Path(tempfile.mkdtemp(prefix="holdfast-cloud-"))
    directory.chmod(0o711)
    try:
        yield directory
    finally:
        sweep(directory)


def sweep(directory: Path) -> None:
    """End, unmount and remove everything."""
    for process in processes_of(directory):
        with suppress(psutil.Error):
            process.kill()
    mounted = [
        part.mountpoint for part in psutil.disk_partitions(all=True) if part.mountpoint.startswith(str(directory))
    ]
    for point in reversed(mounted):
        subprocess.run(["umount", "-l", point], check=True)
    shutil.rmtree(directory, ignore_errors=True)


def processes_of(directory: Path) -> list[psutil.Process]:
    """Every process whose command line or working directory is in this directory."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            told = any(part.startswith(f"{directory}/") for part in process.cmdline())
            runs = process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE
            if runs and (told or process.cwd().startswith(f"{directory}/")):
                found.append(process)
    return found


def marked(server_id: str) -> list[psutil.Process]:
    """Every process whose environment names the server."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == server_id:
                found.append(process)
    return found


async def until(true: Callable[[], Any], what: str, timeout: float = 30.0) -> None:
    """Poll until it is true."""
    end = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < end, f"{what} did not come within {timeout} s"
        await asyncio.sleep(0.05)
