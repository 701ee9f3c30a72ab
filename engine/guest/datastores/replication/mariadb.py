"""MariaDB's replication by GTID: members of a set keep a binary log, replicas are seeded by a dump pulled over SQL.

A stand-alone instance has no binary log, for that costs one to two thirds of its commits: to become a source it is
restarted once. What it wrote without is told from what the log has by the log's being empty: `forget` empties it.

A dump needs nothing on the source but an account, holds no lock on InnoDB's tables, and its time grows with the data;
`mariadb-backup` would be faster for large ones, and would need to be run, and its stream served, on the source.
Accounts of agents and of replicas are made past the binary log, so each server has its own and no position moves by
them. Whoever may read `master.info` in the data directory sees a replica's password: the server keeps it there.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pymysql

from engine.guest.datastores.base import (
    ADMIN,
    CONNECT_TIMEOUT,
    DatastoreError,
    Place,
    Progress,
    Settings,
    clamp,
    environment,
    secret_file,
)
from engine.guest.desired import sync_directory
from engine.guest.membership import USER_PREFIX, Role
from engine.messages import ReplicationSource

if TYPE_CHECKING:
    from engine.guest.datastores.mariadb import MariaDB

_MIB = 1 << 20
_SEED_TIMEOUT = 6 * 3600.0
_LINK_TIMEOUT = 15.0
_APPLY_TIMEOUT = 60.0
_CLOSE_TIMEOUT = 10.0
_LOST_POSITION = 1236  # the source's binary log does not have what the replica asks for
_NOT_DUMPED = ("mysql.gtid_slave_pos", "mysql.innodb_index_stats", "mysql.innodb_table_stats")
_PAST_THE_LOG = "SET SESSION sql_log_bin = 0"
_NEEDS = "SELECT, SHOW VIEW, TRIGGER, EVENT, LOCK TABLES, BINLOG MONITOR, REPLICATION SLAVE"


def server_id(place: Place) -> int:
    """A number of its own for each instance."""
    return place.instance_id.int % 0xFFFF_FFFE + 1


def replication_lines(place: Place, settings: Settings) -> dict[str, str]:
    """What the configuration says of replication."""
    mebibytes = settings.volume / _MIB
    return {
        "server_id": str(server_id(place)),
        **({"skip_log_bin": "1"} if settings.membership.role is Role.NONE else {"log_bin": "binlog"}),
        "log_slave_updates": "1",
        "relay_log": "relay",
        "relay_log_recovery": "1",
        "binlog_format": "ROW",
        "sync_binlog": "1",
        "gtid_strict_mode": "1",
        "max_binlog_size": f"{clamp(mebibytes / 64, 1, 256)}M",
        "binlog_expire_logs_seconds": "86400",
        "slave_net_timeout": "10",
        "rpl_semi_sync_slave_enabled": "1",
        "rpl_semi_sync_master_enabled": str(_waits(settings)),
        "rpl_semi_sync_master_wait_point": "AFTER_SYNC",
        "rpl_semi_sync_master_wait_no_slave": "1",
        "rpl_semi_sync_master_timeout": "4294967295",  # milliseconds, 49 days: it never goes on without a replica
    }


def _waits(settings: Settings) -> int:
    membership = settings.membership
    return int(membership.role is Role.SOURCE and membership.synchronous and bool(membership.replicas))


class MariaDBReplication:
    """What one MariaDB can do about replication."""

    can_be_synchronous: ClassVar[bool] = True

    def __init__(self, database: MariaDB) -> None:
        self._database = database
        self._place = database.place

    def can_be_followed(self, port: int) -> bool:
        told = self._database.ask(port, "SELECT @@log_bin AS log_bin, @@server_id AS server_id")
        return told == {"log_bin": 1, "server_id": server_id(self._place)}

    def admit(self, port: int, replica: str, address: str, password: str) -> None:
        host = "127.%" if address.startswith("127.") else address
        how = f"'{replica}'@'{host}' IDENTIFIED VIA mysql_native_password USING '{self._database.hashed(password)}'"
        self._database.do(
            port,
            _PAST_THE_LOG,
            f"CREATE USER IF NOT EXISTS {how}",
            f"ALTER USER {how}",
            f"GRANT {_NEEDS} ON *.* TO '{replica}'@'{host}'",
        )
        if not self.progress(port).position:  # of a log in which nothing stands nobody could tell that it is the same
            self._database.do(port, "FLUSH USER_RESOURCES")

    def dismiss(self, port: int, replica: str) -> None:
        with self._connected(port) as cursor:
            cursor.execute(_PAST_THE_LOG)
            cursor.execute("SELECT host FROM mysql.global_priv WHERE user = %s", (replica,))
            for (host,) in cursor.fetchall():
                cursor.execute("DROP USER IF EXISTS %s@%s", (replica, host))
            self._kill(cursor, "user = %s", replica)

    def forget(self, port: int) -> None:
        if self._database.ask(port, "SELECT @@log_bin AS log_bin") == {"log_bin": 1}:
            with self._connected(port) as cursor:
                cursor.execute("RESET MASTER")
                cursor.execute("SET GLOBAL gtid_slave_pos = ''")

    def accounts(self, port: int) -> set[str]:
        with self._connected(port) as cursor:
            cursor.execute("SELECT user FROM mysql.global_priv")
            return {user for (user,) in cursor.fetchall() if user.startswith(USER_PREFIX)}

    def configure(self, port: int, settings: Settings) -> None:
        self._database.do(port, f"SET GLOBAL rpl_semi_sync_master_enabled = {_waits(settings)}")

    def fetch(self, data: Path, source: ReplicationSource, user: str, password: str) -> None:  # noqa: ARG002
        self._database.install(data)

    def load(self, port: int, source: ReplicationSource, user: str, password: str) -> None:
        # This connection is known already when the dump brings the source's accounts in place of all that are here.
        with self._connected(port) as cursor:
            self._pipe(port, source, user, password)
            cursor.execute(_PAST_THE_LOG)
            cursor.execute("DELETE FROM mysql.global_priv WHERE user = %s OR user LIKE %s", (ADMIN, _like(USER_PREFIX)))
            cursor.execute(self._database.own_account())
            cursor.execute("FLUSH PRIVILEGES")
            # What follows it later finds in its log where the dump ended, though not what was before.
            cursor.execute("SELECT @@global.gtid_slave_pos")
            (position,) = cursor.fetchone() or ("",)
            cursor.execute("RESET MASTER")
            cursor.execute("SET GLOBAL gtid_binlog_state = %s", (position,))

    def _pipe(self, port: int, source: ReplicationSource, user: str, password: str) -> None:
        own = self._place.admin_password()
        with (
            secret_file(_options(user, password)) as (theirs, there),
            secret_file(_options(ADMIN, own)) as (ours, here),
        ):
            dump = [
                *self._database.client("mariadb-dump"), f"--defaults-file={theirs}", f"--host={source.address}",
                f"--port={source.port}", "--protocol=tcp", "--all-databases", "--single-transaction", "--master-data=1",
                "--gtid", "--routines", "--events", "--hex-blob", "--max-allowed-packet=1G",
                *(f"--ignore-table={table}" for table in _NOT_DUMPED),
            ]  # fmt: skip
            load = [
                *self._database.client("mariadb"), f"--defaults-file={ours}", f"--host={self._place.address}",
                f"--port={port}", "--protocol=tcp", "--max-allowed-packet=1G",
                f"--init-command={_PAST_THE_LOG}, foreign_key_checks = 0, unique_checks = 0",
            ]  # fmt: skip
            with (
                _running(dump, there, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as dumping,
                _running(load, here, stdin=dumping.stdout, stdout=subprocess.DEVNULL) as loading,
            ):
                if dumping.stdout is not None:
                    dumping.stdout.close()  # or a dump whose reader has died would wait for ever
                for name, process in (("mariadb", loading), ("mariadb-dump", dumping)):
                    try:
                        _, said = process.communicate(timeout=_SEED_TIMEOUT)
                    except subprocess.TimeoutExpired as error:
                        raise DatastoreError("seed_timeout", f"{name} took too long", transient=True) from error
                    if process.returncode != 0:
                        words = (said or b"").decode(errors="replace").strip()[-1000:]
                        raise DatastoreError("program_failed", f"{name}: {words}", transient=True)

    def remember(self, user: str, password: str) -> None:
        """Nothing: the server does so itself."""

    def follow(self, port: int, source: ReplicationSource, user: str, password: str) -> None:
        status = self._status(port)
        wanted = {"Master_Host": source.address, "Master_Port": source.port, "Master_User": user}
        if any(status.get(name) != value for name, value in wanted.items()) or not _links(status):
            with self._connected(port) as cursor:
                cursor.execute("STOP SLAVE")
                cursor.execute("SET GLOBAL gtid_slave_pos = @@global.gtid_binlog_pos")
                cursor.execute(
                    "CHANGE MASTER TO MASTER_HOST = %s, MASTER_PORT = %s, MASTER_USER = %s, MASTER_PASSWORD = %s,"
                    " MASTER_USE_GTID = slave_pos, MASTER_SSL = 0, MASTER_CONNECT_RETRY = 1,"
                    " MASTER_HEARTBEAT_PERIOD = 2",
                    (source.address, source.port, user, password),
                )
                cursor.execute("START SLAVE")
        deadline = time.monotonic() + _LINK_TIMEOUT
        while not _links(status := self._status(port)):
            if status.get("Last_IO_Errno") == _LOST_POSITION:
                raise DatastoreError("diverged", str(status["Last_IO_Error"]))
            if status.get("Last_SQL_Errno"):
                raise DatastoreError("replication_broken", str(status["Last_SQL_Error"]))
            if time.monotonic() > deadline:
                raise DatastoreError(
                    "source_unreachable",
                    f"no link to {source.address}:{source.port} after {_LINK_TIMEOUT:g} s: see that it runs, has "
                    f"admitted this replica and can be reached from here; {status.get('Last_IO_Error') or ''}",
                    transient=True,
                )
            time.sleep(0.05)

    def diverged(self, port: int, source: ReplicationSource, user: str, password: str) -> str | None:
        """What can be seen by comparing; what lies before the source's last transaction it says when it is followed."""
        own = _gtids(self.progress(port).position)
        if not own:
            return "it has written without a binary log"
        try:
            with contextlib.closing(
                pymysql.connect(
                    host=source.address, port=source.port, user=user, password=password,
                    connect_timeout=CONNECT_TIMEOUT, read_timeout=CONNECT_TIMEOUT, ssl_disabled=True,
                )
            ) as connection, connection.cursor() as cursor:  # fmt: skip
                cursor.execute("SELECT @@global.gtid_binlog_pos")
                (told,) = cursor.fetchone() or ("",)
        except (pymysql.MySQLError, OSError) as error:
            raise DatastoreError("source_unreachable", str(error), transient=True) from error
        theirs = _gtids(told)
        for domain, (server, number) in own.items():
            their_server, their_number = theirs.get(domain, (0, 0))
            if number > their_number or (number == their_number and server != their_server):
                return (
                    f"it has transaction {domain}-{server}-{number}, the source has come to "
                    f"{domain}-{their_server}-{their_number}"
                )
        return None

    def rewind(self, source: ReplicationSource, user: str, password: str) -> None:  # noqa: ARG002
        raise DatastoreError("unsupported", "MariaDB cannot take transactions back: ask with repair `seed`")

    def promote(self, port: int) -> None:
        if self._status(port):
            with self._connected(port) as cursor:
                cursor.execute("STOP SLAVE IO_THREAD")
                deadline = time.monotonic() + _APPLY_TIMEOUT
                while not self._applied(self._status(port), port):
                    if time.monotonic() > deadline:
                        raise DatastoreError(
                            "apply_slow", f"what was received is not applied after {_APPLY_TIMEOUT:g} s", transient=True
                        )
                    time.sleep(0.02)
                cursor.execute("STOP SLAVE")
                cursor.execute("RESET SLAVE ALL")
        self._place.source_password_file.unlink(missing_ok=True)
        sync_directory(self._place.volume)

    def _applied(self, status: dict[str, Any], port: int) -> bool:
        if status.get("Slave_SQL_Running") != "Yes":
            raise DatastoreError("replication_broken", str(status.get("Last_SQL_Error") or "nothing applies"))
        return self.reached(port, str(status.get("Gtid_IO_Pos") or ""))

    def progress(self, port: int) -> Progress:
        told = self._database.ask(port, "SELECT @@gtid_binlog_pos AS position, @@log_bin AS log_bin")
        position = str(told["position"])
        if not told["log_bin"]:  # started by an older agent; InnoDB's own log tells how far it is
            position = str(self._database.ask(port, "SHOW GLOBAL STATUS LIKE 'Innodb_lsn_current'")["Value"])
        status = self._status(port)
        if not status:
            return Progress(role="primary", position=position)
        same_file = status["Master_Log_File"] == status["Relay_Master_Log_File"]
        behind = status["Seconds_Behind_Master"]
        return Progress(
            role="replica",
            position=position,
            received=str(status["Gtid_IO_Pos"] or "") or position,
            link=_links(status),
            lag_bytes=status["Read_Master_Log_Pos"] - status["Exec_Master_Log_Pos"] if same_file else None,
            lag_seconds=None if behind is None else float(behind),
        )

    def reached(self, port: int, position: str) -> bool:
        has = _gtids(str(self._database.ask(port, "SELECT @@gtid_binlog_pos AS position")["position"]))
        return all(has.get(domain, (0, -1))[1] >= number for domain, (_, number) in _gtids(position).items())

    def trim(self, port: int, settings: Settings) -> None:
        """The binary log takes at most an eighth of the volume; the server keeps what a replica is just reading."""
        if settings.membership.role is Role.NONE:
            return
        with self._connected(port) as cursor:
            cursor.execute("SHOW BINARY LOGS")
            files = [(str(name), int(size)) for name, size, *_ in cursor.fetchall()]
            kept = 0
            for name, size in reversed(files):
                kept += size
                if kept > settings.volume / 8 and name != files[-1][0]:
                    cursor.execute("PURGE BINARY LOGS TO %s", (files[files.index((name, size)) + 1][0],))
                    return

    def prepare_handover(self, port: int) -> None:
        """Nothing: closing takes no longer than the longest commit."""

    def close_tenants(self, port: int) -> bool:
        deadline = time.monotonic() + _CLOSE_TIMEOUT
        with self._connected(port) as cursor:
            cursor.execute("SET SESSION lock_wait_timeout = 1")
            while time.monotonic() < deadline:
                # A commit that waits for a replica is cut off unacknowledged, or read-only would wait for it.
                self._kill(cursor, "user NOT IN ('system user', 'event_scheduler', %s) AND user NOT LIKE %s",
                           ADMIN, _like(USER_PREFIX))  # fmt: skip
                try:
                    cursor.execute("SET GLOBAL read_only = 1")
                except pymysql.OperationalError:
                    continue
                self._kill(cursor, "user NOT IN ('system user', 'event_scheduler', %s) AND user NOT LIKE %s",
                           ADMIN, _like(USER_PREFIX))  # fmt: skip
                return True
        return False

    def open_tenants(self, port: int) -> None:
        """Nothing: the read-only switch is all, and `Database` sees to it."""

    def _status(self, port: int) -> dict[str, Any]:
        return self._database.ask(port, "SHOW SLAVE STATUS")

    @contextlib.contextmanager
    def _connected(self, port: int) -> Any:
        try:
            with contextlib.closing(self._database.connect(port, 60)) as connection, connection.cursor() as cursor:
                yield cursor
        except (pymysql.OperationalError, pymysql.InterfaceError, OSError) as error:
            raise DatastoreError("database_error", str(error), transient=True) from error
        except pymysql.MySQLError as error:
            raise DatastoreError("database_refused", str(error)) from error

    @staticmethod
    def _kill(cursor: Any, condition: str, *values: str) -> None:
        cursor.execute(f"SELECT id FROM information_schema.processlist WHERE {condition}", values)  # noqa: S608
        for (number,) in cursor.fetchall():
            with contextlib.suppress(pymysql.MySQLError):  # it has gone by itself
                cursor.execute("KILL HARD CONNECTION %s", (number,))


@contextlib.contextmanager
def _running(command: list[str], descriptor: int, *, stdin: Any, stdout: Any) -> Any:
    """A program; killed if it outlives the block."""
    with subprocess.Popen(
        command, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, env=environment(), pass_fds=(descriptor,)
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def _options(user: str, password: str) -> str:
    return f"[client]\nuser={user}\npassword={password}\nskip-ssl\n"


def _links(status: dict[str, Any]) -> bool:
    return status.get("Slave_IO_Running") == "Yes" and status.get("Slave_SQL_Running") == "Yes"


def _gtids(position: str) -> dict[int, tuple[int, int]]:
    """Server and sequence number by domain."""
    found = re.findall(r"(\d+)-(\d+)-(\d+)", position)
    return {int(domain): (int(server), int(number)) for domain, server, number in found}


def _like(prefix: str) -> str:
    return prefix.replace("_", "\\_") + "%"
