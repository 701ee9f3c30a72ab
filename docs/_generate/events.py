"""events.md: every event class, its facts, and what published events look like."""

from __future__ import annotations

from typing import Any

from aggregates.base import Event
from docs._generate.schema import LIBRARY, components, words
from docs._generate.text import code, doc, table
from engine.mapper import KNOWN
from engine.messages import CloudEvent

KINDS = {
    "instance": "The life of an instance: an event for each transition of its chart, and three notes beside the state.",
    "health": "What is heard of an instance's agent; its id follows from the instance's.",
    "quota": "What a project holds.",
    "command": "The record that every command leaves: one event, version 1, under an id of its own.",
}


def recorded() -> dict[str, type[Event]]:
    """The event classes that the log can hold, by topic, in the order in which they are declared."""
    bases = {base for module in KNOWN for c in vars(module).values() if isinstance(c, type) for base in c.__bases__}
    found = [
        each
        for module in KNOWN
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, Event) and each.__module__ == module.__name__
    ]
    return {each.TOPIC: each for each in found if each not in bases}


def page() -> str:
    """The page."""
    events = recorded()
    _, schemas = components([*events.values(), CloudEvent])
    sections = [
        "# Events",
        (
            "Each event of the log is published on `holdfast.v1.evt.<project>.<kind>.<id>.<EventName>` as a CloudEvent "
            "1.0, at least once and in order for each aggregate. Its facts are in `data`, as listed here; "
            "`operation_id` is the id of the command that began the operation."
        ),
        doc(CloudEvent),
    ]
    for kind, meaning in KINDS.items():
        sections += [f"## {kind}", meaning, _table([e for e in events.values() if e.kind == kind], schemas)]
    if missing := {event.kind for event in events.values()} - KINDS.keys():
        raise TypeError(f"the documents need a sentence on the events of: {sorted(missing)}")
    used = _used(events, schemas)
    sections += ["## Parts of facts"]
    for name in used:
        schema = schemas[name]
        sections += [f"### {name}", schema.get("description", "")]
        if "properties" in schema:
            sections.append(
                table(("field", "type"), ((code(n), words(s, schemas)) for n, s in schema["properties"].items()))
            )
    return "\n\n".join(section for section in sections if section)


def _table(events: list[type[Event]], schemas: dict[str, Any]) -> str:
    rows = []
    for event in events:
        properties = schemas[event.__name__]["properties"]
        facts = [f"{code(name)}: {words(each, schemas)}" for name, each in properties.items() if name not in LIBRARY]
        rows.append((code(event.__name__), doc(event), "; ".join(facts)))
    return table(("event", "meaning", "facts"), rows)


def _used(events: dict[str, type[Event]], schemas: dict[str, Any]) -> list[str]:
    """The parts that facts refer to, however deep."""
    found: list[str] = []
    todo: list[Any] = [schemas[event.__name__] for event in events.values()]
    while todo:
        each = todo.pop(0)
        if isinstance(each, dict):
            name = str(each.get("$ref", "")).rpartition("/")[2]
            if name and name not in found:
                found.append(name)
                todo.append(schemas[name])
            todo += list(each.values())
        elif isinstance(each, list):
            todo += each
    return sorted(name for name in found if "enum" not in schemas[name])
