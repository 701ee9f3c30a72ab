"""`holdfast doctor`: one page for whoever is woken at night, with the commands that get things on.

Guarantees an exit code of 1 when something needs a person, and 0 only when everything was looked at and needs none.
It acts as the broker's user `operator` and looks at all projects, or with --project-only at the one given.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
import typer

from engine.broker import COMMAND_STREAM, DEAD_LETTER_STREAM
from engine.cli.exits import Exit
from engine.cli.output import clean
from engine.cli.parked import ways_on
from engine.cli.session import OPERATOR, Session, run
from engine.client import ClientError, QueryFailed
from engine.messages import EVERY_PROJECT, query_subject

_FULL = 0.8  # of its stream, from which on commands may soon be refused
_LAG = 10_000  # events that the read models may be behind before that needs a person
_HAND_OVER = 6.0  # seconds within which ranges of a worker that has ended have another
_INFO = "$JS.API.STREAM.INFO."
_UNANSWERED = {"busy": "refused as one too many", "unanswered": "without an answer", "failed": "failed"}

_WORDS = {
    "parked": "operations are parked",
    "overdue": "operations are past their deadline and still run",
    "struggling": "operations were tried many times",
    "down": "instances are DOWN",
    "drifted": "instances are not in the cloud what they are believed to be",
}
# Which of them need a person at once; what struggles goes on by itself until its tries or its time are over.
_NEEDS = frozenset({"parked", "overdue", "down", "drifted"})


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing looked at. `ok` is False when it needs a person; `todo` are commands, each with what it would do."""

    check: str
    ok: bool
    says: str
    todo: dict[str, str] = {}
    about: dict[str, Any] | None = None


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command(rich_help_panel="Looking at the engine")(doctor)


def doctor(
    context: typer.Context,
    project_only: Annotated[bool, typer.Option("--project-only", help="Only the project given.")] = False,
) -> None:
    """What needs a person now, and the commands that get it on; exit code 1 when something does."""
    needs: list[Finding] = []

    async def work(session: Session) -> None:
        findings = [finding async for finding in _findings(session, project_only)]
        needs.extend(finding for finding in findings if not finding.ok)
        if session.output.as_json:
            document = {"ok": not needs, "findings": [msgspec.to_builtins(each) for each in findings]}
            session.output.document(document)
            return
        for finding in findings:
            session.output.line(f"{'ok ' if finding.ok else 'ACT'} {finding.check}: {clean(finding.says)}")
            for command, effect in finding.todo.items():
                session.output.line(f"       {clean(command)}")
                session.output.line(f"         {clean(effect)}")

    run(context, work, OPERATOR)
    if needs:
        raise typer.Exit(Exit.FAILED)


async def _findings(session: Session, project_only: bool) -> AsyncIterator[Finding]:
    try:
        yield await _broker(session)
    except ClientError as error:
        yield Finding(check="broker", ok=False, says=str(error), todo=_start("up"))
        return  # nothing else can be asked
    for check, look in (("dead letters", _dead_letters), ("workers", _workers)):
        for finding in await _looked(check, look, session):
            yield finding
    project = session.settings.project if project_only else EVERY_PROJECT
    try:
        subject = query_subject(project, "troubles", "get")
        troubles = await session.manager.connection.request(subject, {})
    except ClientError as error:
        yield Finding(check="read models", ok=False, says=str(error), todo=_start("projector"))
        return
    yield _read_models(troubles)
    for kind, words in _WORDS.items():
        number = troubles["numbers"][kind]
        ok = not number or kind not in _NEEDS
        yield Finding(check=kind, ok=ok, says=f"{number or 'no'} {words}{_shown(number, troubles[kind])}")
        for each in troubles[kind]:
            if kind in ("down", "drifted"):
                yield _down(each) if kind == "down" else _drifted(each)
            else:
                yield _operation(kind, each, ok=ok)


async def _looked(
    check: str, look: Callable[[Session], Awaitable[Sequence[Finding]]], session: Session
) -> Sequence[Finding]:
    try:
        return await look(session)
    except ClientError as error:
        todo = _start("worker") if check == "workers" else {}
        return [Finding(check=check, ok=False, says=str(error), todo=todo)]


async def _stream(session: Session, name: str) -> dict[str, Any]:
    info = await session.manager.connection.request(f"{_INFO}{name}", {})
    if "error" in info:
        raise QueryFailed("no_stream", f"the broker has no stream {name} ({info['error'].get('description')})")
    return dict(info)


async def _broker(session: Session) -> Finding:
    """Reachable, or this is not reached; and how full its stream of commands is."""
    info = await _stream(session, COMMAND_STREAM)
    used, limit = int(info["state"]["bytes"]), int(info["config"]["max_bytes"])
    full = used / limit if limit > 0 else 0.0
    says = f"reachable; its stream of commands holds {info['state']['messages']} messages and is {full:.0%} full"
    if full < _FULL:
        return Finding(check="broker", ok=True, says=says)
    why = "commands are refused when it is full: see why no worker decides them, or give the stream more room"
    return Finding(check="broker", ok=False, says=f"{says}; {why}")


