"""From a command to a PostgreSQL that answers SQL, beside the same PostgreSQL made by hand.

By hand means: `initdb` with the agent's options, its configuration, `pg_ctl start`, one role, one database, as the user
as whom the agent runs. Both are on disk when they count as made: by hand `initdb` itself syncs. The price of the
command's way, the agent's start, its volume and its credentials are in the figure.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg

from engine.clouds.local.access import unprivileged
from engine.guest.datastores.base import ADMIN, Place, Settings
from engine.guest.datastores.postgresql import PostgreSQL, binaries
from tests.benchmarks.measure import Figure, Pair, Scale, load, median
from tests.support.databases import USER, create_arguments
from tests.support.installation import Installation, Tenant, installation
from tests.support.postgres import free_port

VERSION = "18"
_RAM = 256  # MiB, of the flavor micro
_GIB = 1 << 30


async def create(scale: Scale) -> list[Figure]:
    """create_instance over NATS until the tenant's own user gets an answer."""
    with installation() as made:
        await asyncio.to_thread(made.start)
        client = await made.connect()
        tenant = Tenant(client)
        found = median([await _round(made, tenant) for _ in range(scale.of(5, 3, 1))])
        await client.close()
        await asyncio.to_thread(made.stop)
    return [
        Figure(
            benchmark="create",
            what=f"create_instance to SQL answered, PostgreSQL {VERSION}",
            value=found.value,
            unit="s",
            baseline_what="initdb, pg_ctl start, role and database by hand",
            baseline=found.baseline,
            load=load(),
        )
    ]


async def _round(made: Installation, tenant: Tenant) -> Pair:
    by_hand = await asyncio.to_thread(_by_hand)
    return Pair(await _by_command(tenant), by_hand)


async def _by_command(tenant: Tenant) -> float:
    password = secrets.token_hex(16)
    reference = await tenant.secret(password)
    instance_id = uuid4()
    began = time.monotonic()
    decision = await tenant.send(
        "create_instance", instance_id, create_arguments("bench", "postgresql", VERSION, reference)
    )
    if not decision["accepted"]:
        raise RuntimeError(f"create_instance was refused: {decision}")
    # Waited for, not polled: connections that fail would slow down the database that is being made.
    outcome = await tenant.outcome(decision["command_id"])
    if outcome["outcome"] != "done":
        raise RuntimeError(f"create_instance came to nothing: {outcome}")
    instance = await tenant.query("instances.get", instance_id=str(instance_id))
    await asyncio.to_thread(_answers, instance["address"], instance["port"], password)
    seconds = time.monotonic() - began
    deleted = await tenant.send("delete_instance", instance_id)
    await tenant.outcome(deleted["command_id"])
    return seconds


def _answers(host: str, port: int, password: str, within: float = 120) -> None:
    """Return as soon as SQL is answered over TCP."""
    deadline = time.monotonic() + within
    while True:
        try:
            with psycopg.connect(
                host=host, port=port, user=USER, password=password, dbname="app", connect_timeout=5
            ) as connection:
                connection.execute("SELECT 1")
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


# --- by hand ------------------------------------------------------------------------------------------------------


def _by_hand() -> float:
    folder = binaries(VERSION)
    if folder is None:
        raise RuntimeError(f"PostgreSQL {VERSION} is not on this machine: run make setup")
    with _directory() as directory:
        place = Place(instance_id=UUID(int=1), address="127.0.0.1", directory=directory, volume=directory)
        port = free_port()
        password = place.admin_password()
        PostgreSQL(place, VERSION).write_configuration(
            Settings(ram=_RAM, volume=_GIB, port=port, read_only=False, overrides={})
        )
        for file in directory.iterdir():
            os.chown(file, *_owner())
        # The directory's own file of rules is the one that initdb writes.
        began = time.monotonic()
        _run(
            *(folder / "initdb", "--pgdata", place.data, "--username", ADMIN, "--pwfile", place.password_file),
            *("--encoding=UTF8", "--data-checksums", "--auth=scram-sha-256", "--no-instructions", "--no-locale"),
            *("--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
        )
        try:
            options = f"-c config_file={directory / 'postgresql.conf'}"
            _run(folder / "pg_ctl", "-D", place.data, "-l", place.log, "-w", "-o", options, "start")
            _make_database(port, password)
            _answers("127.0.0.1", port, password)
            return time.monotonic() - began
        finally:
            _run(folder / "pg_ctl", "-D", place.data, "-m", "immediate", "-w", "stop")


def _make_database(port: int, password: str) -> None:
    with psycopg.connect(
        host="127.0.0.1", port=port, user=ADMIN, password=password, dbname="postgres", autocommit=True
    ) as connection:
        verifier = connection.pgconn.encrypt_password(password.encode(), USER.encode(), b"scram-sha-256").decode()
        connection.execute(f"CREATE ROLE {USER} LOGIN PASSWORD '{verifier}'".encode())
        connection.execute(f"CREATE DATABASE app OWNER {USER} TEMPLATE template0".encode())


def _owner() -> tuple[int, int]:
    return unprivileged() or (os.geteuid(), os.getegid())


@contextmanager
def _directory() -> Iterator[Path]:
    """A directory of the user who runs the database."""
    directory = Path(tempfile.mkdtemp(prefix="holdfast-bench-"))
    os.chown(directory, *_owner())
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _run(*argv: str | Path) -> None:
    user, group = _owner()
    who: dict[str, Any] = {"user": user, "group": group, "extra_groups": []} if os.geteuid() == 0 else {}
    done = subprocess.run(
        [str(a) for a in argv], capture_output=True, text=True, timeout=120, check=False, cwd="/", **who
    )
    if done.returncode:
        raise RuntimeError(f"{argv[0]} failed: {done.stdout}{done.stderr}")
