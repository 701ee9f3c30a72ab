"""Making a data directory: whole and on disk, or made anew from nothing by the next attempt.

It knows no database's way of doing so, and must not be asked again once a tenant's data lies there.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from engine.guest import process
from engine.guest.datastores.base import DatastoreError, Place
from engine.guest.desired import sync_directory


def install(place: Place, make: Callable[[Path], None]) -> None:
    """Make the data directory in place of what an attempt cut off has left; not on disk before `sync_tree`."""
    volume = place.volume
    for left in (place.data, *volume.glob("installing-*")):
        process.end_leftovers(left)
        shutil.rmtree(left, ignore_errors=True)
    fresh = volume / f"installing-{secrets.token_hex(4)}"
    make(fresh)
    fresh.rename(place.data)


def sync_tree(directory: Path) -> None:
    """Put every file under a directory on disk. Many at once, for the file system then commits them together."""
    found = list(os.walk(directory))
    files = [Path(folder) / name for folder, _, names in found for name in names]
    folders = [Path(folder) for folder, _, _ in found]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(_sync_file, files))
        list(pool.map(sync_directory, filter(Path.is_dir, folders)))


def _sync_file(name: Path) -> None:
    if not name.is_file():
        return
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return  # the database is at work already
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def choose_port(address: str, preferred: int) -> int:
    """The preferred TCP port, or any free one where that is taken on this address. Raises `DatastoreError`."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for port in (preferred, 0):
        with socket.socket(family) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((address, port))
            except OSError as error:
                reason = error
                continue
            return int(trial.getsockname()[1])
    raise DatastoreError("address_unusable", f"cannot listen on {address}: {reason}", transient=True)
