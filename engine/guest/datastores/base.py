"""What the agent asks of a database software: make its data, configure it, run it, and say how it is.

Every method blocks, bounds its own waiting, and ensures: called again it leaves what one call leaves. Nothing here
starts, watches or ends processes: that is `engine/guest/database.py`.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol
from uuid import UUID

import msgspec

from engine.guest.desired import write_durably
from engine.guest.membership import Membership
from engine.messages import GuestUser, ReplicationSource

ADMIN = "holdfast"  # the agent's own account in every database; tenants may not take the name
INSTALL_TIMEOUT = 300.0
CONNECT_TIMEOUT = 5


class DatastoreError(Exception):
    """A database could not be brought to where it should be; `transient` if trying again may help."""

    def __init__(self, code: str, message: str, *, transient: bool = False) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.transient = transient


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where one database lives: whose it is, the address it listens on, its agent's directory, its volume."""

    instance_id: UUID
    address: str
    directory: Path
    volume: Path

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.volume / "data"

    @property
    def log(self) -> Path:
        """The database's own log."""
        return self.directory / "database.log"

    @property
    def password_file(self) -> Path:
        """Where the password of the agent's account lies: beside the data that know it, whatever becomes of the rest.

        Made once, at random, readable by its owner alone.
        """
        file = self.volume / "admin.password"
        if not file.exists():
            before = self.directory / "admin.password"  # where older agents kept it
            write_durably(file, before.read_bytes() if before.exists() else secrets.token_urlsafe(32).encode())
        return file

    def admin_password(self) -> str:
        """The password of the agent's account."""
        return self.password_file.read_text()

    @property
    def source_password_file(self) -> Path:
        """Where a replica keeps the password by which it follows its source; as its datastore wants it written."""
        return self.volume / "source.password"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a configuration is made from. `ram` in MiB, `volume` in bytes; overrides go first.

    `read_only`: the volume is full. `membership`: whom it follows, who may follow it, and whether tenants may write.
    """

    ram: int
    volume: int
    port: int
    read_only: bool
    overrides: dict[str, str]
    membership: Membership = Membership()


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a database is. `position`: what it has applied, or written. The rest is said of replicas alone."""

    role: str  # `primary` or `replica`, as the database itself has it
    position: str
    received: str | None = None
    link: bool | None = None
    lag_bytes: int | None = None
    lag_seconds: float | None = None


class Replication(Protocol):
    """What one database software can do about replication. Where nothing else is said, the database answers at `port`.

    A source's accounts and slots for replicas are named `membership.account(replica)`.
    """

    can_be_synchronous: ClassVar[bool]

    def can_be_followed(self, port: int) -> bool:
        """Whether it runs with what a source needs; else it must be restarted."""
        ...

    def admit(self, port: int, replica: str, address: str, password: str) -> None:
        """The account named `replica` may follow from this address; what it needs from now on is kept for it."""
        ...

    def dismiss(self, port: int, replica: str) -> None:
        """No account, and nothing kept, of this name."""
        ...

    def forget(self, port: int) -> None:
        """It is in no set any more: what it has logged for others is of no use."""
        ...

    def accounts(self, port: int) -> set[str]:
        """The names of all accounts and slots that are made for replicas."""
        ...

    def configure(self, port: int, settings: Settings) -> None:
        """Take on what `write_configuration` has written of the membership, without a restart."""
        ...

    def fetch(self, data: Path, source: ReplicationSource, user: str, password: str) -> None:
        """Make a data directory for a replica of this source. Nothing runs."""
        ...

    def load(self, port: int, source: ReplicationSource, user: str, password: str) -> None:
        """Once it runs for the first time: it has the source's data, as far as `fetch` has not brought them."""
        ...

    def remember(self, user: str, password: str) -> None:
        """Keep the password by which it follows, for its datastore to read."""
        ...

    def follow(self, port: int, source: ReplicationSource, user: str, password: str) -> None:
        """It follows this source from where it is, and is connected to it. Raises `DatastoreError`."""
        ...

    def diverged(self, port: int, source: ReplicationSource, user: str, password: str) -> str | None:
        """What it has that the source has not, in words; None if it can follow as it is."""
        ...

    def rewind(self, source: ReplicationSource, user: str, password: str) -> None:
        """Take the data back to where the source can be followed from. Nothing runs. Raises `DatastoreError`."""
        ...

    def promote(self, port: int) -> None:
        """It follows nobody any more, and nothing of that is left."""
        ...

    def progress(self, port: int) -> Progress:
        """How far it is."""
        ...

    def reached(self, port: int, position: str) -> bool:
        """Whether all up to the position is applied."""
        ...

    def trim(self, port: int, settings: Settings) -> None:
        """Keep no more for replicas than the volume has room for, where the database does not see to that itself."""
        ...

    def prepare_handover(self, port: int) -> None:
        """Do while tenants still write what would hold up `close_tenants`."""
        ...

    def close_tenants(self, port: int) -> bool:
        """Tenants cannot write from now on, and what they had begun is undone. False: it must be restarted for that."""
        ...

    def open_tenants(self, port: int) -> None:
        """Tenants can write again."""
        ...


