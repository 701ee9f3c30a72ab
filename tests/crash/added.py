"""An instance with one operation more than the code has, as somebody would add it: for the matrix to find by itself.

The chart is the real one with a few lines put in. Its events are those of a restart, so that no topic is made that an
installation could have in its log.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from statemachine import State, StateChart

from aggregates.base import Context, Owed
from aggregates.commands import COMMANDS, Command, InstanceCommand
from aggregates.effects import AwaitHealthy, RestartDatabase
from aggregates.guards import Guards
from aggregates.instance import Instance
from aggregates.lifecycle import InstanceLifecycle

LINES = (
    (
        "    class SHUTDOWN(",
        (
            "    class REFRESH(State.Compound):\n"
            "        refresh_database = State(initial=True)\n"
            "        refresh_health = State()\n\n"
        ),
    ),
    (
        "    # Effects paid.",
        (
            "    refresh_requested = ACTIVE.to(REFRESH.refresh_database)\n"
            "    database_refreshed = REFRESH.refresh_database.to(REFRESH.refresh_health)\n\n"
        ),
    ),
    ("        | REBOOT.to(ERROR)", "        | REFRESH.to(ERROR)\n"),
    (
        "        | REBOOT.to(SHUTDOWN.delete_database",
        '        | REFRESH.to(SHUTDOWN.delete_database, cond="has_server")\n',
    ),
    ("        | REBOOT.restart_health.to(ACTIVE)", "        | REFRESH.refresh_health.to(ACTIVE)\n"),
)


class Refresh(InstanceCommand, frozen=True, kw_only=True):
    """The operation's command."""


def add(patch: pytest.MonkeyPatch) -> None:
    """Give instances the operation, until the patch is undone."""
    execute: Callable[[Instance, Command, Context], None] = Instance.execute

    def with_refresh(self: Instance, command: Command, context: Context) -> None:
        if isinstance(command, Refresh):
            self.begin("refresh_requested", command.wire_name(), context, command.limit)
        else:
            execute(self, command, context)

    owing: dict[str, Owed[Any]] = {
        "refresh_database": Owed("database_refreshed", lambda i: RestartDatabase(instance_id=i.id)),
        "refresh_health": Owed("database_healthy", lambda i: AwaitHealthy(instance_id=i.id)),
    }
    events = {
        "refresh_requested": Instance.events["restart_requested"],
        "database_refreshed": Instance.events["database_restarted"],
    }
    patch.setattr(Instance, "chart", _chart())
    patch.setattr(Instance, "owing", {**Instance.owing, **owing})
    patch.setattr(Instance, "events", {**Instance.events, **events})
    patch.setattr(Instance, "execute", with_refresh)
    patch.setitem(COMMANDS, ("instance", "refresh"), Refresh)


def _chart() -> type[StateChart[Any]]:
    source = inspect.getsource(InstanceLifecycle)
    for before, line in LINES:
        if source.count(before) != 1:
            raise ValueError(f"the chart has not one line {before.strip()}: say anew where the operation goes")
        source = source.replace(before, line + before)
    names: dict[str, Any] = {
        "Any": Any,
        "Guards": Guards,
        "State": State,
        "StateChart": StateChart,
        "__name__": __name__,
    }
    exec(source, names)  # noqa: S102 - our own source
    chart: type[StateChart[Any]] = names["InstanceLifecycle"]
    return chart
