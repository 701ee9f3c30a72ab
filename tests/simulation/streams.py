"""Streams and pull consumers as JetStream keeps them, in memory: what the broker of the simulation answers from.

Sequences, deduplication, limits by subject and age, the transform into partitions and the answers' shape are the
server's own. Consumers are those that the engine uses, which pull and do not acknowledge; nothing is replicated.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from engine.broker.streams import partition_of
from engine.messages import PARTITIONS

NANOSECONDS = 1_000_000_000
Headers = dict[str, str]


class ApiError(Exception):
    """What a call of JetStream's interface is refused with."""

    def __init__(self, code: int, err_code: int, description: str) -> None:
        super().__init__(description)
        self.answer = {"error": {"code": code, "err_code": err_code, "description": description}}


class Stored(msgspec.Struct, frozen=True):
    """A message in a stream."""

    sequence: int
    subject: str
    data: bytes
    headers: Headers
    at: float


class Pull(msgspec.Struct, eq=False):
    """One pull request: to whom, how many messages it still takes, until when."""

    inbox: str
    left: int
    no_wait: bool
    expires: float | None
    got: int = 0


class Consumer:
    """Reads a stream on from one sequence; numbers what it hands out, whether it arrives or not."""

    def __init__(self, name: str, config: dict[str, Any], stream: Stream, at: float) -> None:
        if config.get("ack_policy") != "none" or config.get("deliver_subject"):
            raise ApiError(400, 10000, "the simulation knows only pull consumers without acknowledgement")
        self.name = name
        self.config = config
        self.stream = stream
        self.next = config.get("opt_start_seq") or 1
        self.delivered = 0
        self.waiting: deque[Pull] = deque()
        self.active_at = at
        filters = config.get("filter_subjects") or [config.get("filter_subject") or ">"]
        self._filters = [_pattern(subject) for subject in filters]

    def idle_for_too_long(self, now: float) -> bool:
        """Whether the server has removed it, since nobody pulled."""
        threshold = self.config.get("inactive_threshold") or 0
        return not self.waiting and 0 < threshold / NANOSECONDS < now - self.active_at

    def take(self) -> Stored | None:
        """The next message, if there is one."""
        self.next = max(self.next, self.stream.first)
        while self.next <= self.stream.last:
            stored = self.stream.messages.get(self.next)
            self.next += 1
            if stored is not None and any(pattern.fullmatch(stored.subject) for pattern in self._filters):
                self.delivered += 1
                return stored
        return None

    def pending(self) -> int:
        """About how many messages are to come."""
        return max(0, self.stream.last - self.next + 1)


