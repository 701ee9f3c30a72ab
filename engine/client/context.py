"""For whom a publisher acts: project, actor, deadline and trace, taken from our own struct or any request context.

Guarantees a project that the wire contract takes and an actor that is not empty. It does not authenticate: the
broker's permissions bind a publisher to its project.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

import msgspec

from engine.client.errors import InvalidCommand
from engine.messages import PROJECT_PATTERN

_PROJECT_NAMES = ("project", "project_id", "tenant", "tenant_id")
_LONGEST_ACTOR = 255
_ACTOR_NAMES = ("actor", "user_id", "user", "user_name")


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks. `deadline`: after it, commands are rejected `expired` and their operations count as failed."""

    project: str
    actor: str
    deadline: datetime | None = None
    traceparent: str | None = None


def context_from(source: Any) -> Context:
    """A context from ours, or from an object with `project_id` or `tenant`, and `user_id` or `user`."""
    project, actor = _first(source, _PROJECT_NAMES), _first(source, _ACTOR_NAMES)
    if project is None or not re.fullmatch(PROJECT_PATTERN, project):
        raise InvalidCommand(
            "invalid_argument",
            f"the context's project is {project!r}; give one of letters, digits, - and _, at most 64",
        )
    if actor is None or len(actor) > _LONGEST_ACTOR:
        raise InvalidCommand("invalid_argument", "the context names no user of at most 255 characters; give one")
    deadline, traceparent = getattr(source, "deadline", None), getattr(source, "traceparent", None)
    if deadline is not None and (not isinstance(deadline, datetime) or deadline.tzinfo is None):
        raise InvalidCommand("invalid_argument", "the context's deadline must be a datetime with a time zone")
    return Context(project=project, actor=actor, deadline=deadline, traceparent=traceparent)


def _first(source: Any, names: tuple[str, ...]) -> str | None:
    found = (getattr(source, name, None) for name in names)
    return next((str(value) for value in found if value), None)
