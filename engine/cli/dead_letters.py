"""`holdfast dead-letters`: what could not be decided, for the operator: look, replay, discard.

Guarantees that a letter is removed only when its command was accepted anew, or when told so. They act as the broker's
user `operator`; with `--nats`, as whoever the credentials name.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer

from engine.cli.arguments import Limit
from engine.cli.exits import CliError, Exit
from engine.cli.looking import Filter, conditions
from engine.cli.output import clean, moment
from engine.cli.session import OPERATOR, Session, run
from engine.client import Rejected
from engine.client.dead_letters import FIELDS, DeadLetters, Letter

_DECIDED_WITHIN = 15.0  # seconds
LetterId = Annotated[int, typer.Argument(metavar="LETTER", help="Its id in the list.", min=1)]
AllProjects = Annotated[bool, typer.Option("--all-projects", help="Of every project.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    letters = typer.Typer(help="Messages that could not be decided.", no_args_is_help=True)
    letters.command("list")(list_letters)
    letters.command("show")(show_letter)
    letters.command("replay")(replay_letter)
    letters.command("discard")(discard_letters)
    app.add_typer(letters, name="dead-letters", rich_help_panel="Looking at the engine")


def list_letters(
    context: typer.Context,
    filter_: Filter = None,
    after: Annotated[int, typer.Option(help="Go on after this letter.", min=0)] = 0,
    limit: Limit = 100,
    all_projects: AllProjects = False,
) -> None:
    """The dead letters, the oldest first."""
    having = conditions(filter_)
    if unknown := sorted(set(having) - set(FIELDS)):
        raise typer.BadParameter(f"{unknown[0]}: there are {', '.join(FIELDS)}", param_hint="--filter")

    async def work(session: Session) -> None:
        found, following = await _letters(session, all_projects).page(after, limit, **having)
        if session.output.as_json:
            session.output.document({"items": [_document(each) for each in found], "next": following})
            return
        columns = ("letter", "received", "project", "code", "command", "aggregate", "tries", "replayable", "reason")
        rows = [
            (
                each.id, moment(each.letter.received_at.isoformat()), each.project, each.letter.code,
                f"{each.kind}.{each.command}", each.aggregate_id, each.letter.tries or None, each.replayable,
                each.letter.reason,
            )
            for each in found
        ]  # fmt: skip
        session.output.table(columns, rows, "no dead letters")
        if following is not None:
            session.output.remark(f"there may be more: --after {following}")

    run(context, work, OPERATOR)


def show_letter(context: typer.Context, letter: LetterId) -> None:
    """All that was kept of a message: why, what was in it, and where the engine broke."""

    async def work(session: Session) -> None:
        found = await _letters(session).get(letter)
        if session.output.as_json:
            session.output.document(_document(found))
            return
        kept = found.letter
        session.output.pairs(
            [
                ("letter", found.id),
                ("code", kept.code),
                ("reason", kept.reason),
                ("received", moment(kept.received_at.isoformat())),
                ("project", found.project),
                ("command", f"{found.kind}.{found.command}"),
                ("aggregate", found.aggregate_id),
                ("command id", kept.command_id and str(kept.command_id)),
                ("sequence", kept.sequence),
                ("size", kept.size),
                ("hash", kept.content),
                ("tries", kept.tries or None),
                ("replayable", found.replayable),
                ("body", kept.body),
            ]
        )
        if kept.traceback:
            for line in kept.traceback.splitlines():
                session.output.line(clean(line))

    run(context, work, OPERATOR)


def replay_letter(
    context: typer.Context,
    letter: LetterId,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the letter when its command is accepted.")] = False,
) -> None:
    """Publish the command again, under a new command id: its first one keeps its rejection for ever.

    A letter always has the same new id, so that replaying it twice makes one command. The letter is removed when that
    command is accepted.
    """

    async def work(session: Session) -> None:
        letters = _letters(session)
        found = await letters.get(letter)
        operation = await letters.replay(found)
        session.waits_for = operation.id
        try:
            decision = await operation.accepted(session.settings.timeout or _DECIDED_WITHIN)
        except Rejected as rejected:
            if rejected.code != "duplicate_command":
                raise
            raise CliError(
                Exit.REJECTED,
                "duplicate_command",
                f"somebody else replayed letter {letter} before, as command {operation.id}; discard it if that is done",
            ) from None
        session.waits_for = None
        if not keep:
            await letters.discard(letter)
        was = str(found.letter.command_id)
        if session.output.as_json:
            replayed = {"letter": letter, "command_id": operation.id, "replays": was, "kept": keep}
            session.output.document(replayed | {"accepted": decision.accepted})
            return
        gone = "" if keep else "; the letter is removed"
        session.output.line(f"command {was} is accepted as {operation.id}, its replay{gone}")

    run(context, work, OPERATOR)


def discard_letters(
    context: typer.Context,
    letters: Annotated[list[int], typer.Argument(metavar="LETTER...", help="Their ids in the list.", min=1)],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove letters for good, with the commands kept in them."""
    asks = not yes
    if asks and context.obj.as_json:
        raise typer.BadParameter("a program is not asked: say --yes", param_hint="--yes")

    async def work(session: Session) -> None:
        held = _letters(session)
        found = [await held.get(each) for each in letters]
        if asks:
            for each in found:
                session.output.remark(f"{each.id}: {each.letter.code}, {each.kind}.{each.command} {each.aggregate_id}")
            typer.confirm(f"Discard {len(found)} of them for good?", abort=True, err=True)
        for each in found:
            await held.discard(each.id)
        if session.output.as_json:
            session.output.document({"discarded": [each.id for each in found]})
        else:
            session.output.line(f"{len(found)} discarded")

    run(context, work, OPERATOR)


def _letters(session: Session, all_projects: bool = True) -> DeadLetters:
    project = None if all_projects else session.settings.project
    return DeadLetters(session.manager.connection, project, session.manager.context.actor)


def _document(letter: Letter) -> dict[str, Any]:
    kept: dict[str, Any] = msgspec.to_builtins(letter.letter)
    own = {name: getattr(letter, name) for name in ("id", "project", "kind", "aggregate_id", "command", "replayable")}
    return own | kept
