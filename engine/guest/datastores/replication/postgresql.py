"""PostgreSQL's streaming replication: one slot and one account for each replica, positions as `timeline:LSN`.

A source that is fenced is a standby without a source: then nobody writes, whatever their rights, whoever starts it.
Making it writable again is a promotion like any other and begins a timeline, which all replicas follow by themselves.
Replicas copy every byte, accounts and passwords included; so the agent's own password is set again at each promotion.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import psycopg
from psycopg import sql

from engine.guest.datastores.base import (
    ADMIN,
    CONNECT_TIMEOUT,
    DatastoreError,
    Place,
    Progress,
    Settings,
    clamp,
    run_program,
    secret_file,
)
from engine.guest.desired import sync_directory, write_durably
from engine.guest.membership import USER_PREFIX, Role
from engine.messages import ReplicationSource

if TYPE_CHECKING:
    from engine.guest.datastores.postgresql import PostgreSQL

_MIB = 1 << 20
_SEED_TIMEOUT = 6 * 3600.0
_LINK_TIMEOUT = 15.0  # a receiver that fails tries again after 5 s
_PROMOTE_TIMEOUT = 60  # seconds
_NEEDED = ("max_connections", "max_worker_processes", "max_wal_senders", "max_prepared_transactions",
           "max_locks_per_transaction")  # fmt: skip # a standby with less of one than its source does not start
_DEFAULTS = {"max_worker_processes": 8, "max_prepared_transactions": 0, "max_locks_per_transaction": 64}
_REWIND = (
    "pg_ls_dir(text, boolean, boolean), pg_stat_file(text, boolean), pg_read_binary_file(text),"
    " pg_read_binary_file(text, bigint, bigint, boolean)"
)
_PROGRESS = """
SELECT r, CASE WHEN r
    THEN greatest(w.received_tli, c.timeline_id, m.min_recovery_end_timeline)
    ELSE ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int END,
  CASE WHEN r THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END::text,
  CASE WHEN r THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) END::text,
  w.status = 'streaming',
  greatest(pg_wal_lsn_diff(greatest(w.latest_end_lsn, pg_last_wal_receive_lsn()), pg_last_wal_replay_lsn()), 0)::bigint,
  CASE WHEN pg_last_wal_replay_lsn() >= greatest(w.latest_end_lsn, pg_last_wal_receive_lsn()) THEN 0
    ELSE extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) END::float8
