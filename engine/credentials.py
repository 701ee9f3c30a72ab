"""Who may say what on the embedded broker: its users, their seeds and their rights, and the credentials of guests.

Guarantees that each user has a seed of its own, readable by its owner alone, of which the broker is told only the
public half, and that a guest can speak and hear for its own instance and nothing else. Of a guest on another machine we
have the public half alone: its seed never leaves that machine. It does not hide a seed from root, nor does it serve a
foreign broker: there, users and rights are the operator's.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import ParamSpec, Protocol, TypeVar
from uuid import UUID

import msgspec
import nkeys  # type: ignore[import-untyped]
import structlog

from engine import nkey
from engine.broker import DEAD_LETTER_STREAM, BrokerError
from engine.messages import LOG_SUBJECT, PAUSE_SUBJECT, PREFIX, enrolment_subject, guest_subject, heartbeat_subject
from engine.private_files import delete_file, replace_file

P = ParamSpec("P")
R = TypeVar("R")

log = structlog.get_logger(__name__)

SYSTEM = "system"  # the broker's own account: configuration and health, no messages
_GUEST = "guest-"


def inbox_prefix(user: str) -> str:
    """Where replies to this user go; a connection as this user must be made with it."""
    return f"_INBOX.{user.replace('-', '.', 1) if user.startswith(_GUEST) else user}"


class Rights(msgspec.Struct, frozen=True):
    """The subjects that a user may publish to and subscribe to. `replies`: may answer whoever asks it."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    replies: bool = False


# Commands of the kind quota are the engine's own, as what an instance's state owes; limits are the operator's to set.
_PUBLISHES = (f"{PREFIX}.cmd.*.instance.*.*", f"{PREFIX}.qry.>")
_WATCHES = (f"{PREFIX}.evt.>",)
_DEAD = DEAD_LETTER_STREAM

# Who answers queries may publish to inboxes only. The server's `allow_responses` would let it answer on whatever
# subject the question bears as its reply, the broker's own API among them, with our rights in place of the asker's.
USERS: dict[str, Rights] = {
    "publisher": Rights(_PUBLISHES, (*_WATCHES, f"{inbox_prefix('publisher')}.>")),
    "operator": Rights(
        (
            *_PUBLISHES,
            f"{PREFIX}.cmd.*.quota.*.set_quota",
            "$SRV.>",
            "$JS.API.INFO",
            "$JS.API.STREAM.INFO.*",
            f"$JS.API.STREAM.MSG.GET.{_DEAD}",
            f"$JS.API.STREAM.MSG.DELETE.{_DEAD}",
            f"$JS.API.STREAM.PURGE.{_DEAD}",
            f"$JS.API.DIRECT.GET.{_DEAD}.>",
            f"$JS.API.CONSUMER.*.{_DEAD}",
            f"$JS.API.CONSUMER.*.{_DEAD}.>",
            f"$JS.API.CONSUMER.MSG.NEXT.{_DEAD}.>",
            f"$JS.ACK.{_DEAD}.>",
            f"$JS.FC.{_DEAD}.>",
        ),
        (*_WATCHES, f"{PREFIX}.dlq.>", f"{inbox_prefix('operator')}.>"),
    ),
    "worker": Rights(
        (
            f"{PREFIX}.>",
            "$JS.API.>",
            "$JS.ACK.>",
            "$JS.FC.>",
            "$KV.>",
            "$SRV.>",
            "_INBOX.>",
        ),
        (
            heartbeat_subject("*"),
            enrolment_subject(),
            LOG_SUBJECT,
            PAUSE_SUBJECT,
            f"{PREFIX}.qry.>",
            f"{PREFIX}.evt.>",
            f"{PREFIX}.dlq.>",
            "$KV.>",
            "$SRV.>",
            f"{inbox_prefix('worker')}.>",
        ),
    ),
    # What a machine is before it is known: it may ask to be taken for its instance's, and hear the answer.
    "enrol": Rights((enrolment_subject(),), (f"{inbox_prefix('enrol')}.>",)),
    "projector": Rights(
        ("_INBOX.>",),
        (
            heartbeat_subject("*"),
            f"{PREFIX}.qry.>",
            f"{PREFIX}.evt.>",
            "$SRV.>",
            f"{inbox_prefix('projector')}.>",
        ),
    ),
}