async def _dead_letters(session: Session) -> Sequence[Finding]:
    info = await _stream(session, DEAD_LETTER_STREAM)
    number = int(info["state"]["messages"])
    if not number:
        return [Finding(check="dead letters", ok=True, says="none")]
    todo = {"holdfast dead-letters list --all-projects": "shows what could not be decided, and why"}
    return [Finding(check="dead letters", ok=False, says=f"{number} wait to be replayed or discarded", todo=todo)]


async def _workers(session: Session) -> Sequence[Finding]:
    """Whether all that is to be served is, for which what is being handed over is looked at again; and what the workers
    say of the cloud.
    """
    from engine.partitions import RANGES  # noqa: PLC0415 - all other commands start faster without it

    for again in (True, False):
        members = (await session.queries.ask("workers", "list"))["items"]
        unowned = set(RANGES) - {name for member in members for name in member["ranges"]}
        if not unowned:
            break
        if again:
            await asyncio.sleep(_HAND_OVER)
    running = sum(member["running"] for member in members)
    says = f"{len(members)} serve all partitions and work on {running} aggregates"
    if unowned:
        says = f"{len(members)} live, and nobody serves the ranges {', '.join(sorted(unowned))}"
    todo = {"holdfast workers": "shows who serves what"} if unowned else {}
    return [Finding(check="workers", ok=not unowned, says=says, todo=todo), *_cloud(members)]


def _cloud(members: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    """How its services have answered all workers together; nothing of a cloud of which none is called.

    It needs nobody: what does is a command that is parked or late because of it.
    """
    totals: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for member in members:
        for service, counts in member.get("cloud", {}).items():
            totals[service].update(counts)
    if totals:
        says = "; ".join(_answered(service, counts) for service, counts in sorted(totals.items()))
        yield Finding(check="cloud", ok=True, says=f"since its workers began, {says}", about=dict(totals))


def _answered(service: str, counts: Counter[str]) -> str:
    bad = [f"{counts[what]} {words}" for what, words in _UNANSWERED.items() if counts[what]]
    return f"{service} was called {counts['calls']} times" + (f", {', '.join(bad)}" if bad else "")


def _read_models(troubles: dict[str, Any]) -> Finding:
    lag, stopped = int(troubles["lag"]), troubles["stopped"]
    says = f"{lag} events behind the log" if lag else "up to date with the log"
    todo = {"holdfast rebuild": "makes the read models anew from the log; stop the projector first"} if stopped else {}
    says += "".join(f"; {model} stands still: {why}" for model, why in stopped.items())
    return Finding(check="read models", ok=not stopped and lag < _LAG, says=says, todo=todo)


def _operation(kind: str, operation: dict[str, Any], *, ok: bool) -> Finding:
    error = operation["error"]
    age = datetime.now(UTC) - datetime.fromisoformat(operation["started_at"])
    says = (
        f"{operation['command']} {operation['id']} of project {operation['project']} owes {operation['effect']} in "
        f"{operation['state']}; tried {operation['attempts']} times, begun {_duration(age.total_seconds())} ago"
        + (f"; last error {error['code']}: {error['message']}" if error else "")
    )
    todo = {way.command: way.effect for way in ways_on(operation)} if kind == "parked" else _waiting(operation)
    # Each needs its project named where that is not the default.
    todo = {f"{command} --project {operation['project']}": effect for command, effect in todo.items()}
    return Finding(check=kind, ok=ok, says=says, todo=todo, about=operation)


def _waiting(operation: dict[str, Any]) -> dict[str, str]:
    return {
        f"holdfast operation retry {operation['id']}": f"tries {operation['effect']} again now",
        f"holdfast operation cancel {operation['id']}": "undoes it, where there is a way back",
    }


def _down(instance: dict[str, Any]) -> Finding:
    says = (
        f"{instance['name']} ({instance['id']}) of project {instance['project']} is {instance['status']}, on host "
        f"{instance['host']}, and its agent is not heard"
    )
    scope = f"{instance['id']} --project {instance['project']}"
    todo = {
        f"holdfast show {scope}": "what is known of it, and since when",
        f"holdfast reboot {scope}": "reboots its server and starts its database",
    }
    return Finding(check="down", ok=False, says=says, todo=todo, about=instance)


def _drifted(instance: dict[str, Any]) -> Finding:
    says = (
        f"{instance['name']} ({instance['id']}) of project {instance['project']} is {instance['status']}, but the "
        + "; the ".join(each["says"] for each in instance["drift"])
    )
    scope = f"{instance['id']} --project {instance['project']}"
    todo = {
        f"holdfast history {scope}": "what Holdfast did with it, and when the change was seen",
        f"holdfast show {scope}": "what is recorded of it; undo in the cloud what was changed there",
    }
    return Finding(check="drifted", ok=False, says=says, todo=todo, about=instance)


def _start(process: str) -> dict[str, str]:
    return {f"holdfast {process}": "starts it, where it does not run; read its log where it does"}


def _shown(number: int, listed: list[Any]) -> str:
    return f"; the oldest {len(listed)}:" if number > len(listed) else ":" if number else ""


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"
