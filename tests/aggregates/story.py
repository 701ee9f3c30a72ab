"""Given events, when command, then events: the words in which the examples are told.

`given` folds the events of an instance anew, so that every decision is made from history alone.
"""

from __future__ import annotations

from typing import Any

import pytest

from aggregates.base import Refusal
from aggregates.commands import Command
from aggregates.instance import Instance
from engine.event_log import fold
from tests.support.given import NOON, context

ATTEMPT = {"effect": "EnsurePort", "attempt": 1, "code": "timeout", "message": "no answer", "retry_at": NOON}


def given(instance: Instance) -> Instance:
    """The same instance, as its events tell it."""
    known: Instance = fold(instance.collect_events())
    return known


def when(instance: Instance, command: Command, **changes: Any) -> list[str]:
    """Have it decide the command; the names of the events that came of it."""
    instance.execute(command, context(**changes))
    return names(instance)


def refused(instance: Instance, command: Command, **changes: Any) -> Refusal:
    """Have it decide the command; the refusal, after a look that nothing was changed by it."""
    before = dict(vars(instance))
    with pytest.raises(Refusal) as raised:
        instance.execute(command, context(**changes))
    assert vars(instance) == before
    assert list(instance.pending_events) == []
    return raised.value


def names(instance: Instance) -> list[str]:
    """The names of the events since the last look."""
    return [type(event).__name__ for event in instance.collect_events()]