def guest_user(instance_id: UUID) -> str:
    """The broker's user of an instance's agent."""
    return f"{_GUEST}{instance_id}"


def guest_of(user: str) -> UUID | None:
    """The instance whose agent's user this is, if it is one's."""
    if not user.startswith(_GUEST):
        return None
    try:
        found = UUID(user.removeprefix(_GUEST))
    except ValueError:
        return None
    return found if guest_user(found) == user else None


def guest_rights(instance_id: UUID) -> Rights:
    """What an instance's agent may say and hear."""
    return Rights(
        (heartbeat_subject(instance_id),),
        (guest_subject(instance_id, "*"), f"{inbox_prefix(guest_user(instance_id))}.>"),
        replies=True,  # asked by the worker alone, which gives an inbox of its own
    )


def _rights(user: str) -> Rights:
    instance_id = guest_of(user)
    return USERS[user] if instance_id is None else guest_rights(instance_id)


# --- seeds --------------------------------------------------------------------------------------------------------


class Users:
    """The users of one broker. The directory of keys is the truth; the broker's list of users is made from it.

    `<user>.nk` holds a seed, `<user>.pub` the public key of a user whose seed is elsewhere.

    Blocking; threads take turns.
    """

    def __init__(self, seeds: Path, users_file: Path) -> None:
        self._seeds = seeds
        self._file = users_file
        self._public: dict[str, str] = {}
        self._turn = threading.RLock()

    def load(self) -> None:
        """Read every seed, make those of the fixed users that are missing, and write the broker's list."""
        with self._turn:
            for leftover in self._seeds.glob(".*.new"):
                leftover.unlink(missing_ok=True)
            self._public = {}
            for path in sorted(self._seeds.glob("*.nk")):
                if not _is_user(path.stem):
                    log.warning("seed_of_nobody", file=str(path), next="it is ignored; delete it")
                    continue
                try:
                    self._public[path.stem] = _public_key(path)
                except nkeys.NkeysError:
                    self._damaged(path)
            for path in sorted(self._seeds.glob(f"{_GUEST}*.pub")):
                key = path.read_text().strip()
                if _is_user(path.stem) and nkey.is_user(key):
                    self._public[path.stem] = key
                else:
                    log.warning("key_of_nobody", file=str(path), next="it is ignored; delete it")
            for user in (*USERS, SYSTEM):
                self.add(user)
            self.write()

    def seed(self, user: str) -> Path:
        """The file of a user's seed, there or not."""
        return self._seeds / f"{user}.nk"

    def add(self, user: str) -> Path:
        """Make the user's seed if there is none; the broker knows the user after the next `write` and reload."""
        with self._turn:
            path = self.seed(user)
            if user in self._public and path.exists():
                return path
            try:
                self._public[user] = _public_key(path)
            except (FileNotFoundError, nkeys.NkeysError):
                replace_file(path, nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER) + b"\n")
                self._public[user] = _public_key(path)
            return path

    def admit(self, user: str, public_key: str) -> None:
        """The user has this key and no other; the broker knows it after the next `write` and reload."""
        with self._turn:
            if self._public.get(user) == public_key:
                return
            replace_file(self._key(user), public_key.encode() + b"\n")
            self._public[user] = public_key

    def remove(self, user: str) -> None:
        """Delete what there is of the user; the broker refuses the user after the next `write` and reload."""
        with self._turn:
            self._public.pop(user, None)
            delete_file(self.seed(user))
            delete_file(self._key(user))

    def _key(self, user: str) -> Path:
        return self._seeds / f"{user}.pub"

    def write(self) -> str:
        """Write the accounts that the broker's configuration includes: public keys and rights, no secret.

        Returns the hash of what the broker is told.
        """
        with self._turn:
            users = "\n".join(_entry(user, key) for user, key in sorted(self._public.items()) if user != SYSTEM)
            content = (
                f"HOLDFAST {{\n  jetstream: enabled\n  users: [\n{users}\n  ]\n}}\n"
                f"SYSTEM {{\n  users: [ {{ nkey: {self._public[SYSTEM]} }} ]\n}}\n"
            )
            replace_file(self._file, content.encode())
            return hashlib.sha256(content.encode()).hexdigest()

    def _damaged(self, path: Path) -> None:
        if not path.stem.startswith(_GUEST):
            raise BrokerError(
                "seed_damaged",
                f"{path} holds no seed; delete it: a new one is made at the next start, and whoever uses a copy of the "
                "old one needs the new one",
            ) from None
        log.error("seed_damaged", file=str(path), next="the guest is refused until its credentials are issued again")


