"""What the event store promises to inbox, settlers and readers, on each kind of database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from eventsourcing.persistence import Tracking

from aggregates.commands import ReserveQuota, Restart
from aggregates.effects import User
from aggregates.instance import Instance
from aggregates.obligations import quota_id
from aggregates.quota import Quota
from aggregates.snapshots import EVERY, InstanceSnapshot, QuotaSnapshot, Snapshot
from engine.event_log import fold, open_log
from engine.hot import HotAggregates
from engine.recorders import OwingChange
from engine.store import Conflict, EventStore, StoreInUseError, open_store
from tests.support.given import active, context, requested, settle


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[EventStore]:
    opened = open_store(store_url)
    opened.start()
    yield opened
    await opened.close()


def owes(instance: Instance) -> list[OwingChange]:
    return [OwingChange(aggregate_id=instance.id, partition=7, owes=instance.owes_in(instance.state))]


async def test_what_was_committed_is_read_back_equal(store: EventStore) -> None:
    instance = active()
    events = list(instance.pending_events)
    await store.commit(instance.collect_events())
    assert await store.events_of(instance.id) == events
    assert fold(await store.events_of(instance.id)).__dict__ == instance.__dict__


async def test_a_lost_version_fails_alone_and_the_rest_of_its_group_is_committed(store: EventStore) -> None:
    taken = requested()
    await store.commit(taken.collect_events())
    rivals = [requested(taken.id)] + [requested() for _ in range(5)]
    results = await asyncio.gather(*(store.commit(r.collect_events()) for r in rivals), return_exceptions=True)
    assert isinstance(results[0], Conflict)
    assert results[1:] == [None] * 5
    assert await store.existing(r.id for r in rivals) == {r.id for r in rivals}


async def test_a_lost_position_takes_its_events_with_it(store: EventStore) -> None:
    await store.commit([], positions=[Tracking("commands/1/7", 10)])
    instance = requested()
    with pytest.raises(Conflict):
        await store.commit(instance.collect_events(), positions=[Tracking("commands/1/7", 10)])
    assert await store.events_of(instance.id) == []


async def test_positions_of_many_partitions_are_committed_with_the_events(store: EventStore) -> None:
    instance = requested()
    await store.commit(instance.collect_events(), positions=[Tracking(f"commands/1/{p}", p + 1) for p in range(64)])
    assert [await store.position(f"commands/1/{p}") for p in range(64)] == list(range(1, 65))
    assert await store.position("commands/2/0") is None


async def test_a_position_reached_twice_in_one_group_is_the_last_and_one_that_goes_back_is_refused(
    store: EventStore,
) -> None:
    await store.commit([], positions=[Tracking("other", 1)])
    results = await asyncio.gather(
        *(store.commit([], positions=[Tracking("outbox", p), Tracking(f"p/{p}", 1)]) for p in (3, 7, 5, 9)),
        return_exceptions=True,
    )
    assert [isinstance(result, Conflict) for result in results] == [False, False, True, False]
    assert await store.position("outbox") == 9
    assert [await store.position(f"p/{p}") for p in (3, 7, 5, 9)] == [1, 1, None, 1]


@pytest.mark.parametrize("number", [1, 2, 3, 127, 128, 129, 300])
async def test_any_number_of_events_of_one_commit_stand_in_the_log_in_their_order(
    store: EventStore, number: int
) -> None:
    instances = [requested() for _ in range(number)]
    await store.commit([event for each in instances for event in each.collect_events()])
    log = await store.read(0, number + 1)
    assert [stored.aggregate_id for stored in log] == [each.id for each in instances]
    assert [stored.position for stored in log] == sorted({stored.position for stored in log})


async def test_who_owed_and_settled_in_one_group_is_not_in_the_index(store: EventStore) -> None:
    waits, ends = requested(), requested()
    first = [(waits.collect_events(), owes(waits)), (ends.collect_events(), owes(ends))]
    settle(ends)
    second = (ends.collect_events(), owes(ends))
    await asyncio.gather(*(store.commit(events, owing=owing) for events, owing in [*first, second]))
    assert await store.owing() == [(waits.id, 7)]


async def test_the_index_lists_who_owes_and_forgets_who_settled(store: EventStore) -> None:
    owing, settled = requested(), active()
    await store.commit(owing.collect_events(), owing=owes(owing))
    await store.commit(settled.collect_events(), owing=owes(settled))
    assert await store.owing() == [(owing.id, 7)]


async def test_a_lost_turn_is_forgotten_and_read_anew(store: EventStore) -> None:
    hot = HotAggregates(store)
    instance = requested()
    await store.commit(instance.collect_events())
    rival = fold(await store.events_of(instance.id))
    async with hot.turn(instance.id) as turn:
        assert turn.aggregate.state == "build_quota"
    rival.take("quota_reserved", at=rival.modified_on)
    await store.commit(rival.collect_events())

    async def take_the_same() -> None:
        async with hot.turn(instance.id) as turn:
            turn.aggregate.take("quota_reserved", at=rival.modified_on)
            await hot.commit(turn)

    with pytest.raises(Conflict):
        await take_the_same()
    async with hot.turn(instance.id) as turn:
        assert turn.aggregate.state == "build_security_group"


async def test_another_reader_follows_the_log_in_pages(store: EventStore, store_url: str) -> None:
    instances = [active() for _ in range(3)]
    expected = [event for i in instances for event in list(i.pending_events)]
    for instance in instances:
        await store.commit(instance.collect_events())
    reader = open_log(store_url)
    seen = []
    position = 0
    while page := await asyncio.to_thread(reader.read, position, 7):
        seen += [stored.event for stored in page]
        position = page[-1].position
    reader.close()
    assert seen == expected


async def test_a_second_writer_of_a_sqlite_store_is_told_who_has_it(tmp_path: Path) -> None:
    url, lock = f"sqlite://{tmp_path}/events.db", tmp_path / "lock"
    first = open_store(url, lock=lock)
    first.start()
    with pytest.raises(StoreInUseError, match="writes the event store already"):
        open_store(url, lock=lock)
    await first.close()
    again = open_store(url, lock=lock)
    again.start()
    await again.close()


async def test_missing_aggregates_are_nothing(store: EventStore) -> None:
    assert await store.events_of(uuid4()) == []
    assert await store.decision("acme", uuid4()) is None


async def snapshot_of(store: EventStore, aggregate_id: UUID, version: int) -> Snapshot:
    """The snapshot at or after a version; it is kept beside the turn, so it comes a little later."""
    deadline = time.monotonic() + 20
    while not (found := store.log.snapshots.select_events(aggregate_id, gt=version - 1)):
        assert time.monotonic() < deadline, "no snapshot was kept"
        await asyncio.sleep(0.01)
    snapshot: Snapshot = store.mapper.to_domain_event(found[0])
    return snapshot


async def test_a_long_history_is_loaded_from_its_last_snapshot(store: EventStore) -> None:
    hot = HotAggregates(store)
    instance = active()
    await store.commit(instance.collect_events())
    while instance.version < 2 * EVERY:
        async with hot.turn(instance.id) as turn:
            turn.aggregate.execute(Restart(), context())
            settle(turn.aggregate)
            await hot.commit(turn)
            instance = turn.aggregate
    kept = await snapshot_of(store, instance.id, 2 * EVERY)
    assert kept.restore().version >= 2 * EVERY
    assert (await store.load(instance.id)).__dict__ == fold(await store.events_of(instance.id)).__dict__


def test_a_snapshot_holds_all_that_an_aggregate_knows() -> None:
    instance = active(users=(User(name="app", password_ref="vault:1"),))
    instance.collect_events()
    assert InstanceSnapshot.take(instance).restore().__dict__ == instance.__dict__
    quota = Quota.create(quota_id("acme"), ReserveQuota(instance_id=instance.id, ram=1, volumes=2), context())
    quota.collect_events()
    assert QuotaSnapshot.take(quota).restore().__dict__ == quota.__dict__
