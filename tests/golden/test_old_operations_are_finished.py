"""Whatever operation an older version left in an owing state, today's engine takes up and finishes.

Each recorded history is cut off at every event that left it owing; a store with all of that is given to the settler,
whose effects all succeed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import pytest

from aggregates.base import Lifecycled
from aggregates.effects import Effect
from aggregates.instance import Instance
from engine.clock import monotonic
from engine.clouds.port import FinalError
from engine.event_log import fold
from engine.hot import HotAggregates
from engine.mapper import MsgspecMapper
from engine.recorders import OwingChange
from engine.settler import Settler
from engine.store import EventStore, open_store
from engine.tasks import end
from tests.golden.history import DIRECTORY, read
from tests.golden.scenarios import ID
from tests.support.given import NOON, YIELDS, context, intervention, settle

FILES = sorted(DIRECTORY.glob("*.jsonl"))
SETTLED = {"ACTIVE", "SHUTOFF", "ERROR", "FAILED", "DELETED"}
# After the histories and their tries, before their deadlines.
NOW = NOON + timedelta(minutes=10)


def cut_off(path: Path) -> list[list[Any]]:
    """The history up to each event that left it in an owing state."""
    history = read(path)
    mapper = MsgspecMapper()
    events = [mapper.to_domain_event(stored) for stored in history.events]
    if history.aggregate is None:
        return []
    parts = [events[:end] for end in range(1, len(events) + 1)]
    return [part for part in parts if isinstance(known := fold(part), Lifecycled) and known.owes() is not None]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_wherever_it_was_cut_off_it_comes_to_its_end(path: Path) -> None:
    for events in cut_off(path):
        instance: Instance = fold(events)
        if instance.parked is not None:
            instance.execute(intervention(instance, "retry_operation"), context())
        settle(instance)
        assert instance.state in SETTLED
        assert instance.operation is None


def facts_of(effect: Effect) -> Mapping[str, Any]:
    """What the effect yields when it succeeds."""
    return YIELDS.get(_YIELDING.get(effect.type_name, ""), {})


_YIELDING = {
    "EnsureServerGroup": "server_group_created",
    "EnsureSecurityGroup": "security_group_created",
    "EnsurePort": "port_created",
    "EnsureManagementPort": "management_port_created",
    "EnsureFloatingAddress": "floating_address_created",
    "EnsureVolume": "volume_created",
    "EnsureSnapshot": "snapshot_created",
    "EnsureServer": "server_created",
    "PrepareDatabase": "database_prepared",
    "MigrateServer": "server_migrated",
    "SurplusAbsent": "surplus_removed",
}


async def left_behind(store: EventStore, *, every: int) -> dict[UUID, bool]:
    """Every so many of the cut histories in the store, each as an aggregate of its own; whether it is parked."""
    found: dict[UUID, bool] = {}
    for path in FILES:
        for ordinal, events in enumerate(cut_off(path)):
            if (len(found) + ordinal) % every:
                continue
            instance_id = uuid5(ID, f"{path.stem}-{ordinal}")
            moved = [type(each)(**{**vars(each), "originator_id": instance_id}) for each in events]
            owing = OwingChange(aggregate_id=instance_id, partition=7, owes=True)
            await store.commit(moved, owing=[owing])
            found[instance_id] = fold(moved).parked is not None
    return found


async def test_the_settler_finishes_what_it_finds_and_leaves_alone_what_is_parked(tmp_path: Path) -> None:
    store = open_store(f"sqlite://{tmp_path}/events.db")
    store.start()
    began = monotonic()
    paid: list[str] = []

    async def pay(effect: Effect, key: str) -> Mapping[str, Any]:
        paid.append(key)
        if len(paid) % 50 == 0:
            raise FinalError("cloud_error", "No valid host was found.")
        return facts_of(effect)

    settler = Settler(store, HotAggregates(store), pay, now=lambda: NOW + timedelta(seconds=monotonic() - began))
    found = await left_behind(store, every=3)
    running = asyncio.create_task(settler.run())
    try:
        async with asyncio.timeout(120):
            while True:
                instances = {instance_id: await store.load(instance_id) for instance_id in found}
                if all(each.owes() is None or each.parked is not None for each in instances.values()):
                    break
                await asyncio.sleep(0.2)
    finally:
        await end(running)
        await store.close()
    assert len(instances) > 100
    for instance_id, instance in instances.items():
        if found[instance_id]:
            assert instance.parked is not None
        else:
            assert instance.state in SETTLED or "No valid host was found." in instance.parked.message
