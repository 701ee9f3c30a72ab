"""MariaDB 10.11 or newer: InnoDB with every commit on disk, accounts with hashed passwords, no account without one.

Read-only binds every account but the agent's, the tenants' root account too; a tenant with root can take that from the
system tables if it means to. Only members of a replication set have a binary log: a tenant's own statement that sets a
password is in it; the agent's hold hashes.
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any, ClassVar

import pymysql
from pymysql.converters import escape_string
from pymysql.cursors import DictCursor

from engine.guest.datastores.base import (
    ADMIN,
    CONNECT_TIMEOUT,
    DatastoreError,
    Place,
    Settings,
    clamp,
    run_program,
)
from engine.guest.datastores.replication.mariadb import MariaDBReplication, replication_lines
from engine.guest.desired import write_durably
from engine.messages import GuestUser

_OLDEST = (10, 11)
_SYSTEM_SQL = (
    "mysql_system_tables.sql", "mysql_performance_tables.sql", "mysql_system_tables_data.sql",
    "maria_add_gis_sp_bootstrap.sql", "mysql_sys_schema.sql",
)  # fmt: skip
_CLIENT_ERRORS = range(2000, 3000)  # of the connection, not of the statement
_PASSING_ERRORS = frozenset({1040, 1053, 1205, 1213})  # too many connections, shutdown, lock timeout, deadlock
_PROJECT = Path(__file__).parents[3]


@functools.cache
def binary() -> Path | None:
    """The server's program: of HOLDFAST_MARIADB_ROOT, else of the system, else unpacked beside the project."""
    chosen = os.environ.get("HOLDFAST_MARIADB_ROOT")
    folders = [Path(chosen) / part for part in ("usr/sbin", "usr/bin", "sbin", "bin")] if chosen else []
    on_path = shutil.which("mariadbd")
    folders += [Path(on_path).parent] if on_path else []
    unpacked = _PROJECT / ".packages" / "mariadb" / "usr"
    folders += [Path("/usr/sbin"), Path("/usr/bin"), unpacked / "sbin", unpacked / "bin"]
    for folder in folders:
        program = folder / "mariadbd"
        if program.exists() and tuple(map(int, full_version(program).split(".")[:2])) >= _OLDEST:
            return program
    return None


@functools.cache
def full_version(program: Path) -> str:
    """What the program says its version is. Raises `DatastoreError`."""
    told = run_program([*_loader(program), str(program), "--no-defaults", "--version"], cwd=Path("/"))
    found = re.search(r"Ver (\d+\.\d+\.\d+)", told)
    if found is None:
        raise DatastoreError("version_unknown", f"{program} does not tell its version")
    return found.group(1)


def _loader(program: Path) -> list[str]:
    """What goes before a program that was unpacked somewhere, with its libraries beside it."""
    usr = program.parent.parent
    if usr in (Path("/usr"), Path("/")):
        return []
    found = sorted({library.parent for library in (usr / "lib").glob("**/*.so.*")})
    return ["/usr/bin/env", f"LD_LIBRARY_PATH={':'.join(map(str, found))}"] if found else []


