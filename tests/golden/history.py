"""A golden history: the stored events of one aggregate, byte for byte, and the aggregate that they fold to.

One JSON object a line: the events in order, then the aggregate. A file is never written again: it stands for what an
installation of that day has in its log.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
from eventsourcing.persistence import StoredEvent

from engine.event_log import fold
from engine.mapper import MsgspecMapper

DIRECTORY = Path(__file__).parent


class Line(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An event as it is stored; `state` keeps the mapper's own bytes."""

    originator_id: UUID
    originator_version: int
    topic: str
    state: msgspec.Raw


class End(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The last line: the attributes of the aggregate; None for events of which none is folded."""

    aggregate: dict[str, Any] | None


class History(msgspec.Struct, frozen=True, kw_only=True):
    """What a file says."""

    events: list[StoredEvent]
    aggregate: dict[str, Any] | None


def written(events: Sequence[Any], *, folded: bool = True) -> bytes:
    """The file of these events."""
    mapper = MsgspecMapper()
    lines: list[Line | End] = []
    for event in events:
        row = mapper.to_stored_event(event)
        lines.append(
            Line(
                originator_id=event.originator_id,
                originator_version=row.originator_version,
                topic=row.topic,
                state=msgspec.Raw(row.state),
            )
        )
    lines.append(End(aggregate=msgspec.to_builtins(attributes(fold(events)), str_keys=True) if folded else None))
    return msgspec.json.Encoder().encode_lines(lines)


def read(path: Path) -> History:
    """What the file says."""
    *events, end = path.read_bytes().splitlines()
    lines = [msgspec.json.decode(line, type=Line) for line in events]
    return History(
        events=[
            StoredEvent(each.originator_id, each.originator_version, each.topic, bytes(each.state)) for each in lines
        ],
        aggregate=msgspec.json.decode(end, type=End).aggregate,
    )


def attributes(aggregate: Any) -> dict[str, Any]:
    """What the aggregate knows, without the library's list of events that are not stored yet."""
    return {name: value for name, value in vars(aggregate).items() if name != "_pending_events"}


def differences(recorded: Any, present: Any, path: str = "aggregate") -> list[str]:
    """Where the present aggregate does not say what was recorded. Attributes and fields added since are none."""
    if isinstance(present, msgspec.Struct) and isinstance(recorded, dict):
        present = msgspec.structs.asdict(present)
        present = {name: value for name, value in present.items() if name in recorded}
    if isinstance(present, dict) and isinstance(recorded, dict):
        present = {str(name): value for name, value in present.items()}
        if present.keys() != recorded.keys():
            return [f"{path}: has {sorted(present)}, not {sorted(recorded)}"]
        return [each for name in recorded for each in differences(recorded[name], present[name], f"{path}.{name}")]
    if isinstance(present, list | tuple) and isinstance(recorded, list) and len(present) == len(recorded):
        pairs = enumerate(zip(recorded, present, strict=True))
        return [each for n, (old, new) in pairs for each in differences(old, new, f"{path}[{n}]")]
    plain = msgspec.to_builtins(present, str_keys=True)
    return [] if plain == recorded else [f"{path}: is {plain!r}, not {recorded!r}"]
