"""What became of each requested key: once recorded, an answer is given again for ever, whoever dies.

It knows keys, verbs and answers, never arguments; a key that has begun and has no answer is to be carried out again.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import structlog

from engine.guest.desired import private_opener, sync_directory
from engine.messages import GuestReply, GuestState

_log = structlog.get_logger()


class _Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    key: str
    verb: str
    reply: GuestReply | None = None


class Journal:
    """An append-only file of JSON lines. Not for use by two threads at once."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "journal.jsonl"
        self._entries: dict[str, _Entry] = {}
        fresh = not self._path.exists()
        self._file = open(self._path, "ab", buffering=0, opener=private_opener)  # noqa: SIM115 -- closed by `__exit__`
        if fresh:
            sync_directory(directory)
        else:
            self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def verb(self, key: str) -> str | None:
        """The verb under which this key was first seen."""
        entry = self._entries.get(key)
        return entry.verb if entry else None

    def answer(self, key: str) -> GuestReply | None:
        """The recorded answer of this key, if it is one that holds: a transient failure is not."""
        entry = self._entries.get(key)
        if entry is None or entry.reply is None or entry.reply.transient:
            return None
        return entry.reply

    def begin(self, key: str, verb: str) -> None:
        """The verb is about to be carried out."""
        self._append(_Entry(key=key, verb=verb))

    def end(self, key: str, verb: str, reply: GuestReply) -> None:
        """The verb has come to this answer; durable when this returns."""
        if reply.state is GuestState.RUNNING:
            raise ValueError("an answer that is no end cannot be recorded")
        self._append(_Entry(key=key, verb=verb, reply=reply))

    def _append(self, entry: _Entry) -> None:
        self._file.write(msgspec.json.encode(entry) + b"\n")
        os.fsync(self._file.fileno())
        self._entries[entry.key] = entry

    def _read(self) -> None:
        content = self._path.read_bytes()
        for line in content.splitlines():
            try:
                entry = msgspec.json.decode(line, type=_Entry)
            except msgspec.DecodeError:
                # A line torn by a power cut was never answered from, so its key is carried out again.
                _log.warning("journal_line_unreadable", file=str(self._path), size=len(line))
                continue
            self._entries[entry.key] = entry
        if content and not content.endswith(b"\n"):
            self._file.write(b"\n")
