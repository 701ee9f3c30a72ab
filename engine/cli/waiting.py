"""Waiting for an operation: a bar with named steps for a person, silence for a pipe, the same ending for both.

Guarantees that the call ends when the operation ends, parks, or the time given is over. The names of steps follow
from the names of the states, so that a new operation needs nothing here.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from engine.cli.exits import CliError, Exit
from engine.cli.output import clean
from engine.cli.session import Session
from engine.client import Operation, TimedOut
from engine.client import Progress as Step

_DECIDED_WITHIN = 15.0  # seconds for the decision of a command that is not waited for


def step_name(state: str | None, plan: Sequence[str]) -> str:
    """A state in human words: `build_server` in the plan of a creation is 'server'."""
    if state is None:
        return "end"
    undo, own = ("undo ", state.removeprefix("undo_")) if state.startswith("undo_") else ("", state)
    words = own.split("_")
    while len(words) > 1 and all(name.startswith(f"{words[0]}_") for name in plan):
        plan = [name.removeprefix(f"{words[0]}_") for name in plan]
        words = words[1:]
    return undo + " ".join(words)


async def finish(session: Session, operation: Operation, *, wait: bool, words: str) -> dict[str, Any] | None:
    """See a command through, as far as wished; the operation's record if it was waited for.

    A command that is not waited for ends with its decision: a rejection is told, a late decision is not waited for.
    """
    session.waits_for = operation.id
    within = session.settings.timeout
    if not wait:
        await _stored(session, operation, min(within or _DECIDED_WITHIN, _DECIDED_WITHIN))
        return None
    deadline = None if within is None else time.monotonic() + within
    await _progress(session, operation, words, within)
    result = await operation.done(None if deadline is None else max(1.0, deadline - time.monotonic()))
    record = await operation.record()
    session.waits_for = None
    return record or result.record


async def _stored(session: Session, operation: Operation, within: float) -> None:
    try:
        await operation.accepted(within)
    except TimedOut:
        session.output.remark("the command is stored and not decided yet; the engine decides it as soon as it runs")
    session.waits_for = None
    if session.output.as_json:
        session.output.document({"operation_id": operation.id, "instance_id": operation.instance_id})
    else:
        session.output.line(operation.id)


async def _progress(session: Session, operation: Operation, words: str, timeout: float | None) -> None:
    pretty = session.output.pretty
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
        TextColumn("{task.fields[step]}"), TimeElapsedColumn(),
        console=session.output.console, disable=not pretty, transient=True,
    ) as bar:  # fmt: skip
        shown = bar.add_task(escape(clean(words)), total=None, step="")
        async for step in operation.progress(timeout):
            if step.parked:
                raise CliError(
                    Exit.PARKED,
                    "parked",
                    f"operation {operation.id} waits for an operator in {step.state}: {step.effect} cannot be done "
                    f"({step.error}); what can be done: `holdfast operation show {operation.id}`",
                )
            bar.update(shown, total=step.m, completed=max(0, step.n - 1), step=escape(clean(_said(step))))


def _said(step: Step) -> str:
    tried = f" (try {step.attempts + 1}; before: {step.error})" if step.attempts and step.error else ""
    return step_name(step.state, step.plan) + tried
