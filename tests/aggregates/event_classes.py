"""The event classes that can be recorded: all that the mapper's modules define and nothing derives from."""

from __future__ import annotations

from aggregates.base import Event
from engine.mapper import KNOWN


def concrete() -> dict[str, type[Event]]:
    """The event classes that can be recorded, by topic."""
    bases = {base for module in KNOWN for c in vars(module).values() if isinstance(c, type) for base in c.__bases__}
    return {
        each.TOPIC: each
        for module in KNOWN
        for each in vars(module).values()
        if isinstance(each, type)
        and issubclass(each, Event)
        and each not in bases
        and each.__module__ == module.__name__
    }
