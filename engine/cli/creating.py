"""`holdfast create`: an instance from one line, with its passwords asked for, read, or made.

Guarantees that no password stands in an argument or is printed, but for those that `--generate` makes, which are
printed once.
"""

from __future__ import annotations

import os
import secrets
import string
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID, uuid4

import msgspec
import typer

from engine.cli.actions import ended
from engine.cli.arguments import Allowed, DryRun, Wait
from engine.cli.planning import show_plan
from engine.cli.session import Session, run
from engine.cli.waiting import finish

_ALPHABET = string.ascii_letters + string.digits
_LENGTH = 24
_DRY_RUN = "dry-run"  # stands for a reference where nothing is done


class Locality(StrEnum):
    """The policies of server groups."""

    AFFINITY = "affinity"
    ANTI_AFFINITY = "anti-affinity"


class Passwords(msgspec.Struct, frozen=True, kw_only=True):
    """Where passwords come from: lines of a file, a variable or standard input, in the order of who needs one."""

    file: Path | None = None
    variable: str | None = None
    stdin: bool = False
    generate: bool = False


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command(rich_help_panel="Operations on an instance")(create)


def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the instance.", show_default=False)],
    datastore: Annotated[str, typer.Option(help="Database software; see `holdfast datastores`.", show_default=False)],
    flavor: Annotated[str, typer.Option(help="Id or name; see `holdfast flavors`.", show_default=False)],
    version: Annotated[str | None, typer.Option(help="The datastore's version; else the newest.")] = None,
    volume: Annotated[int, typer.Option(help="Size of the volume in GiB.", min=1)] = 1,
    volume_type: Annotated[str | None, typer.Option(help="The cloud's volume type.")] = None,
    database: Annotated[list[str] | None, typer.Option(help="Database to make; repeatable.")] = None,
    user: Annotated[
        list[str] | None, typer.Option(help="User to make, as NAME[:DATABASE,...]; repeatable.", metavar="USER")
    ] = None,
    root: Annotated[bool, typer.Option("--root", help="Enable the superuser, with a password.")] = False,
    password_file: Annotated[
        Path | None, typer.Option(help="File with the passwords: a line for each --user, then for --root.")
    ] = None,
    password_env: Annotated[str | None, typer.Option(help="Environment variable with these lines.")] = None,
    password_stdin: Annotated[bool, typer.Option("--password-stdin", help="Read these lines from stdin.")] = False,
    generate: Annotated[bool, typer.Option("--generate", help="Make the passwords, and print them once.")] = False,
    override: Annotated[
        list[str] | None, typer.Option(help="Datastore parameter; repeatable.", metavar="NAME=VALUE")
    ] = None,
    region: Annotated[str | None, typer.Option(help="Where it lies for life; see `holdfast regions`.")] = None,
    zone: Annotated[str | None, typer.Option(help="Availability zone.")] = None,
    network: Annotated[str | None, typer.Option(help="The tenant's network, by its id.")] = None,
    public: Annotated[bool, typer.Option("--public", help="With a floating address.")] = False,
    allow: Allowed = None,
    locality: Annotated[
        Locality | None, typer.Option(help="Where later replicas lie: on the same host, or never.")
    ] = None,
    image: Annotated[str | None, typer.Option(help="Image of the server; else the datastore version's.")] = None,
    keep_on_failure: Annotated[bool, typer.Option("--keep-on-failure", help="Keep what was made, to look at.")] = False,
    instance_id: Annotated[UUID | None, typer.Option("--id", help="UUID of the instance; made if not given.")] = None,
    wait: Wait = True,
    dry_run: DryRun = False,
) -> None:
    """Make an instance."""
    users = [_user(each) for each in user or ()]
    passwords = Passwords(file=password_file, variable=password_env, stdin=password_stdin, generate=generate)
    given: dict[str, Any] = {
        "name": name,
        "flavor": flavor,
        "datastore_manager": datastore,
        "ds_version": version,
        "volume_size": volume,
        "volume_type": volume_type,
        "databases": [{"name": each} for each in database or ()],
        "overrides": dict(_override(each) for each in override or ()) or None,
        "region": region,
        "availability_zone": zone,
        "nics": [network] if network else None,
        "locality": locality.value if locality else None,
        "access": _access(public, allow),
        "keep_on_failure": keep_on_failure,
    }
    if dry_run:
        wanted = {**given, "image_id": image}
        run(context, lambda session: _plan(session, wanted, users, root, instance_id))
        return
    needed = [each["name"] for each in users] + (["the superuser"] if root else [])
    known = _passwords(needed, passwords)
    for each, password in zip(users, known, strict=False):
        each["password"] = password
    root_password = known[-1] if root else None

    async def work(session: Session) -> None:
        operation = await session.manager.create_instance(
            instance_id or uuid4(),
            image_id=image,
            packages=None,
            users=users,
            root_password=root_password,
            **given,
        )
        made = dict(zip(["root" if n == "the superuser" else n for n in needed], known, strict=True))
        if generate:
            # Before the wait, which may be interrupted: afterwards nobody can tell them any more.
            session.output.also = {"passwords": made}
            for who, password in made.items():
                session.output.line(f"password of {who}: {password}")
        record = await finish(session, operation, wait=wait, words=f"create {name}")
        if record is not None:
            await ended(session, record)

    run(context, work)


