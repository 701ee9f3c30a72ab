"""`holdfast operation cancel|retry|skip|abandon`: commands about an operation that runs, seen through by default.

The end that was asked for is success: a cancelled operation for `cancel`, an abandoned one for `abandon`. Each goes
to the instance that the read model names.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import msgspec
import typer

from engine.cli.arguments import DryRun, OperationId, Wait
from engine.cli.planning import show_plan
from engine.cli.session import Session, run
from engine.cli.waiting import finish
from engine.client import Operation, OperationCancelled, OperationFailed, TaskManager

Reason = Annotated[str | None, typer.Option(help="Kept in the history, for whoever asks why.")]
Publish = Callable[[TaskManager, str], Awaitable[Operation]]


def register(operation: typer.Typer) -> None:
    """Add the commands to `holdfast operation`."""
    for command in (cancel, retry, skip, abandon):
        operation.command()(command)


def cancel(
    context: typer.Context, operation: OperationId, reason: Reason = None, wait: Wait = True, dry_run: DryRun = False
) -> None:
    """End an operation at its next safe point, and undo it."""
    publish: Publish = lambda m, i: m.cancel_operation(operation, reason, instance_id=i)  # noqa: E731
    _intervene(context, operation, "cancel_operation", {"reason": reason}, publish, wait, dry_run)


def retry(
    context: typer.Context, operation: OperationId, reason: Reason = None, wait: Wait = True, dry_run: DryRun = False
) -> None:
    """Try again now what a parked operation owes, or what waits for its next try."""
    publish: Publish = lambda m, i: m.retry_operation(operation, reason, instance_id=i)  # noqa: E731
    _intervene(context, operation, "retry_operation", {"reason": reason}, publish, wait, dry_run)


def skip(
    context: typer.Context,
    operation: OperationId,
    reason: Reason = None,
    by_hand: Annotated[
        bool, typer.Option("--by-hand", help="What it owes was made true by hand; it yields no facts.")
    ] = False,
    fact: Annotated[
        list[str] | None,
        typer.Option(help="A fact of what was made true by hand; repeatable.", metavar="NAME=VALUE"),
    ] = None,
    wait: Wait = True,
    dry_run: DryRun = False,
) -> None:
    """Have a parked operation go on without what it owes: only where it is something's absence, or true by hand."""
    facts = _facts(fact or []) if fact or by_hand else None
    publish: Publish = lambda m, i: m.skip_step(operation, reason, facts, instance_id=i)  # noqa: E731
    _intervene(context, operation, "skip_step", {"reason": reason, "facts": facts}, publish, wait, dry_run)


def abandon(
    context: typer.Context, operation: OperationId, reason: Reason = None, wait: Wait = True, dry_run: DryRun = False
) -> None:
    """End a parked operation where it is: the instance is in ERROR, and what is left is listed."""
    publish: Publish = lambda m, i: m.abandon_operation(operation, reason, instance_id=i)  # noqa: E731
    _intervene(context, operation, "abandon_operation", {"reason": reason}, publish, wait, dry_run)


def _intervene(
    context: typer.Context,
    operation_id: str,
    command: str,
    args: dict[str, Any],
    publish: Publish,
    wait: bool,
    dry_run: bool,
) -> None:
    async def work(session: Session) -> None:
        operation = session.manager.operation(operation_id)
        instance_id = str((await session.queries.get("operations", operation_id=operation.id))["instance_id"])
        if dry_run:
            given = {name: value for name, value in args.items() if value is not None}
            await show_plan(session, command, {"operation_id": operation.id, **given}, instance_id)
            return
        sent = await publish(session.manager, instance_id)
        # Done once the read models know of it, so that what is waited for next is not what was before.
        await sent.done(session.settings.timeout)
        if not wait:
            if session.output.as_json:
                session.output.document({"operation_id": operation.id, "instance_id": instance_id})
            else:
                session.output.line(operation.id)
            return
        await _ended(session, operation, command)

    run(context, work)


async def _ended(session: Session, operation: Operation, command: str) -> None:
    from engine.cli.actions import ended  # noqa: PLC0415 - both register commands

    words = f"{command.replace('_', ' ')} {operation.id}"
    try:
        record = await finish(session, operation, wait=True, words=words)
    except OperationCancelled:
        if command != "cancel_operation":
            raise
        record = await operation.record()
    except OperationFailed as failed:
        if command != "abandon_operation" or failed.code != "abandoned":
            raise
        record = await operation.record()
    session.waits_for = None
    if record is not None:
        await ended(session, record)
        if command == "abandon_operation":
            await _say_what_is_left(session, record)


async def _say_what_is_left(session: Session, record: dict[str, Any]) -> None:
    chosen = {"operation_id": record["id"], "name": "OperationAbandoned"}
    for event in (await session.queries.page("history", filter=chosen, limit=1))[0]:
        session.output.remark(str(event["sentence"]))


def _facts(given: list[str]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for each in given:
        name, mark, value = each.partition("=")
        if not mark:
            raise typer.BadParameter(f"{each}: write NAME=VALUE", param_hint="--fact")
        try:
            facts[name] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            facts[name] = value  # a word, as most are
    return facts
