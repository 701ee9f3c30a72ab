"""One call of the program: where the engine is, for whom we act, and how every error becomes a line and an exit code.

Guarantees that a call ends: with its answer, or with an error that says what to do next. An interrupted wait leaves
the operation running, and says so.
"""

from __future__ import annotations

import asyncio
import getpass
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import structlog
import typer

from engine.broker import BrokerSettings
from engine.cli.exits import CliError, Exit, exit_of
from engine.cli.output import Output
from engine.client import ClientError, Connection, Context, Queries, TaskManager
from engine.credentials import USERS, inbox_prefix
from engine.state import StateDirectory, default_directory

PUBLISHER, OPERATOR = "publisher", "operator"  # users of the embedded broker
_CALL = 10.0  # seconds for one query
_CONNECT = 10.0


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The global options."""

    state: Path | None = None
    nats: str | None = None
    seed: Path | None = None
    creds: Path | None = None
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    project: str = "default"
    as_json: bool = False
    timeout: float | None = None


class Session:
    """What a command's code works with."""

    def __init__(self, settings: Settings, output: Output, manager: TaskManager) -> None:
        self.settings = settings
        self.output = output
        self.manager = manager
        self.waits_for: str | None = None  # the operation that goes on when we are interrupted

    @property
    def queries(self) -> Queries:
        """The read models."""
        return self.manager.queries

    async def instance(self, name_or_id: str) -> dict[str, Any]:
        """The record of the instance named; one that is deleted only by its id."""
        if (known := _as_id(name_or_id)) is not None:
            return await self.queries.get("instances", instance_id=known)
        found, _ = await self.queries.page("instances", filter={"name": name_or_id}, limit=10)
        if not found:
            raise CliError(
                Exit.NOT_FOUND,
                "not_found",
                f"no instance is named {name_or_id} in project {self.settings.project}; see `holdfast list`",
            )
        if len(found) > 1:
            ids = ", ".join(str(each["id"]) for each in found)
            raise CliError(
                Exit.USAGE, "ambiguous_name", f"several instances are named {name_or_id}; give the id of one: {ids}"
            )
        return found[0]

    async def instance_id(self, name_or_id: str) -> str:
        """The id of the instance named; an id is taken as it is."""
        return _as_id(name_or_id) or str((await self.instance(name_or_id))["id"])


def run(context: typer.Context, work: Callable[[Session], Awaitable[None]], user: str = PUBLISHER) -> None:
    """Do a command's work on a connection as the user, and end the program as it ended."""
    settings: Settings = context.obj
    output = Output(as_json=settings.as_json)
    holder: list[Session] = []
    _quiet()

    async def connected() -> None:
        async with opened(settings, output, user=user) as session:
            holder.append(session)
            await work(session)

    try:
        asyncio.run(connected())
    except ClientError as error:
        about = {"operation_id": holder[0].waits_for} if holder and holder[0].waits_for else {}
        output.error(error.code, error.message, **about)
        raise typer.Exit(exit_of(error)) from None
    except KeyboardInterrupt:
        going = holder[0].waits_for if holder else None
        if going is not None:
            output.error(
                "interrupted", f"operation {going} goes on; see it with `holdfast operation watch {going}`",
                operation_id=going,
            )  # fmt: skip
        raise typer.Exit(Exit.INTERRUPTED) from None


@asynccontextmanager
async def opened(
    settings: Settings, output: Output, timeout: float = _CONNECT, user: str = PUBLISHER
) -> AsyncIterator[Session]:
    """A session on a connection of its own, as one of the embedded broker's users."""
    connection = _connection(settings, min(timeout, settings.timeout or timeout), user)
    try:
        context = Context(project=settings.project, actor=_actor())
        connection.timeout = settings.timeout or _CALL
        yield Session(settings, output, TaskManager(context, connection))
    finally:
        await connection.close()


def _connection(settings: Settings, timeout: float, user: str) -> Connection:
    files = (settings.seed, settings.creds, settings.tls_ca, settings.tls_cert, settings.tls_key)
    if settings.nats is None:
        if any(each is not None for each in files):
            raise CliError(
                Exit.USAGE, "invalid_argument", "--seed, --creds and --tls-* belong to a broker; name it by --nats"
            )
        return Connection.local(StateDirectory(settings.state or default_directory()), user, timeout=timeout)
    seed_of = settings.seed.stem if settings.seed is not None else None
    broker = BrokerSettings(
        url=settings.nats,
        seed_file=settings.seed,
        creds_file=settings.creds,
        tls_ca=settings.tls_ca,
        tls_cert=settings.tls_cert,
        tls_key=settings.tls_key,
    )
    # Seeds of an embedded broker bear their user's name, and each user is answered in a place of its own.
    return Connection(broker, inbox_prefix=inbox_prefix(seed_of) if seed_of in USERS else None, timeout=timeout)


def _quiet() -> None:
    """What the connection logs below an error is told by the call's own ending."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )


def _actor() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def _as_id(text: str) -> str | None:
    try:
        return str(UUID(text))
    except ValueError:
        return None
