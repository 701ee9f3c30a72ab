"""The commands that change an instance which exists: each is one command of the engine, waited for by default."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import typer

from engine.cli.arguments import Allowed, DryRun, Instance, Wait
from engine.cli.planning import show_plan
from engine.cli.session import Session, run
from engine.cli.waiting import finish
from engine.client import Operation, QueryFailed, TaskManager

Publish = Callable[[TaskManager, str], Awaitable[Operation]]
_PANEL = "Operations on an instance"


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for command in (
        delete,
        restart,
        reboot,
        stop,
        start,
        resize_volume,
        resize_flavor,
        migrate,
        update_access,
    ):
        app.command(rich_help_panel=_PANEL)(command)
    app.command("rebuild-server", rich_help_panel=_PANEL)(rebuild)  # `rebuild` is of read models


def delete(context: typer.Context, instance: Instance, wait: Wait = True, dry_run: DryRun = False) -> None:
    """Remove an instance and all it holds, also in the middle of another operation."""
    _act(context, instance, "delete_instance", {}, lambda m, i: m.delete_instance(i), wait, dry_run)


def restart(context: typer.Context, instance: Instance, wait: Wait = True, dry_run: DryRun = False) -> None:
    """Restart the database software."""
    _act(context, instance, "restart", {}, lambda m, i: m.restart(i), wait, dry_run)


def reboot(
    context: typer.Context,
    instance: Instance,
    hard: Annotated[bool, typer.Option("--hard", help="Without asking the server's system to shut down.")] = False,
    wait: Wait = True,
    dry_run: DryRun = False,
) -> None:
    """Stop the database, reboot the server, start the database."""
    args = {"hard": True} if hard else {}
    _act(context, instance, "reboot", args, lambda m, i: m.reboot(i, hard=hard), wait, dry_run)


def stop(context: typer.Context, instance: Instance, wait: Wait = True, dry_run: DryRun = False) -> None:
    """Stop the database and its server; the data stay."""
    _act(context, instance, "stop_instance", {}, lambda m, i: m.stop_instance(i), wait, dry_run)


def start(context: typer.Context, instance: Instance, wait: Wait = True, dry_run: DryRun = False) -> None:
    """Start a stopped instance."""
    _act(context, instance, "start_instance", {}, lambda m, i: m.start_instance(i), wait, dry_run)


def resize_volume(
    context: typer.Context,
    instance: Instance,
    size: Annotated[int, typer.Argument(help="New size in GiB; a volume can only grow.", min=1)],
    wait: Wait = True,
    dry_run: DryRun = False,
) -> None:
    """Extend the volume."""
    _act(context, instance, "resize_volume", {"new_size": size}, lambda m, i: m.resize_volume(i, size), wait, dry_run)


def resize_flavor(
    context: typer.Context,
    instance: Instance,
    flavor: Annotated[str, typer.Argument(help="Id or name; see `holdfast flavors`.")],
    wait: Wait = True,
    dry_run: DryRun = False,
) -> None:
    """Give the instance another flavor."""
    publish: Publish = lambda m, i: m.resize_flavor(i, None, flavor)  # noqa: E731
    _act(context, instance, "resize_flavor", {"flavor": flavor}, publish, wait, dry_run)


def migrate(
    context: typer.Context,
    instance: Instance,
    host: Annotated[str | None, typer.Option(help="Host to move to; else the cloud chooses.")] = None,
    wait: Wait = True,
    dry_run: DryRun = False,
) -> None:
    """Move the server to another host."""
    args = {} if host is None else {"host": host}
    _act(context, instance, "migrate", args, lambda m, i: m.migrate(i, host), wait, dry_run)


def rebuild(
    context: typer.Context,
    instance: Instance,
    image: Annotated[str | None, typer.Option(help="Image to make it from; else that it was made from.")] = None,
    snapshot: Annotated[
        bool, typer.Option("--snapshot", help="Keep a snapshot of the volume until the database is healthy again.")
    ] = False,
    wait: Wait = True,
    dry_run: DryRun = False,
) -> None:
    """Make the server anew; databases, users and data stay."""
    args: dict[str, Any] = {} if image is None else {"image_id": image}
    if snapshot:
        args["snapshot"] = True
    _act(context, instance, "rebuild", args, lambda m, i: m.rebuild(i, image, snapshot=snapshot), wait, dry_run)


def update_access(
    context: typer.Context,
    instance: Instance,
    public: Annotated[
        bool | None, typer.Option("--public/--private", help="With or without a floating address.", show_default=False)
    ] = None,
    allow: Allowed = None,
    allow_nobody: Annotated[bool, typer.Option("--allow-nobody", help="Let no network in.")] = False,
    wait: Wait = True,
    dry_run: DryRun = False,
) -> None:
    """Change who can reach the database. What is not said stays; --allow names all networks, not only new ones."""
    if allow and allow_nobody:
        raise typer.BadParameter("either some networks are let in, or nobody is", param_hint="--allow-nobody")
    args: dict[str, Any] = {} if public is None else {"public": public}
    if allow or allow_nobody:
        args["allowed_cidrs"] = allow or []
    _act(context, instance, "update_access", args, lambda m, i: m.update_access(i, args), wait, dry_run)


def _act(
    context: typer.Context,
    instance: str,
    command: str,
    args: dict[str, Any],
    publish: Publish,
    wait: bool,
    dry_run: bool,
) -> None:
    async def work(session: Session) -> None:
        instance_id = await session.instance_id(instance)
        if dry_run:
            await show_plan(session, command, args, instance_id)
            return
        operation = await publish(session.manager, instance_id)
        words = f"{command.removesuffix('_instance').replace('_', ' ')} {instance}"
        record = await finish(session, operation, wait=wait, words=words)
        if record is not None:
            await ended(session, record)

    run(context, work)


async def ended(session: Session, record: dict[str, Any]) -> None:
    """Say how an operation ended and what its instance is now."""
    instance = await _instance(session, str(record["instance_id"]))
    if session.output.as_json:
        session.output.document({"operation": record, "instance": instance})
        return
    took = "" if record.get("duration") is None else f" after {record['duration']:.1f} s"
    now = "" if instance is None else f": {instance['name']} is {instance['status']}{_where(instance)}"
    session.output.line(f"{record['command']} {record['outcome']}{took}{now}")


async def _instance(session: Session, instance_id: str) -> dict[str, Any] | None:
    try:
        return await session.queries.get("instances", instance_id=instance_id)
    except QueryFailed as error:
        if error.code != "not_found":
            raise
        return None


def _where(instance: dict[str, Any]) -> str:
    address = instance.get("address")
    return f" at {address}:{instance['port']}" if address and instance.get("port") else ""