class Datastore(Protocol):
    """One database software in one version, at one place."""

    default_port: ClassVar[int]
    parameters: ClassVar[frozenset[str]]
    stop_signals: ClassVar[tuple[tuple[signal.Signals, float], ...]]  # the gentlest first, seconds to wait for each
    place: Place

    def programs(self) -> tuple[Path, ...]:
        """What must be executable. Raises `DatastoreError` if the version is not on this machine."""
        ...

    def version(self) -> str:
        """The version of the programs, as exact as they know it."""
        ...

    def install(self, data: Path) -> None:
        """Make a data directory where there is none yet, not necessarily on disk when this returns."""
        ...

    def configuration(self) -> Path:
        """The configuration file. `command` names it, by which the process is known again."""
        ...

    def write_configuration(self, settings: Settings) -> None:
        """Write all that the process reads when it starts."""
        ...

    def command(self) -> list[str]:
        """What runs the database in the foreground."""
        ...

    def probe(self, port: int) -> bool:
        """Whether it answers a query."""
        ...

    def create(
        self, port: int, databases: list[dict[str, Any]], users: list[GuestUser], root_password: str | None
    ) -> None:
        """Make databases, users and the root account. Passwords go out hashed, never in clear."""
        ...

    def set_read_only(self, port: int, read_only: bool) -> None:
        """Refuse writes of tenants, or take them again, now; `write_configuration` makes it last over a restart."""
        ...

    @property
    def replication(self) -> Replication:
        """What it can do about replication."""
        ...

    def close(self) -> None:
        """Let go of what `probe` keeps open."""
        ...


def run_program(
    command: list[str],
    *,
    cwd: Path,
    content: bytes | None = None,
    timeout: float = INSTALL_TIMEOUT,
    pass_fds: Sequence[int] = (),
) -> str:
    """Run a program to its end and yield what it printed. Raises `DatastoreError` with its last words."""
    name = Path(command[0]).name
    try:
        done = subprocess.run(
            command,
            input=content,
            cwd=cwd,
            env=environment(),
            capture_output=True,
            timeout=timeout,
            pass_fds=pass_fds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DatastoreError("install_timeout", f"{name} took over {timeout:g} s", transient=True) from error
    except OSError as error:
        raise DatastoreError("program_failed", f"{command[0]} could not be started: {error}") from error
    if done.returncode != 0:
        words = (done.stderr or done.stdout).decode(errors="replace").strip()[-2000:]
        raise DatastoreError("program_failed", f"{name} ended with {done.returncode}: {words}", transient=True)
    return done.stdout.decode(errors="replace")


@contextmanager
def secret_file(content: str) -> Iterator[tuple[Path, int]]:
    """A file that lies nowhere, for a program that takes a secret only from a file: its path, and what to pass on."""
    descriptor = os.memfd_create("secret")
    try:
        os.fchmod(descriptor, 0o600)
        os.write(descriptor, content.encode())
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield Path(f"/proc/self/fd/{descriptor}"), descriptor
    finally:
        os.close(descriptor)


def environment() -> dict[str, str]:
    """What database processes see of the agent's environment: as good as nothing, and the mark of their server."""
    kept = {
        name: os.environ[name] for name in ("PATH", "TZ", "LD_LIBRARY_PATH", "HOLDFAST_SERVER") if name in os.environ
    }
    return {"LANG": "C", "LC_ALL": "C", **kept}


def check_programs(programs: tuple[Path, ...]) -> None:
    """Raises `DatastoreError` naming the directory that keeps this user from a program. Root runs none."""
    if os.geteuid() == 0:
        raise DatastoreError("runs_as_root", "databases are not run as root: start the agent with --run-as uid:gid")
    for program in programs:
        if os.access(program, os.X_OK):
            continue
        closed = next((d for d in reversed(program.parents) if not os.access(d, os.X_OK)), None)
        why = f"the directory {closed} is closed to it" if closed else "it is missing or not executable"
        raise DatastoreError(
            "program_unreachable",
            f"user {os.geteuid()} cannot run {program}: {why}; put the programs where this user can reach them, "
            "or run the agent as a user that can",
        )


def clamp(value: float, low: int, high: int) -> int:
    """The whole number nearest to the value within the limits."""
    return int(max(low, min(high, value)))
