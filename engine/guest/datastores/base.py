"""What the agent asks of a database software: make its data, configure it, run it, and say how it is.

Every method blocks, bounds its own waiting, and ensures: called again it leaves what one call leaves. Nothing here
starts, watches or ends processes: that is `engine/guest/database.py`.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
from pathlib import Path
from typing import Any, ClassVar, Protocol

import msgspec

from engine.guest.desired import write_durably
from engine.messages import GuestUser

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
    """Where one database lives: the address it listens on, its agent's directory, its volume."""

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


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a configuration is made from. `ram` in MiB, `volume` in bytes; overrides go first."""

    ram: int
    volume: int
    port: int
    read_only: bool
    overrides: dict[str, str]


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

    def role_and_position(self, port: int) -> tuple[str, str]:
        """`primary` or `replica`, and how far its log of changes is."""
        ...

    def close(self) -> None:
        """Let go of what `probe` keeps open."""
        ...


def run_program(command: list[str], *, cwd: Path, content: bytes | None = None) -> str:
    """Run a program to its end and yield what it printed. Raises `DatastoreError` with its last words."""
    name = Path(command[0]).name
    try:
        done = subprocess.run(
            command,
            input=content,
            cwd=cwd,
            env=environment(),
            capture_output=True,
            timeout=INSTALL_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DatastoreError("install_timeout", f"{name} took over {INSTALL_TIMEOUT:g} s", transient=True) from error
    except OSError as error:
        raise DatastoreError("program_failed", f"{command[0]} could not be started: {error}") from error
    if done.returncode != 0:
        words = (done.stderr or done.stdout).decode(errors="replace").strip()[-2000:]
        raise DatastoreError("program_failed", f"{name} ended with {done.returncode}: {words}", transient=True)
    return done.stdout.decode(errors="replace")


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
