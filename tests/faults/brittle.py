"""An aggregate that breaks: creating one under the name POISON raises what looks like a lost broker."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from aggregates.base import Context
from aggregates.commands import CreateInstance
from aggregates.instance import Instance

POISON = "poison"


class Brittle:
    """Cannot take a create under one name; how often it was asked is counted."""

    tried = 0

    @classmethod
    def create(cls, aggregate_id: UUID, command: CreateInstance, context: Context) -> Any:
        if command.name == POISON:
            cls.tried += 1
            # As bad as it gets: what looks like a lost broker must not be taken for one.
            raise TimeoutError(f"no room for {command.name}, root_password='hunter2'")
        return Instance.create(aggregate_id, command, context)