async def _plan(
    session: Session, given: dict[str, Any], users: list[dict[str, Any]], root: bool, instance_id: UUID | None
) -> None:
    renamed = {"datastore_manager": "datastore", "ds_version": "datastore_version"}
    args = {renamed.get(key, key): value for key, value in given.items() if value is not None}
    args["users"] = [each | {"password_ref": _DRY_RUN} for each in users]
    if root:
        args["root_password_ref"] = _DRY_RUN
    await show_plan(session, "create_instance", args, None if instance_id is None else str(instance_id))


def _access(public: bool, allow: list[str] | None) -> dict[str, Any] | None:
    """What is said of it; None where nothing is, which leaves it to the cloud."""
    said: dict[str, Any] = {"public": True} if public else {}
    return (said | ({"allowed_cidrs": allow} if allow else {})) or None


def _user(text: str) -> dict[str, Any]:
    name, _, databases = text.partition(":")
    return {"name": name, "databases": [each for each in databases.split(",") if each]}


def _override(text: str) -> tuple[str, str]:
    name, mark, value = text.partition("=")
    if not mark or not name:
        raise typer.BadParameter(f"{text}: write NAME=VALUE", param_hint="--override")
    return name, value


def _passwords(needed: list[str], source: Passwords) -> list[str]:
    """A password for each that needs one."""
    named = [source.file is not None, source.variable is not None, source.stdin, source.generate]
    if sum(named) > 1:
        raise typer.BadParameter("passwords come from one place: name one of the options", param_hint="--password-...")
    if not needed:
        return []
    if source.generate:
        return ["".join(secrets.choice(_ALPHABET) for _ in range(_LENGTH)) for _ in needed]
    if any(named):
        return _lines(needed, source)
    if not sys.stdin.isatty():
        raise typer.BadParameter(
            "nobody can be asked for passwords here; use --password-file, --password-env, --password-stdin "
            "or --generate",
            param_hint="--user",
        )
    return [
        str(typer.prompt(f"Password of {who}", hide_input=True, confirmation_prompt=True, err=True)) for who in needed
    ]


def _lines(needed: list[str], source: Passwords) -> list[str]:
    if source.file is not None:
        try:
            text: str | None = source.file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise typer.BadParameter(f"cannot be read: {error}", param_hint="--password-file") from None
    elif source.variable is not None:
        text = os.environ.get(source.variable)
    else:
        text = sys.stdin.read()
    lines = (text or "").splitlines()
    if len(lines) != len(needed) or not all(lines):
        raise typer.BadParameter(
            f"there are {len(lines)} lines of passwords, wanted is one for each of: {', '.join(needed)}",
            param_hint="--password-...",
        )
    return lines
