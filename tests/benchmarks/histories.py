"""Logs of many events: a life driven through the real aggregates, then copied under other ids as often as needed.

A copy has other ids and another name and is the same else, so that a log of a hundred thousand events is there in
seconds; what reads it cannot tell.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from uuid import UUID, uuid4

from eventsourcing.persistence import StoredEvent

from aggregates.commands import (
    Command,
    Migrate,
    Reboot,
    ResizeFlavor,
    ResizeVolume,
    Restart,
    StartInstance,
    StopInstance,
)
from engine.databases import DurableSQLiteDatastore
from engine.recorders import SQLiteEventRecorder
from tests.projections.story import Story

PROJECT = "blue"
NAME = b'"name":"db"'
_UUID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_AT_ONCE = 200  # copies in one transaction


def created(story: Story) -> None:
    """An instance that was made and is ACTIVE."""
    story.settle(story.create(project=PROJECT))


def lived(story: Story) -> None:
    """An instance on which every operation ran."""
    instance_id = story.create(project=PROJECT)
    story.settle(instance_id)
    operations: tuple[Command, ...] = (
        Restart(),
        ResizeVolume(new_size=9),
        Reboot(hard=True),
        ResizeFlavor(flavor="large"),
        Migrate(host="b"),
        StopInstance(),
        StartInstance(),
        ResizeVolume(new_size=12),
        Restart(),
    )
    for operation in operations:
        story.command(instance_id, operation, project=PROJECT)
        story.settle(instance_id)


def write(path: Path, life: Callable[[Story], None], copies: int) -> list[UUID]:
    """Write a log with so many lives into a new store; the ids of their instances."""
    template_path = path.with_name(f"template-{path.name}")
    story = Story(template_path)
    life(story)
    (original,) = story.instances
    events = story.recorder.select_notifications(None, 10_000)
    story.close()
    recorder = SQLiteEventRecorder(DurableSQLiteDatastore(f"file:{path}"))
    recorder.create_table()
    ids = []
    for start in range(0, copies, _AT_ONCE):
        together: list[StoredEvent] = []
        for ordinal in range(start, min(start + _AT_ONCE, copies)):
            copied, names = _copy(events, f"db-{ordinal:06}")
            together.extend(copied)
            ids.append(names[original])
        recorder.insert_events(together)
    recorder.datastore.close()
    return ids


def _copy(events: Sequence[StoredEvent], name: str) -> tuple[list[StoredEvent], dict[UUID, UUID]]:
    others: dict[UUID, UUID] = {}

    def other(known: UUID) -> UUID:
        return others.setdefault(known, uuid4())

    def replaced(found: re.Match[bytes]) -> bytes:
        return str(other(UUID(found.group().decode()))).encode()

    copied = [
        StoredEvent(
            other(UUID(str(event.originator_id))),
            event.originator_version,
            event.topic,
            _UUID.sub(replaced, event.state.replace(NAME, b'"name":"%s"' % name.encode())),
        )
        for event in events
    ]
    return copied, others