FROM pg_is_in_recovery() r, pg_control_checkpoint() c, pg_control_recovery() m LEFT JOIN pg_stat_wal_receiver w ON true
"""


def replication_lines(place: Place, settings: Settings, sized: dict[str, str], programs: Path) -> dict[str, str]:
    """What the configuration says of replication. A member that may not write is marked as a standby as well."""
    membership = settings.membership
    names = ", ".join(sorted(membership.replicas))
    synchronous = membership.role is Role.SOURCE and membership.synchronous and bool(names)
    lines = {
        "wal_level": "replica",
        "max_wal_senders": "10",
        "max_replication_slots": "10",
        "hot_standby": "on",
        "wal_keep_size": f"{clamp(settings.volume / _MIB / 64, 16, 1024)}MB",
        # A replica that is away for longer than this lasts is seeded again; the volume of its source does not fill.
        "max_slot_wal_keep_size": f"{clamp(settings.volume / _MIB / 4, 64, 65536)}MB",
        "wal_receiver_timeout": "10s",
        "wal_sender_timeout": "10s",
        "synchronous_standby_names": f"ANY 1 ({names})" if synchronous else "",
        "primary_conninfo": "",
        "primary_slot_name": "",
    }
    if synchronous:
        lines["synchronous_commit"] = "remote_apply"
    if membership.source is not None:
        lines["primary_conninfo"] = _conninfo(membership.source, membership.user, place.source_password_file)
        lines["primary_slot_name"] = membership.user
    if not membership.writable:
        write_durably(place.data / "standby.signal", b"")
        told = run_program([str(programs / "pg_controldata"), str(place.data)], cwd=place.data)
        for name in _NEEDED:
            label = name.replace("transactions", "xacts").replace("transaction", "xact")
            found = re.search(rf"^{label} setting:\s+(\d+)", told, re.MULTILINE)
            has = int(lines.get(name) or sized.get(name) or _DEFAULTS[name])
            lines[name] = str(max(has, int(found.group(1)) if found else 0))
    return lines


class PostgreSQLReplication:
    """What one PostgreSQL can do about replication."""

    can_be_synchronous: ClassVar[bool] = True

    def __init__(self, database: PostgreSQL) -> None:
        self._database = database
        self._place = database.place

    def can_be_followed(self, port: int) -> bool:
        level, idents = self._database.ask(port, "SELECT current_setting('wal_level'), current_setting('ident_file')")
        return level != "minimal" and str(idents).startswith(str(self._place.directory))  # else of an older agent

    def admit(self, port: int, replica: str, address: str, password: str) -> None:  # noqa: ARG002 - it is in the hba file
        role = sql.Identifier(replica)
        with _Errors(), self._database.connect(port) as connection:
            if connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (replica,)).fetchone() is None:
                connection.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(role))
            verifier = connection.pgconn.encrypt_password(password.encode(), replica.encode(), b"scram-sha-256")
            connection.execute(
                sql.SQL("ALTER ROLE {} LOGIN REPLICATION PASSWORD {}").format(role, sql.Literal(verifier.decode()))
            )
            # What pg_rewind reads by; they are files of the data directory, which a base backup contains anyway.
            connection.execute(sql.SQL(f"GRANT EXECUTE ON FUNCTION {_REWIND} TO {{}}").format(role))
            if connection.execute("SELECT 1 FROM pg_replication_slots WHERE slot_name = %s", (replica,)).rowcount == 0:
                connection.execute("SELECT pg_create_physical_replication_slot(%s, true)", (replica,))

    def dismiss(self, port: int, replica: str) -> None:
        with _Errors(), self._database.connect(port) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = %s", (replica,)
            )
            connection.execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s", (replica,)
            )
            known = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (replica,)).rowcount > 0
            if known and self._writable(connection):
                connection.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(replica)))
                connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(replica)))

    def forget(self, port: int) -> None:
        """Nothing: a slot or a backlog that nobody reads goes by itself."""

    def accounts(self, port: int) -> set[str]:
        with _Errors(), self._database.connect(port) as connection:
            found = connection.execute(
                "SELECT rolname FROM pg_roles WHERE NOT pg_is_in_recovery()"  # else they are the source's
                " UNION SELECT slot_name FROM pg_replication_slots"
            ).fetchall()
        return {name for (name,) in found if name.startswith(USER_PREFIX)}

    def configure(self, port: int, settings: Settings) -> None:  # noqa: ARG002 - it reads them from its files
        with _Errors(), self._database.connect(port) as connection:
            connection.execute("SELECT pg_reload_conf()")

    def fetch(self, data: Path, source: ReplicationSource, user: str, password: str) -> None:
        with secret_file(f"*:*:*:{user}:{password}\n") as (file, descriptor):
            run_program(
                [
                    str(self._database.bin / "pg_basebackup"), "--dbname", _conninfo(source, user, file),
                    "--pgdata", str(data), "--wal-method=stream", "--checkpoint=fast", "--slot", user, "--no-sync",
                    "--no-password",
                ],
                cwd=self._place.volume,
                timeout=_SEED_TIMEOUT,
                pass_fds=(descriptor,),
            )  # fmt: skip
        data.chmod(0o700)

    def load(self, port: int, source: ReplicationSource, user: str, password: str) -> None:
        """Nothing: `fetch` has brought all."""

    def remember(self, user: str, password: str) -> None:
        write_durably(self._place.source_password_file, f"*:*:*:{user}:{password}\n".encode())

    def follow(self, port: int, source: ReplicationSource, user: str, password: str) -> None:  # noqa: ARG002
        with _Errors(), self._database.connect(port) as connection:
            connection.execute("SELECT pg_reload_conf()")
            # A receiver that is at work with other words is started anew.
            deadline = time.monotonic() + _LINK_TIMEOUT
            while True:
                linked = connection.execute(
                    "SELECT 1 FROM pg_stat_wal_receiver WHERE status = 'streaming' AND sender_host = %s"
                    " AND sender_port = %s AND slot_name = %s",
                    (source.address, source.port, user),
                ).fetchone()
                if linked is not None:
                    return
                if time.monotonic() > deadline:
                    raise DatastoreError(
                        "source_unreachable",
                        f"no stream from {source.address}:{source.port} after {_LINK_TIMEOUT:g} s: see that it runs, "
                        "has admitted this replica and can be reached from here",
                        transient=True,
                    )
                time.sleep(0.05)

    def diverged(self, port: int, source: ReplicationSource, user: str, password: str) -> str | None:
        own_id, newest = self._database.ask(
            port,
            "SELECT system_identifier::text,"
            " (SELECT max(name) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{8}.history$') FROM pg_control_system()",
        )
        timeline, lsn = _parsed(self.progress(port).position)
        timeline = max(timeline, int(newest[:8], 16) if newest else 0)
        with (
            _Errors(),
            psycopg.connect(
                _conninfo(source, user, None), password=password, replication="true", autocommit=True
            ) as connection,
        ):
            their_id, their_timeline, their_lsn, _ = _told(connection, "IDENTIFY_SYSTEM")
            if own_id != their_id:
                return f"it is another database: its system identifier is {own_id}, the source's {their_id}"
            if timeline == int(their_timeline):
                ends = _lsn(their_lsn)
            else:
                history = _told(connection, f"TIMELINE_HISTORY {their_timeline}")[1] if int(their_timeline) > 1 else ""
                forks = dict(re.findall(r"^\s*(\d+)\s+([0-9A-F]+/[0-9A-F]+)", history, re.MULTILINE))
                if str(timeline) not in forks:
                    return f"the source, on timeline {their_timeline}, has no timeline {timeline}"
                ends = _lsn(forks[str(timeline)])
        if lsn > ends:
            return f"it has {lsn - ends} bytes of timeline {timeline} that the source has not"
        return None

    def rewind(self, source: ReplicationSource, user: str, password: str) -> None:
        with secret_file(f"*:*:*:{user}:{password}\n") as (file, descriptor):
            run_program(
                [
                    str(self._database.bin / "pg_rewind"), "--target-pgdata", str(self._place.data), "--no-sync",
                    "--source-server", f"{_conninfo(source, user, file)} dbname=postgres",
                    "--config-file", str(self._database.configuration()),
                ],
                cwd=self._place.volume,
                timeout=_SEED_TIMEOUT,
                pass_fds=(descriptor,),
            )  # fmt: skip

    def promote(self, port: int) -> None:
        self._place.source_password_file.unlink(missing_ok=True)
        sync_directory(self._place.volume)
        self.open_tenants(port)

    def progress(self, port: int) -> Progress:
        standby, timeline, position, received, link, lag, seconds = self._database.ask(port, _PROGRESS)
        if not standby:
            return Progress(role="primary", position=f"{timeline}:{position}")
        return Progress(
            role="replica",
            position=f"{timeline}:{position}",
            received=f"{timeline}:{received}",
            link=bool(link),
            lag_bytes=lag,
            lag_seconds=None if seconds is None else round(max(seconds, 0.0), 3),
        )

    def reached(self, port: int, position: str) -> bool:
        return _parsed(self.progress(port).position) >= _parsed(position)

    def trim(self, port: int, settings: Settings) -> None:
        """Nothing: it is bounded by the configuration."""

    def prepare_handover(self, port: int) -> None:
        with _Errors(), self._database.connect(port) as connection:
            connection.execute("CHECKPOINT")  # else the one at its end would take as long, with tenants shut out

    def close_tenants(self, port: int) -> bool:
        return self.progress(port).role == "replica"

    def open_tenants(self, port: int) -> None:
        with _Errors(), self._database.connect(port) as connection:
            if not self._writable(connection):
                (done,) = connection.execute("SELECT pg_promote(true, %s)", (_PROMOTE_TIMEOUT,)).fetchone() or (False,)
                if not done:
                    raise DatastoreError(
                        "promotion_slow", f"no promotion within {_PROMOTE_TIMEOUT} s: ask again", transient=True
                    )
            # It is left of a fence that was taken back before the database was started anew.
            (self._place.data / "standby.signal").unlink(missing_ok=True)
            sync_directory(self._place.data)
            own = self._place.admin_password().encode()
            verifier = connection.pgconn.encrypt_password(own, ADMIN.encode(), b"scram-sha-256").decode()
            connection.execute(
                sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(ADMIN), sql.Literal(verifier))
            )

    @staticmethod
    def _writable(connection: psycopg.Connection[Any]) -> bool:
        return connection.execute("SELECT pg_is_in_recovery()").fetchone() == (False,)


class _Errors:
    """What the driver raises becomes a `DatastoreError`."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)):
            raise DatastoreError("database_error", str(error).strip(), transient=True) from error
        if isinstance(error, psycopg.Error):
            raise DatastoreError("database_refused", str(error).strip()) from error


def _told(connection: psycopg.Connection[Any], command: str) -> list[str]:
    """The one row that a replication command answers."""
    result = connection.pgconn.exec_(command.encode())
    if result.ntuples != 1:
        raise DatastoreError("database_refused", f"{command}: {result.error_message.decode().strip()}", transient=True)
    return [bytes(result.get_value(0, column) or b"").decode() for column in range(result.nfields)]


def _conninfo(source: ReplicationSource, user: str, passfile: Path | None) -> str:
    kept = f" passfile='{passfile}'" if passfile is not None else ""
    return (
        f"host={source.address} port={source.port} user={user} application_name={user} sslmode=disable"
        f" gssencmode=disable connect_timeout={CONNECT_TIMEOUT} tcp_user_timeout={CONNECT_TIMEOUT * 1000}{kept}"
    )


def _parsed(position: str) -> tuple[int, int]:
    timeline, _, lsn = position.partition(":")
    return int(timeline), _lsn(lsn)


def _lsn(text: str) -> int:
    high, low = text.split("/")
    return (int(high, 16) << 32) + int(low, 16)
