"""`holdfast quota`: what a project holds of what it may hold, and the operator's word on how much that is.

Limits are set as the broker's user `operator`; with `--nats`, as whoever the credentials name.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer

from engine.cli.session import OPERATOR, Session, run
from engine.client import TaskManager

_DECIDED_WITHIN = 15.0  # seconds
_COUNTED = {"instances": "", "ram": "MiB", "volumes": "GiB", "backups": ""}
_WORDS = {"unlimited": -1, "default": None}
LimitOption = Annotated[
    str | None, typer.Option(help="A number, `unlimited`, or `default`: the installation's.", metavar="LIMIT")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    quota = typer.Typer(help="What a project may hold.", no_args_is_help=True)
    quota.command("show")(show_quota)
    quota.command("set")(set_quota)
    app.add_typer(quota, name="quota", rich_help_panel="Looking at the engine")


def show_quota(context: typer.Context) -> None:
    """What the project holds, and how much it may."""

    async def work(session: Session) -> None:
        held = await session.queries.get("quota")
        limits = await _limits(session, held)
        if session.output.as_json:
            session.output.document({"held": held, "limits": limits})
            return
        rows = [
            (what, f"{held[what]} {unit}".strip(), _limit(limits[what], unit), _whose(held["limits"], what))
            for what, unit in _COUNTED.items()
        ]
        session.output.table(("what", "held", "limit", "set for"), rows, "nothing is counted")

    run(context, work)


def set_quota(
    context: typer.Context,
    project: Annotated[str, typer.Argument(help="Whose limits; what is not named stays.", show_default=False)],
    instances: LimitOption = None,
    ram: LimitOption = None,
    volumes: LimitOption = None,
    backups: LimitOption = None,
) -> None:
    """Set limits of a project. They hold from the next reservation on; what is held is not taken back."""
    given = {"instances": instances, "ram": ram, "volumes": volumes, "backups": backups}
    wanted = {what: _number(what, text) for what, text in given.items() if text is not None}
    if not wanted:
        raise typer.BadParameter("name at least one limit, as --instances 20", param_hint="quota set")

    async def work(session: Session) -> None:
        about = msgspec.structs.replace(session.manager.context, project=project)
        sent = await TaskManager(about, session.manager.connection).set_quota(wanted)
        await sent.accepted(_DECIDED_WITHIN)
        if session.output.as_json:
            session.output.document({"project": project, "limits": wanted})
            return
        said = ", ".join(f"{what} {given[what]}" for what in wanted)
        session.output.line(f"limits of {project} are set: {said}")

    run(context, work, user=OPERATOR)


async def _limits(session: Session, held: dict[str, Any]) -> dict[str, int]:
    """Those that hold: the project's own, else the installation's."""
    known: dict[str, int] = (await session.queries.ask("catalogue", "get"))["quota"]
    own = {what: limit for what, limit in held["limits"].items() if limit is not None}
    return {what: known.get(what, -1) for what in _COUNTED} | own


def _limit(limit: int, unit: str) -> str:
    return "unlimited" if limit < 0 else f"{limit} {unit}".strip()


def _whose(own: dict[str, Any], what: str) -> str:
    return "every project" if own[what] is None else "this project"


def _number(what: str, text: str) -> int | None:
    if text in _WORDS:
        return _WORDS[text]
    if not text.isdecimal():
        raise typer.BadParameter(f"{text}: give a number, `unlimited` or `default`", param_hint=f"--{what}")
    return int(text)
