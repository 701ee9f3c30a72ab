"""Arguments that several commands share, and the completion of instance names.

Completion asks the engine for a second at most and is silent when it cannot.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from engine.cli.output import Output
from engine.cli.session import Settings, opened
from engine.client import ClientError

_NAMES = 1000
_WITHIN = 1.0


def complete_instance(ctx: typer.Context, incomplete: str) -> list[str]:
    """The names of instances that begin so."""
    try:
        return asyncio.run(_names(_settings(ctx.find_root().params), incomplete))
    except (ClientError, OSError, TimeoutError):
        return []


def _settings(given: dict[str, Any]) -> Settings:
    # Not parsed yet: as they were typed.
    state, seed, creds = (Path(given[name]) if given.get(name) else None for name in ("state", "seed", "creds"))
    project = given.get("project") or "default"
    return Settings(state=state, nats=given.get("nats"), seed=seed, creds=creds, project=project, timeout=_WITHIN)


async def _names(settings: Settings, incomplete: str) -> list[str]:
    async with asyncio.timeout(2 * _WITHIN), opened(settings, Output(as_json=True), _WITHIN) as session:
        found, _ = await session.queries.page("instances", limit=_NAMES)
        return sorted(each["name"] for each in found if each["name"].startswith(incomplete))


Instance = Annotated[
    str, typer.Argument(metavar="INSTANCE", help="Name or id.", autocompletion=complete_instance, show_default=False)
]
OperationId = Annotated[str, typer.Argument(metavar="OPERATION", help="Id, as commands print it.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the end, or print the operation's id.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and change nothing.")]
Limit = Annotated[int, typer.Option(help="How many to show at most.", min=1, max=1000)]
Allowed = Annotated[
    list[str] | None,
    typer.Option("--allow", help="Network let in, as 192.0.2.0/24; repeatable.", metavar="CIDR"),
]
