"""commands.md: each command with its arguments, where it is allowed, how it can be refused, and its deadline."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import msgspec

from aggregates.arguments import OPTIONAL
from aggregates.commands import COMMANDS, INTERVENTIONS, Command
from aggregates.effects import Access, Database, User
from docs._generate.schema import components, words
from docs._generate.specimen import EXAMPLES, allowed, effect, entered, leaves, optional, plan, settled
from docs._generate.text import code, doc, table
from engine.messages import MAX_BODY, CommandEnvelope

ENVELOPE = {
    "malformed": "the body, the project or the id in the subject is no good",
    "too_large": f"the body is over {MAX_BODY // 1024} KiB",
    "unknown_command": "no such command for this kind",
    "invalid_argument": "an argument is missing, unknown or of the wrong type",
    "secret_in_clear": "an argument holds a password instead of a reference",
    "expired": "`deadline` had passed",
    "duplicate_command": "another command was decided under this `command_id`",
    "not_found": "the project has nothing of this kind and id",
    "conflict": "another operation runs, or `expected_version` is not the present one",
}


def page() -> str:
    """The page."""
    _, schemas = components([*COMMANDS.values(), CommandEnvelope])
    return "\n\n".join(
        [
            "# Commands",
            (
                "A command is published on `holdfast.v1.cmd.<project>.<kind>.<id>.<command>`; its body is an envelope "
                "with the arguments in `args`. The form of all that travels is in [asyncapi.json](asyncapi.json), "
                "what each command passes in [lifecycle.md](lifecycle.md), all codes in [errors.md](errors.md)."
            ),
            "## Envelope",
            doc(CommandEnvelope),
            _arguments(CommandEnvelope, schemas),
            "## How any command can be refused",
            table(("code", "when"), ((code(name), when) for name, when in ENVELOPE.items())),
            "## Commands to an instance",
            *(section for name in EXAMPLES for section in _section(COMMANDS["instance", name], schemas)),
            "## Commands about an operation that runs",
            (
                "They go to the instance's subject like all others and name the operation, whose id is that of the "
                "command that began it. None begins an operation of its own. Any other than the running operation is "
                "`not_found`; what the operation's state does not allow is `forbidden_state`, and the reason says why."
            ),
            *(section for command in INTERVENTIONS.values() for section in _section(command, schemas)),
            "## Commands to a quota",
            (
                "`set_quota` is an operator's; `holdfast quota set` derives the id from the project. All "
                "others the engine itself sends, as what an instance's state owes; no publisher needs them."
            ),
            *(
                section
                for (kind, _), command in COMMANDS.items()
                if kind == "quota"
                for section in _section(command, schemas)
            ),
            "## Parts of arguments",
            *(
                section
                for part in (Access, Database, User)
                for section in (f"### {part.__name__}", doc(part), _arguments(part, schemas))
            ),
        ]
    )


def _section(command: type[Command], schemas: dict[str, Any]) -> Iterable[str]:
    name = command.wire_name()
    yield f"### {name}"
    yield doc(command)
    if command.__struct_fields__:
        yield _arguments(command, schemas)
    else:
        yield "It takes no arguments."
    if name not in EXAMPLES:
        return
    yield table(
        ("", ""),
        (
            ("allowed in", _where(name)),
            ("refused besides", ", ".join(_refusals(command)) or "nothing"),
            ("done within", f"{_duration(command.limit)}, unless `deadline` says otherwise"),
            ("passes", ", ".join(_passed(name))),
        ),
    )


def _passed(name: str) -> Iterable[str]:
    wanted = optional(name)
    for state in plan(name):
        yield f"{code(state)} ({effect(state)}{', where wanted' if state in wanted else ''})"


def _arguments(subject: type[msgspec.Struct], schemas: dict[str, Any]) -> str:
    schema = schemas[subject.__name__]
    required = set(schema.get("required", ()))
    rows = []
    for name, each in schema["properties"].items():
        default = "required" if name in required else code(msgspec.json.encode(each.get("default")).decode())
        only = (
            "only where the cloud honours it"
            if subject is COMMANDS["instance", "create_instance"] and name in OPTIONAL
            else ""
        )
        rows.append((code(name), words(each, schemas), default, only))
    if any(only for *_, only in rows):
        return table(("argument", "type", "default", ""), rows)
    return table(("argument", "type", "default"), (row[:3] for row in rows))


def _where(name: str) -> str:
    if name == "create_instance":
        return "an id that is not taken"
    where = [code(state) for state in allowed(name)]
    owing = [state for state in leaves() if state not in settled()]
    if any(entered(state, "deletion_requested") for state in owing) and name == "delete_instance":
        where.append("the middle of any other operation, which it cancels")
    return ", ".join(where)


def _refusals(command: type[Command]) -> Iterable[str]:
    if command.creates:
        yield code("unsupported")
    else:
        yield code("forbidden_state")
    if "SendCommand" in {effect(state) for state in plan(command.wire_name())} and not command.wire_name().startswith(
        "delete"
    ):
        yield f"its operation fails with {code('quota_exceeded')} where the quota has no room"


def _duration(limit: timedelta) -> str:
    hours, rest = divmod(int(limit.total_seconds()), 3600)
    return f"{hours} h" if hours and not rest else f"{rest // 60 + 60 * hours} min"