def _is_user(name: str) -> bool:
    """What names a guest becomes part of its rights, so nothing but an instance's id is taken."""
    return name in USERS or name == SYSTEM or guest_of(name) is not None


def _entry(user: str, public_key: str) -> str:
    rights = _rights(user)
    replies = ', allow_responses: { max: 1, expires: "2m" }' if rights.replies else ""
    return (
        f"    # {user}\n    {{ nkey: {public_key}, permissions: {{ publish: {{ allow: {json.dumps(rights.publish)} }}, "
        f"subscribe: {{ allow: {json.dumps(rights.subscribe)} }}{replies} }} }}"
    )


def _public_key(path: Path) -> str:
    key = nkeys.from_seed(bytearray(path.read_bytes().strip()))
    try:
        return str(key.public_key.decode())
    finally:
        key.wipe()


# --- guests -------------------------------------------------------------------------------------------------------


class Reloads(Protocol):
    """The broker whose users these are."""

    users: Users

    async def reload(self) -> None:
        """Returns once the broker goes by the list of users as it is written now."""
        ...


class GuestCredentials:
    """Issues, admits and revokes the credentials of guests. Calls may be repeated; they hold when they return.

    Many calls at once share one reload. All file work is done by one thread, in the order of the calls: a call that
    was cancelled half way cannot undo a later one.
    """

    def __init__(self, broker: Reloads) -> None:
        self._broker = broker
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="credentials")
        self._wanted = 0
        self._applied = 0
        self._listed: str | None = None
        self._applying: asyncio.Task[None] | None = None

    async def ensure(self, instance_id: UUID) -> Path:
        """The file of the guest's seed, whose user the broker accepts."""
        path = await self._in_thread(self._broker.users.add, guest_user(instance_id))
        await self._apply_changes()
        return path

    async def admit(self, instance_id: UUID, public_key: str) -> None:
        """The broker accepts this key as the guest's, and has dropped connections under another."""
        await self._in_thread(self._broker.users.admit, guest_user(instance_id), public_key)
        await self._apply_changes()

    async def revoke(self, instance_id: UUID) -> None:
        """The guest's key is gone, the broker refuses it, and has dropped its connections."""
        await self._in_thread(self._broker.users.remove, guest_user(instance_id))
        await self._apply_changes()

    async def _apply_changes(self) -> None:
        """Wait until the broker goes by all changes made so far; a reload under way may have begun before ours."""
        self._wanted += 1
        ours = self._wanted
        while self._applied < ours:
            if self._applying is None or self._applying.done():
                self._applying = asyncio.create_task(self._apply())
                self._applying.add_done_callback(_log_failure)
            await asyncio.shield(self._applying)

    async def _apply(self) -> None:
        goal = self._wanted
        listed = await self._in_thread(self._broker.users.write)
        if listed != self._listed:
            await self._broker.reload()
            self._listed = listed
        self._applied = goal

    async def _in_thread(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(call, *args, **kwargs))


def _log_failure(applying: asyncio.Task[None]) -> None:
    """Also when everyone who waited for it was cancelled."""
    if not applying.cancelled() and (error := applying.exception()) is not None:
        log.warning("credentials_not_applied", error=str(error))
