"""What the local cloud remembers, as files that are whole or absent whatever dies while they are written.

A record says what its resource is meant to be, never whether its processes run; that is asked of the system.
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, TypeVar
from uuid import UUID

import msgspec


class Port(msgspec.Struct, frozen=True, kw_only=True):
    """An address of its own for one server."""

    id: str
    name: str
    project: str
    address: str


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    """A directory of limited size (GiB). `mounted`: a file system of its own limits it; else its guest agent does."""

    id: str
    name: str
    project: str
    size: int
    mounted: bool
    owner: tuple[int, int] | None


class Power(StrEnum):
    """What a server is meant to be."""

    ACTIVE = "ACTIVE"
    SHUTOFF = "SHUTOFF"
    DELETED = "DELETED"  # its removal has begun and is finished by whoever asks for it again


class Pending(msgspec.Struct, frozen=True, kw_only=True):
    """A resize or migration that awaits confirmation: what the server was before."""

    flavor_id: str
    host: str


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """A directory with a guest agent. Its host is where the directory lies, so that a move is one step.

    `restart`: its processes end before it runs again. `remake`: what lies on it goes before that. `rebooted_under`,
    `rebuilt_under`: the key of the last reboot, the last rebuild asked for.
    """

    id: str
    name: str
    project: str
    instance_id: UUID
    flavor_id: str
    port_id: str
    address: str
    datastore: str
    datastore_version: str
    volume_id: str | None = None
    power: Power = Power.ACTIVE
    restart: Literal["soft", "hard"] | None = None
    pending: Pending | None = None
    rebooted_under: str | None = None
    remake: bool = False
    rebuilt_under: str | None = None


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """A guest agent's process. The time of creation tells it from a later process of the same number.

    `nats_url` is where it was told that the broker is.
    """

    pid: int
    created: float
    nats_url: str


Record = TypeVar("Record", Port, Volume, Server, Process)

# Made here, where there is one thread: msgspec looks into a type when it first decodes one, and two threads that do so
# at once can crash the interpreter.
_DECODERS: dict[type[msgspec.Struct], msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind) for kind in (Port, Volume, Server, Process)
}


def read(path: Path, kind: type[Record]) -> Record | None:
    """The record at this path, or None."""
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    record: Record = _DECODERS[kind].decode(content)
    return record


def write(path: Path, record: msgspec.Struct) -> None:
    """Put the record at this path, durably, in one step."""
    write_bytes(path, msgspec.json.format(msgspec.json.encode(record)), mode=0o600)


def write_bytes(path: Path, content: bytes, *, mode: int) -> None:
    """Put a file at this path, durably, in one step. One writer at a time, which the locks see to."""
    fresh = _unfinished(path)
    fresh.unlink(missing_ok=True)  # left by a writer that was killed
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    sync_directory(path.parent)


def remove(path: Path) -> None:
    """Leave nothing of the record at this path."""
    path.unlink(missing_ok=True)
    _unfinished(path).unlink(missing_ok=True)
    sync_directory(path.parent)


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
