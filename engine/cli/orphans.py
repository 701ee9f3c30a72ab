"""`holdfast orphans`: what the cloud holds of ours that no instance knows as its own, and what it has changed or lost.

Guarantees that nothing is removed that was not shown before and agreed to. It acts as the broker's user `operator` and
looks at all projects, or with --project-only at the one given.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import typer

from aggregates.resources import ResourceKind
from engine.cli.exits import Exit
from engine.cli.output import moment
from engine.cli.session import OPERATOR, Session, run
from engine.client import ClientError
from engine.messages import EVERY_PROJECT, query_subject

_REMOVED_WITHIN = 75.0  # seconds: what the worker gives itself for one, and a little for the way
_ORDER = tuple(ResourceKind)  # in which they can be removed


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command(rich_help_panel="Looking at the engine")(orphans)


class _Action(NamedTuple):
    """What can be done about an orphan: as it is asked for, the question, and what it is then, in words and in JSON."""

    verb: str
    question: str
    done: str
    key: str


_DELETE = _Action("delete", "Remove these {} from the cloud for good?", "is gone", "deleted")
_ADOPT = _Action("adopt", "Record these {} as their instances' own?", "is its instance's own", "adopted")


def orphans(
    context: typer.Context,
    project_only: Annotated[bool, typer.Option("--project-only", help="Only the project given.")] = False,
    only: Annotated[list[str] | None, typer.Option("--id", help="Only the orphan of this id. Repeatable.")] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Remove the orphans, after asking.")] = False,
    adopt: Annotated[
        bool, typer.Option("--adopt", help="Record the orphans as their instances' own, after asking.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """What the cloud holds of ours that no instance has, and in what instances differ from what is recorded of them."""
    if delete and adopt:
        raise typer.BadParameter("what is adopted is not removed: say one of the two", param_hint="--adopt")
    action = _DELETE if delete else _ADOPT if adopt else None
    if action is not None and context.obj.as_json and not yes:
        raise typer.BadParameter("a program is not asked: say --yes", param_hint="--yes")
    left: list[dict[str, Any]] = []

    async def work(session: Session) -> None:
        project = session.settings.project if project_only else EVERY_PROJECT
        found = await _list(session, project)
        if only:
            found = _chosen(found, only)
        drifted = (await _ask(session, project, "troubles", "get"))["drifted"]
        if action is None or not found:
            _show(session, found, drifted)
            return
        if not session.output.as_json:
            _show(session, found, [])
            if not yes:
                typer.confirm(action.question.format(len(found)), abort=True, err=True)
        told = []
        for each in sorted(found, key=lambda orphan: _ORDER.index(orphan["kind"])):
            outcome = await _act(session, project, action, each)
            told.append(each | outcome)
            if "error" in outcome:
                left.append(each)
        if session.output.as_json:
            session.output.document({"orphans": told})

    run(context, work, OPERATOR)
    if left:
        raise typer.Exit(Exit.FAILED)


def _chosen(found: list[dict[str, Any]], ids: list[str]) -> list[dict[str, Any]]:
    chosen = [each for each in found if each["id"] in ids]
    unknown = set(ids) - {each["id"] for each in chosen}
    if unknown:
        raise typer.BadParameter(
            f"{', '.join(sorted(unknown))} is no orphan: see `holdfast orphans`", param_hint="--id"
        )
    return chosen


async def _list(session: Session, project: str) -> list[dict[str, Any]]:
    answer = await _ask(session, project, "orphans", "list")
    for region, why in answer.get("silent", {}).items():
        session.output.remark(f"region {region} did not say what it holds: {why}")
    return list(answer["items"])


async def _ask(session: Session, project: str, model: str, verb: str, **arguments: Any) -> dict[str, Any]:
    subject = query_subject(project, model, verb)
    return dict(await session.manager.connection.request(subject, arguments))


async def _act(session: Session, project: str, action: _Action, orphan: dict[str, Any]) -> dict[str, Any]:
    """What has come of it; one about which nothing can be done keeps no other from being seen to."""
    session.manager.connection.timeout = session.settings.timeout or _REMOVED_WITHIN
    wanted = {name: orphan[name] for name in ("kind", "id", "instance_id")}
    told = f"{ResourceKind(orphan['kind']).spoken} {orphan['id']}"
    try:
        await _ask(session, project, "orphans", action.verb, **wanted, actor=session.manager.context.actor)
    except ClientError as error:
        session.output.line(f"{told} is left: {error.message}")
        return {"error": {"code": error.code, "message": error.message}}
    session.output.line(f"{told} {action.done}")
    return {action.key: True}


def _show(session: Session, found: list[dict[str, Any]], drifted: list[dict[str, Any]]) -> None:
    if session.output.as_json:
        session.output.document({"orphans": found, "drifted": drifted})
        return
    rows = [
        (
            each["kind"], each["id"], each.get("region"), each["instance_id"], each["project"], each["status"],
            each["size"], each["why"],
        )
        for each in found
    ]  # fmt: skip
    columns = ("orphan", "id", "region", "instance", "project", "status", "gib", "why")
    session.output.table(columns, rows, "no orphans")
    for instance in drifted:
        for each in instance["drift"]:
            session.output.line(
                f"{instance['name']} ({instance['id']}) of project {instance['project']}: the {each['says']}, "
                f"seen {moment(each['since'])}"
            )