class Stream:
    """One stream."""

    def __init__(self, config: dict[str, Any], created: datetime) -> None:
        self.config = config
        self.created = created
        self.last = 0
        self.messages: OrderedDict[int, Stored] = OrderedDict()
        self.consumers: dict[str, Consumer] = {}
        self._subjects = [_pattern(subject) for subject in config["subjects"]]
        self._seen: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._by_subject: dict[str, list[int]] = {}
        self._bytes = 0

    @property
    def first(self) -> int:
        """The sequence of the oldest message, or of the next one."""
        return next(iter(self.messages), self.last + 1)

    def takes(self, subject: str) -> bool:
        """Whether messages of the subject are stored here."""
        return any(pattern.fullmatch(subject) for pattern in self._subjects)

    def info(self, subjects: str | None = None) -> dict[str, Any]:
        """What STREAM.INFO answers, with the messages of each subject that matches, if asked for them."""
        state: dict[str, Any] = {
            "messages": len(self.messages),
            "bytes": self._bytes,
            "first_seq": self.first,
            "last_seq": self.last,
            "consumer_count": len(self.consumers),
        }
        if subjects is not None:
            found = (s.subject for s in self.messages.values() if _pattern(subjects).fullmatch(s.subject))
            state["subjects"] = Counter(found)
        return {"config": self.config, "created": timestamp(self.created), "state": state}

    def store(self, subject: str, data: bytes, headers: Headers, now: float) -> tuple[int, bool]:
        """Take a message in; its sequence and whether it was there already. Raises `ApiError`."""
        self.forget(now)
        message_id = headers.get("Nats-Msg-Id")
        if message_id is not None and message_id in self._seen:
            return self._seen[message_id][0], True
        stored_as = self._transformed(subject)
        self._check_expectation(stored_as, headers)
        size = len(data) + len(subject)
        most = self.config.get("max_bytes") or -1
        if 0 < most < self._bytes + size:
            if self.config.get("discard") == "new":
                raise ApiError(503, 10077, "maximum bytes exceeded")
            while self.messages and most < self._bytes + size:
                self._drop(next(iter(self.messages)))
        self.last += 1
        stored = Stored(self.last, stored_as, data, headers, now)
        self.messages[self.last] = stored
        self._bytes += _size(stored)
        if message_id is not None:
            self._seen[message_id] = (self.last, now)
        self._keep_by_subject(stored)
        return self.last, False

    def store_batch(self, batch: Sequence[tuple[str, bytes, Headers]], now: float) -> int:
        """Take all in or none; the sequence of the last one. Raises `ApiError`."""
        self.forget(now)
        if any(headers.get("Nats-Msg-Id") in self._seen for _, _, headers in batch):
            raise ApiError(400, 10201, "atomic publish batch contains duplicate message id")
        for subject, data, headers in batch:
            self.store(subject, data, headers, now)
        return self.last

    def last_of(self, subject: str, now: float) -> Stored | None:
        """The last message of a subject."""
        self.forget(now)
        sequences = self._by_subject.get(subject)
        return self.messages[sequences[-1]] if sequences else None

    def next_of(self, subject: str, sequence: int) -> Stored | None:
        """The first message of the subjects that stands at the sequence or after."""
        pattern = _pattern(subject)
        for stored in self.messages.values():
            if stored.sequence >= sequence and pattern.fullmatch(stored.subject):
                return stored
        return None

    def told(self, stored: Stored | None) -> dict[str, Any]:
        """What STREAM.MSG.GET answers. Raises `ApiError`."""
        if stored is None:
            raise ApiError(404, 10037, "no message found")
        data = b64encode(stored.data).decode()
        at = timestamp(self.created + timedelta(seconds=stored.at))
        return {"message": {"subject": stored.subject, "seq": stored.sequence, "data": data, "time": at}}

    def delete(self, sequence: int) -> None:
        """Remove one message. Raises `ApiError`."""
        if sequence not in self.messages:
            raise ApiError(400, 10057, f"stream store sequence not found: {sequence}")
        self._drop(sequence)

    def purge(self, before: int | None = None, subject: str | None = None, keep: int = 0) -> int:
        """Remove all messages, or those before a sequence or of a subject, but for the last so many."""
        pattern = None if subject is None else _pattern(subject)
        gone = [
            stored.sequence
            for stored in self.messages.values()
            if (before is None or stored.sequence < before) and (pattern is None or pattern.fullmatch(stored.subject))
        ]
        for sequence in gone[: len(gone) - keep]:
            self._drop(sequence)
        return max(0, len(gone) - keep)

    def _transformed(self, subject: str) -> str:
        transform = self.config.get("subject_transform")
        if not transform:
            return subject
        tokens = subject.split(".")
        stars = [token for token, part in zip(tokens, transform["src"].split("."), strict=True) if part == "*"]

        def value(match: re.Match[str]) -> str:
            function, arguments = match[1], [int(number) for number in match[2].split(",")]
            if function == "wildcard":
                return stars[arguments[0] - 1]
            assert arguments[0] == PARTITIONS
            return str(partition_of("".join(stars[number - 1] for number in arguments[1:])))

        return re.sub(r"\{\{(\w+)\(([\d,]+)\)\}\}", value, transform["dest"])

    def _check_expectation(self, subject: str, headers: Headers) -> None:
        expected = headers.get("Nats-Expected-Last-Subject-Sequence")
        sequences = self._by_subject.get(subject)
        present = sequences[-1] if sequences else 0
        if expected is not None and int(expected) != present:
            raise ApiError(400, 10071, f"wrong last sequence: {present}")

    def _keep_by_subject(self, stored: Stored) -> None:
        most = self.config.get("max_msgs_per_subject") or -1
        if most < 1:
            return
        if stored.headers.get("Nats-Rollup") == "sub":
            most = 1
        sequences = self._by_subject.setdefault(stored.subject, [])
        sequences.append(stored.sequence)
        for sequence in sequences[:-most]:
            self._drop(sequence)

    def forget(self, now: float) -> None:
        """Drop what is too old by now."""
        window = (self.config.get("duplicate_window") or 0) / NANOSECONDS
        while self._seen and next(iter(self._seen.values()))[1] + window < now:
            self._seen.popitem(last=False)
        age = (self.config.get("max_age") or 0) / NANOSECONDS
        while age and self.messages and next(iter(self.messages.values())).at + age <= now:
            self._drop(next(iter(self.messages)))

    def _drop(self, sequence: int) -> None:
        stored = self.messages.pop(sequence)
        self._bytes -= _size(stored)
        if sequences := self._by_subject.get(stored.subject):
            sequences.remove(sequence)


def _size(stored: Stored) -> int:
    return len(stored.data) + len(stored.subject)


def _pattern(subject: str) -> re.Pattern[str]:
    """A subject with wildcards as a pattern: `*` is one token, `>` the rest."""
    return re.compile(r"\.".join(_tokens(subject)))


def _tokens(subject: str) -> Iterator[str]:
    for token in subject.split("."):
        yield {"*": r"[^.]+", ">": r".+"}.get(token, re.escape(token))


def matches(pattern: str) -> re.Pattern[str]:
    """What subjects a subscription hears."""
    return _pattern(pattern)


def timestamp(at: datetime) -> str:
    """A moment as the server writes it."""
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
