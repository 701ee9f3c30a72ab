"""Dry runs: the plan that the engine would follow, or why it would refuse. Nothing is published."""

from __future__ import annotations

from typing import Any

from engine.cli.session import Session
from engine.cli.waiting import step_name
from engine.client import Rejected


async def show_plan(session: Session, command: str, args: dict[str, Any], instance_id: str | None) -> None:
    """Print the plan. Raises `Rejected` with the code that the command would get."""
    answer = await session.queries.ask("instances", "plan", command=command, args=args, instance_id=instance_id)
    if session.output.as_json and answer["accepted"]:
        session.output.document(answer)
        return
    if not answer["accepted"]:
        raise Rejected(answer.get("code") or "rejected", answer.get("reason") or "no reason was given")
    plan = [step["state"] for step in answer["plan"]]
    session.output.table(
        ("step", "what", "state", "effect"),
        [
            (n, step_name(step["state"], plan), step["state"], step["effect"])
            for n, step in enumerate(answer["plan"], 1)
        ],
        "nothing would be done",
    )
    session.output.remark(f"downtime: {answer.get('downtime', 'unknown')}; nothing was changed")
