"""Fences: whoever lost a range can write nothing about it any more, whatever versions would still fit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from eventsourcing.persistence import Tracking

from engine.recorders import Fence, RangeRow
from engine.store import EventStore, LostOwnership, open_store
from tests.support.given import requested


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[EventStore]:
    opened = open_store(store_url)
    opened.start()
    yield opened
    await opened.close()


async def take(store: EventStore, owner: str, name: str) -> Fence:
    rows = await store.ranges()
    [fence] = await store.take_ranges(owner, {name: rows.get(name, RangeRow()).epoch})
    return fence


async def test_a_passed_epoch_writes_nothing_though_the_version_fits(store: EventStore) -> None:
    old = await take(store, "first", "3")
    instance = requested()
    await store.commit(instance.collect_events(), fences=[old])
    new = await take(store, "second", "3")
    assert new.epoch > old.epoch
    instance.take("quota_reserved", at=instance.modified_on)
    late = instance.collect_events()
    with pytest.raises(LostOwnership):
        await store.commit(late, positions=[Tracking("commands/1/7", 5)], fences=[old])
    with pytest.raises(LostOwnership):
        await store.commit([], positions=[Tracking("commands/1/8", 5)], fences=[new, old])
    assert len(await store.events_of(instance.id)) == 1
    assert await store.positions(["commands/1/7", "commands/1/8"]) == {}
    await store.commit(late, positions=[Tracking("commands/1/7", 5)], fences=[new])
    assert await store.positions(["commands/1/7", "commands/1/8"]) == {"commands/1/7": 5}


async def test_only_what_is_fenced_fails_of_a_group(store: EventStore) -> None:
    lost, kept = await take(store, "first", "1"), await take(store, "first", "2")
    await take(store, "second", "1")
    instances = [requested() for _ in range(4)]
    results = await asyncio.gather(
        *(store.commit(i.collect_events(), fences=[f]) for i, f in zip(instances, [kept, lost] * 2, strict=True)),
        return_exceptions=True,
    )
    assert [type(r) for r in results] == [type(None), LostOwnership] * 2
    assert await store.existing(i.id for i in instances) == {instances[0].id, instances[2].id}


async def test_of_two_who_take_a_range_one_gets_it(store: EventStore) -> None:
    taken = await asyncio.gather(*(store.take_ranges(owner, {"5": 0, "6": 0}) for owner in ("first", "second")))
    assert sorted(len(fences) for fences in taken) == [0, 2]


async def test_a_range_that_was_let_go_has_no_owner_and_keeps_its_epoch(store: EventStore) -> None:
    fence = await take(store, "first", "9")
    await store.release_ranges("second", [fence])
    assert await store.ranges() == {"9": RangeRow(1, "first")}
    await store.release_ranges("first", [fence])
    assert await store.ranges() == {"9": RangeRow(1, None)}
    assert (await take(store, "second", "9")).epoch == 2