class MariaDB:
    """One MariaDB."""

    default_port: ClassVar[int] = 3306
    stop_signals: ClassVar[tuple[tuple[signal.Signals, float], ...]] = (
        (signal.SIGTERM, 90.0),
        (signal.SIGKILL, 10.0),
    )
    parameters: ClassVar[frozenset[str]] = frozenset(
        (
            "auto_increment_increment", "auto_increment_offset", "character_set_server", "collation_server",
            "default_week_format", "event_scheduler", "group_concat_max_len", "idle_transaction_timeout",
            "innodb_autoinc_lock_mode", "innodb_buffer_pool_size", "innodb_flush_log_at_trx_commit",
            "innodb_io_capacity", "innodb_lock_wait_timeout", "innodb_log_file_size", "innodb_stats_on_metadata",
            "interactive_timeout", "join_buffer_size", "key_buffer_size", "lock_wait_timeout", "long_query_time",
            "max_allowed_packet", "max_connect_errors", "max_connections", "max_heap_table_size",
            "max_prepared_stmt_count", "max_statement_time", "max_user_connections", "net_read_timeout",
            "net_write_timeout", "query_cache_size", "query_cache_type", "read_buffer_size", "read_rnd_buffer_size",
            "sort_buffer_size", "sql_mode", "table_definition_cache", "table_open_cache", "thread_cache_size",
            "tmp_table_size", "transaction_isolation", "wait_timeout",
        )
    )  # fmt: skip

    def __init__(self, place: Place, version: str) -> None:
        self.place = place
        self._wanted = version
        self._watching: pymysql.Connection[Any] | None = None
        self.replication = MariaDBReplication(self)

    def programs(self) -> tuple[Path, ...]:
        program = binary()
        if program is None:
            raise DatastoreError("datastore_missing", "MariaDB is not on this machine: .ci/mariadb installs it")
        return (program,)

    def version(self) -> str:
        found = full_version(*self.programs())
        if not f"{found}.".startswith(f"{self._wanted}."):
            raise DatastoreError("version_missing", f"this machine has MariaDB {found}, not {self._wanted}")
        return found

    def _share(self) -> Path:
        """Where the server's messages and system tables lie."""
        (program,) = self.programs()
        for name in ("mysql", "mariadb"):
            folder = program.parent.parent / "share" / name
            if (folder / _SYSTEM_SQL[0]).exists():
                return folder
        raise DatastoreError("datastore_incomplete", f"{_SYSTEM_SQL[0]} is missing beside {program}: .ci/mariadb")

    def install(self, data: Path) -> None:
        self.version()
        data.mkdir(mode=0o700)
        share = self._share()
        parts = [
            "create database mysql;\nuse mysql;\n",
            *((share / name).read_text() for name in _SYSTEM_SQL),
            "\ndelete from global_priv where User in ('', 'root');\ndelete from proxies_priv;\n",
            f"{self.own_account()};\n",
        ]
        (program,) = self.programs()
        run_program(
            [
                *_loader(program), str(program), "--no-defaults", "--bootstrap", f"--datadir={data}",
                f"--tmpdir={self._temporary()}", f"--lc-messages-dir={share}",
                f"--character-sets-dir={share / 'charsets'}", "--skip-log-bin",
                "--log-warnings=0", "--enforce-storage-engine=", "--innodb-buffer-pool-size=32M",
                "--innodb-log-file-size=16M", "--innodb-flush-method=nosync", "--innodb-flush-log-at-trx-commit=0",
            ],
            cwd=self.place.volume,
            content="\n".join(parts).encode(),
        )  # fmt: skip

    def own_account(self) -> str:
        """The statement that makes the agent's account."""
        account = {
            "access": (1 << 64) - 1,
            "plugin": "mysql_native_password",
            "authentication_string": self.hashed(self.place.admin_password()),
        }
        row = f"('{_own_host(self.place.address)}', '{ADMIN}', '{json.dumps(account)}')"
        return f"replace into mysql.global_priv values {row}"  # noqa: S608 -- nothing in it comes from outside

    @staticmethod
    def hashed(password: str) -> str:
        """What the server itself would store for this password."""
        once = hashlib.sha1(password.encode()).digest()  # noqa: S324 -- the protocol's own hash
        return "*" + hashlib.sha1(once).hexdigest().upper()  # noqa: S324 -- the protocol's own hash

    def _temporary(self) -> Path:
        """Of its own: a server that starts removes the temporary tables of any other in its directory."""
        folder = self.place.volume / "tmp"
        folder.mkdir(exist_ok=True, mode=0o700)
        return folder

    def configuration(self) -> Path:
        return self.place.directory / "my.cnf"

    def write_configuration(self, settings: Settings) -> None:
        share = self._share()
        files = self.place.volume / "files"
        files.mkdir(exist_ok=True, mode=0o700)
        lines = {
            "innodb_buffer_pool_size": f"{clamp(settings.ram / 2, 16, 1 << 20)}M",
            "max_connections": str(clamp(settings.ram / 8, 30, 2000)),
            "innodb_log_file_size": f"{clamp(settings.volume / (1 << 20) / 16, 16, 2048)}M",
            "key_buffer_size": "8M",
            "aria_pagecache_buffer_size": "8M",
            "character_set_server": "utf8mb4",
            "innodb_flush_log_at_trx_commit": "1",
            **settings.overrides,
            "datadir": str(self.place.data),
            "tmpdir": str(self._temporary()),
            "secure_file_priv": str(files),  # what the root account may read and write with SQL
            "lc_messages_dir": str(share),
            "character_sets_dir": str(share / "charsets"),
            # Relative to the data directory: a path to it may be longer than a socket's may be.
            "socket": "mariadb.sock",
            "pid_file": "mariadb.pid",
            "bind_address": self.place.address,
            "port": str(settings.port),
            "skip_name_resolve": "1",
            "general_log": "0",
            "slow_query_log": "0",
            "local_infile": "0",
            "read_only": "1" if settings.read_only else "0",
            **replication_lines(self.place, settings),
        }
        text = "[mariadbd]\n" + "".join(f"{name} = {value}\n" for name, value in lines.items())
        write_durably(self.configuration(), text.encode())

    def command(self) -> list[str]:
        (program,) = self.programs()
        return [*_loader(program), str(program), f"--defaults-file={self.configuration()}"]

    def client(self, name: str) -> list[str]:
        """What runs a client's program, found beside the server's or on the path. Raises `DatastoreError`."""
        (server,) = self.programs()
        beside = [server.parent / name, server.parent.parent / "bin" / name]
        on_path = shutil.which(name)
        for program in [*beside, Path(on_path)] if on_path else beside:
            if program.exists():
                return [*_loader(server), str(program)]
        raise DatastoreError("datastore_incomplete", f"{name} is not on this machine: .ci/mariadb installs it")

    def probe(self, port: int) -> bool:
        return self.ask(port, "SELECT 1 AS one") == {"one": 1}

    def ask(self, port: int, question: str) -> dict[str, Any]:
        """One row, over the connection that is kept open for this; empty if there is none."""
        try:
            if self._watching is None:
                self._watching = self.connect(port, CONNECT_TIMEOUT)
            with self._watching.cursor(DictCursor) as cursor:
                cursor.execute(question)
                return dict(cursor.fetchone() or {})
        except (pymysql.MySQLError, OSError) as error:
            self.close()
            raise DatastoreError("database_silent", str(error), transient=True) from error

    def close(self) -> None:
        if self._watching is not None:
            if self._watching.open:
                self._watching.close()
            self._watching = None

    def set_read_only(self, port: int, read_only: bool) -> None:
        self.do(port, "SET SESSION lock_wait_timeout = 30", f"SET GLOBAL read_only = {int(read_only)}")

    def create(
        self, port: int, databases: list[dict[str, Any]], users: list[GuestUser], root_password: str | None
    ) -> None:
        statements = [_database(wanted) for wanted in databases]
        for user in users:
            account = f"'{escape_string(user.name)}'@'{escape_string(user.host)}'"
            statements += _account(account, user.password)
            # In a grant _ and % are patterns, which would let in other databases.
            patterns = (re.sub(r"([_%\\])", r"\\\1", name).replace("`", "``") for name in user.databases)
            statements += [f"GRANT ALL PRIVILEGES ON `{pattern}`.* TO {account}" for pattern in patterns]
        if root_password:
            statements += _account("'root'@'%'", root_password)
            statements.append("GRANT ALL PRIVILEGES ON *.* TO 'root'@'%' WITH GRANT OPTION")
            statements.append("REVOKE READ ONLY ADMIN ON *.* FROM 'root'@'%'")
        self.do(port, *statements)

    def do(self, port: int, *statements: str) -> None:
        """Carry out statements. Raises `DatastoreError`."""
        try:
            with self.connect(port, 60) as connection, connection.cursor() as cursor:
                for statement in statements:
                    cursor.execute(statement)
        except pymysql.MySQLError as error:
            code = error.args[0] if error.args else None
            passing = code in _CLIENT_ERRORS or code in _PASSING_ERRORS
            raise DatastoreError(
                "database_error" if passing else "database_refused", str(error), transient=passing
            ) from error

    def connect(self, port: int, timeout: int) -> pymysql.Connection[Any]:
        """As the agent. Raises `pymysql.MySQLError`."""
        return pymysql.connect(
            host=self.place.address,
            port=port,
            user=ADMIN,
            password=self.place.admin_password(),
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=timeout,
            write_timeout=timeout,
            charset="utf8mb4",
            autocommit=True,
            ssl_disabled=True,
        )


def _database(wanted: dict[str, Any]) -> str:
    statement = "CREATE DATABASE IF NOT EXISTS `{}`".format(wanted["name"].replace("`", "``"))
    if wanted.get("character_set"):
        statement += f" CHARACTER SET '{escape_string(wanted['character_set'])}'"
    if wanted.get("collate"):
        statement += f" COLLATE '{escape_string(wanted['collate'])}'"
    return statement


def _account(account: str, password: str) -> list[str]:
    how = f"IDENTIFIED VIA mysql_native_password USING '{MariaDB.hashed(password)}'"
    return [f"CREATE USER IF NOT EXISTS {account} {how}", f"ALTER USER {account} {how}"]


def _own_host(address: str) -> str:
    """Where the agent's connections come from, as the server sees it."""
    return "127.%" if address.startswith("127.") else str(ipaddress.ip_address(address))
