"""Giving up root: the agent takes what only root can read, hands over its directories, and becomes another user.

Python's own files may be closed to that user, so everything that is imported late elsewhere is imported here first.
"""

from __future__ import annotations

import concurrent.futures.thread
import encodings.idna
import importlib
import os
import pkgutil
from pathlib import Path
from types import ModuleType

import nats
import psycopg
import psycopg.types
import pymysql
import redis

from engine.guest.datastores import catalogue

# Packages that import parts of themselves when first needed.
_LATE: tuple[ModuleType, ...] = (nats, psycopg.types, pymysql, redis)
_NEEDED = (
    "nkeys",
    "nacl.signing",
    "stringprep",
    "asyncio.base_subprocess",
    "subprocess",
    "ssl",
    "traceback",
    "linecache",
)
_KNOWN = (concurrent.futures.thread, encodings.idna)
# Parts that need packages which are not installed, and that nobody asks for.
_OPTIONAL = ("psycopg.types.numpy", "psycopg.types.shapely")


class PrivilegeError(Exception):
    """The agent cannot become the user that it was told to run as."""


def parse(text: str) -> tuple[int, int]:
    """`uid:gid` as numbers. Raises `PrivilegeError`."""
    uid, _, gid = text.partition(":")
    if not (uid.isdigit() and gid.isdigit()):
        raise PrivilegeError(f"--run-as takes uid:gid as numbers, not {text!r}")
    return int(uid), int(gid)


def preload() -> None:
    """Import what is otherwise imported on first use."""
    catalogue.available()  # finds the programs, and remembers where they are
    for name in (*_NEEDED, *(module.__name__ for module in _KNOWN)):
        importlib.import_module(name)
    for package in _LATE:
        for found in pkgutil.walk_packages(package.__path__, package.__name__ + ".", onerror=lambda _: None):
            if found.name in _OPTIONAL or ".tests" in found.name or found.name.endswith("__main__"):
                continue
            try:
                importlib.import_module(found.name)
            except ImportError:
                continue  # a part for another package that is not here; nothing that the agent asks for


def become(uid: int, gid: int, directories: tuple[Path, ...]) -> None:
    """Hand over the directories and run as this user from now on. Nothing, unless root. Raises `PrivilegeError`."""
    if os.geteuid() != 0:
        if os.geteuid() != uid:
            raise PrivilegeError(f"only root can run the agent as {uid}:{gid}; this is user {os.geteuid()}")
        return
    preload()
    for directory in directories:
        _hand_over(directory, uid, gid)
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
    os.chdir("/")


def _hand_over(directory: Path, uid: int, gid: int) -> None:
    # Through a descriptor, so that a link put in the directory's place changes nothing elsewhere.
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        os.fchown(descriptor, uid, gid)
        os.fchmod(descriptor, 0o700)
    finally:
        os.close(descriptor)
