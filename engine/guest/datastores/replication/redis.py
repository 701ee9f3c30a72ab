"""Redis's replication: a full copy or the missing part, which replica and source settle between them.

It is asynchronous: a write that no replica has confirmed (`WAIT`) may be lost with its source. After a restart a source
has another replication id, so whether it has something that others lack cannot be seen: it is seeded anew. Accounts are
not replicated; a replica takes tenants' from its source, hashes as they are, whenever it begins to follow.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import redis

from engine.guest.datastores.base import ADMIN, CONNECT_TIMEOUT, DatastoreError, Place, Progress, Settings, clamp
from engine.guest.desired import sync_directory, write_durably
from engine.guest.membership import USER_PREFIX, Role
from engine.messages import ReplicationSource

if TYPE_CHECKING:
    from engine.guest.datastores.redis import Redis

_MIB = 1 << 20
_LINK_TIMEOUT = 15.0
_SYNC_TIMEOUT = 6 * 3600.0
_PING_EVERY, _NEVER = 2, 1 << 30  # seconds
_REPLICA = "resetchannels resetkeys -@all +psync +replconf +ping +info +acl|list"


def replication_lines(place: Place, settings: Settings) -> dict[str, str]:
    """What the configuration says of replication; the password by which it follows stands in a file of its own."""
    lines = {
        "replica-read-only": "yes",
        "replica-serve-stale-data": "yes",
        "repl-backlog-size": f"{clamp(settings.ram / 16, 4, 512)}mb",
        "repl-backlog-ttl": "0",
        "repl-diskless-sync": "yes",
        "repl-diskless-sync-delay": "0",
        "repl-timeout": "20",
        "repl-ping-replica-period": str(_PING_EVERY),
    }
    source = settings.membership.source
    if source is not None:
        lines["replicaof"] = f"{source.address} {source.port}"
        lines["masteruser"] = settings.membership.user
        lines["include"] = f'"{place.source_password_file}"'
    return lines


def _replicas_file(place: Place) -> Path:
    """The accounts of replicas, as lines of an access control list."""
    return place.data / "replicas.acl"


class RedisReplication:
    """What one Redis can do about replication."""

    can_be_synchronous: ClassVar[bool] = False

    def __init__(self, database: Redis) -> None:
        self._database = database
        self._place = database.place

    def can_be_followed(self, port: int) -> bool:  # noqa: ARG002 - any can
        return True

    def admit(self, port: int, replica: str, address: str, password: str) -> None:  # noqa: ARG002 - from anywhere
        rules = f"on #{self._database.hashed(password)} {_REPLICA}"
        kept = {**self._replicas(), replica: f"user {replica} {rules}"}
        self._keep(kept)
        self._database.do(port, "ACL", "SETUSER", replica, "reset", *rules.split())

    def dismiss(self, port: int, replica: str) -> None:
        kept = self._replicas()
        kept.pop(replica, None)
        self._keep(kept)
        self._database.do(port, "ACL", "DELUSER", replica)

    def forget(self, port: int) -> None:
        """Nothing: a slot or a backlog that nobody reads goes by itself."""

    def accounts(self, port: int) -> set[str]:  # noqa: ARG002 - the file is what holds
        return set(self._replicas())

    def configure(self, port: int, settings: Settings) -> None:
        """Nothing: accounts are made one by one, and the rest holds for all."""

    def fetch(self, data: Path, source: ReplicationSource, user: str, password: str) -> None:
        self._database.install(data)
        (data / "users.acl").write_text(self._tenants_of(source, user, password))

    def load(self, port: int, source: ReplicationSource, user: str, password: str) -> None:
        self._turn_to(port, source, user, password)
        self._until_linked(port, source, _SYNC_TIMEOUT)

    def remember(self, user: str, password: str) -> None:  # noqa: ARG002 - its name is in the configuration
        write_durably(self._place.source_password_file, f"masterauth {password}\n".encode())

    def follow(self, port: int, source: ReplicationSource, user: str, password: str) -> None:
        write_durably(self._place.data / "users.acl", self._tenants_of(source, user, password).encode())
        self.open_tenants(port)  # to read
        self._turn_to(port, source, user, password)
        self._until_linked(port, source, _SYNC_TIMEOUT)

    def _turn_to(self, port: int, source: ReplicationSource, user: str, password: str) -> None:
        info = self._database.info(port)
        self._database.do(port, "CONFIG", "SET", "masteruser", user)
        self._database.do(port, "CONFIG", "SET", "masterauth", password)
        if (info.get("master_host"), info.get("master_port")) != (source.address, source.port):
            self._database.do(port, "REPLICAOF", source.address, str(source.port))

    def _until_linked(self, port: int, source: ReplicationSource, timeout: float) -> None:
        unlinked = time.monotonic() + _LINK_TIMEOUT
        deadline = time.monotonic() + timeout
        while (info := self._database.info(port)).get("master_link_status") != "up":
            now = time.monotonic()
            if info.get("master_sync_in_progress"):
                unlinked = now + _LINK_TIMEOUT
            if now > min(unlinked, deadline):
                raise DatastoreError(
                    "source_unreachable",
                    f"no link to {source.address}:{source.port} after {_LINK_TIMEOUT:g} s: see that it runs, has "
                    "admitted this replica and can be reached from here",
                    transient=True,
                )
            time.sleep(0.05)

    def diverged(self, port: int, source: ReplicationSource, user: str, password: str) -> str | None:
        own = self._database.info(port)
        with self._at(source, user, password) as connection:
            theirs = connection.info("replication")
        offset = own["master_repl_offset"]
        if own["master_replid"] == theirs["master_replid"] and offset <= theirs["master_repl_offset"]:
            return None
        if own["master_replid"] == theirs["master_replid2"] and offset <= theirs["second_repl_offset"]:
            return None
        return (
            f"it is at {own['master_replid']}:{offset}, the source at {theirs['master_replid']}:"
            f"{theirs['master_repl_offset']}, and before at {theirs['master_replid2']}:{theirs['second_repl_offset']}"
        )

    def rewind(self, source: ReplicationSource, user: str, password: str) -> None:  # noqa: ARG002
        raise DatastoreError("unsupported", "Redis cannot take writes back: ask with repair `seed`")

    def promote(self, port: int) -> None:
        self._database.do(port, "REPLICAOF", "NO", "ONE")
        self._database.do(port, "CONFIG", "SET", "masterauth", "")
        self._place.source_password_file.unlink(missing_ok=True)
        sync_directory(self._place.volume)

    def progress(self, port: int) -> Progress:
        info = self._database.info(port)
        if info["role"] == "master":
            return Progress(role="primary", position=f"{info['master_replid']}:{info['master_repl_offset']}")
        position = f"{info['master_replid']}:{info['slave_repl_offset']}"
        linked = info.get("master_link_status") == "up"
        return Progress(
            role="replica",
            position=position,
            received=position,  # what arrives is applied at once
            link=linked,
            lag_bytes=None,
            lag_seconds=float(max(info.get("master_last_io_seconds_ago", 0), 0)) if linked else None,
        )

    def reached(self, port: int, position: str) -> bool:
        """An id of before counts as long as the offset is of its part of the history."""
        wanted_id, _, wanted = position.partition(":")
        info = self._database.info(port)
        has = info["master_repl_offset"] if info["role"] == "master" else info["slave_repl_offset"]
        known = wanted_id == info["master_replid"] or (
            wanted_id == info["master_replid2"] and int(wanted) <= info["second_repl_offset"]
        )
        return bool(known and has >= int(wanted))

    def trim(self, port: int, settings: Settings) -> None:
        """Nothing: it is bounded by the configuration."""

    def prepare_handover(self, port: int) -> None:
        """Nothing: closing takes no longer than the longest script."""

    def close_tenants(self, port: int) -> bool:
        self._database.write_accounts(closed=True)
        for name in self._tenants():
            self._database.do(port, "ACL", "SETUSER", name, "off")
            self._database.do(port, "CLIENT", "KILL", "USER", name)
        # Else pings, and keys whose time is over, move its position: it would seem to have what no replica has.
        self._database.do(port, "CONFIG", "SET", "repl-ping-replica-period", str(_NEVER))
        self._database.do(port, "DEBUG", "SET-ACTIVE-EXPIRE", "0")
        return True

    def open_tenants(self, port: int) -> None:
        self._database.write_accounts(closed=False)
        lines = self._tenants()
        for name, line in lines.items():
            self._database.do(port, "ACL", "SETUSER", name, "reset", *line.split()[2:])
        self._database.do(port, "CONFIG", "SET", "repl-ping-replica-period", str(_PING_EVERY))
        self._database.do(port, "DEBUG", "SET-ACTIVE-EXPIRE", "1")

    def _tenants(self) -> dict[str, str]:
        return tenants(self._place)

    def _replicas(self) -> dict[str, str]:
        return replicas(self._place)

    def _keep(self, replicas: dict[str, str]) -> None:
        write_durably(_replicas_file(self._place), "".join(f"{line}\n" for line in replicas.values()).encode())

    def _tenants_of(self, source: ReplicationSource, user: str, password: str) -> str:
        """Tenants' accounts at the source."""
        with self._at(source, user, password) as connection:
            told = connection.execute_command("ACL LIST")
        lines = [line.decode() if isinstance(line, bytes) else str(line) for line in told]
        ours = [line for line in lines if line.split()[1] != ADMIN and not line.split()[1].startswith(USER_PREFIX)]
        return "".join(f"{line}\n" for line in ours)

    @contextlib.contextmanager
    def _at(self, source: ReplicationSource, user: str, password: str) -> Any:
        try:
            with redis.Redis(
                host=source.address, port=source.port, username=user, password=password, protocol=2,
                socket_timeout=CONNECT_TIMEOUT, socket_connect_timeout=CONNECT_TIMEOUT, single_connection_client=True,
            ) as connection:  # fmt: skip
                yield connection
        except (redis.RedisError, OSError) as error:
            raise DatastoreError("source_unreachable", str(error), transient=True) from error


def tenants(place: Place) -> dict[str, str]:
    """Tenants' accounts, as lines of an access control list."""
    return {name: line for name, line in _lines(place.data / "users.acl").items() if name != ADMIN}


def replicas(place: Place) -> dict[str, str]:
    """The accounts of replicas, likewise."""
    return _lines(_replicas_file(place))


def is_closed(settings: Settings) -> bool:
    """Whether tenants have no access: only at a source that is fenced."""
    return settings.membership.role is Role.SOURCE and not settings.membership.writable


def _lines(file: Path) -> dict[str, str]:
    """Accounts by name."""
    text = file.read_text() if file.exists() else ""
    return {line.split()[1]: line for line in text.splitlines() if line.startswith("user ")}
