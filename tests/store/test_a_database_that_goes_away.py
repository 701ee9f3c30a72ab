"""A database that is away, locked or full is waited for, in reading and in writing; nobody waits for it in vain."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from eventsourcing.persistence import InternalError, OperationalError, Tracking

from engine import databases
from engine import store as stores
from engine.databases import StoreUnavailableError, is_unavailable
from engine.store import Conflict, EventStore, open_store
from tests.support.given import active, requested
from tests.support.postgres import Postgres, own_postgres


@pytest.fixture
def postgres_of_its_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[Postgres]:
    """A server to be stopped; calls to it are cut off after a second or two."""
    monkeypatch.setattr(databases, "CUT_AFTER", 1.0)
    with own_postgres() as server:
        yield server


async def test_a_commit_whose_answer_was_lost_is_no_conflict(store_url: str) -> None:
    store = open_store(store_url)
    store.start()
    insert = store._recorder.insert_events
    heard: list[Any] = []
    store.listen(heard.extend)

    def insert_and_die(*args: Any, **kwargs: Any) -> Any:
        insert(*args, **kwargs)
        store._recorder.insert_events = insert  # type: ignore[method-assign]
        raise OperationalError("the server closed the connection unexpectedly")

    store._recorder.insert_events = insert_and_die  # type: ignore[method-assign]
    instance = active()
    events = list(instance.pending_events)
    await store.commit(instance.collect_events(), positions=[Tracking("commands/1/7", 3)])
    assert heard == events  # who waits for it learns of it
    assert await store.events_of(instance.id) == events
    # A rival's events under the same versions are one.
    with pytest.raises(Conflict):
        await store.commit(requested(instance.id).collect_events())
    await store.close()


async def test_a_unit_that_cannot_be_written_takes_no_other_with_it(store_url: str) -> None:
    store = open_store(store_url)
    store.start()
    good, bad = [requested() for _ in range(4)], requested()
    broken = [object(), *bad.collect_events()]
    results = await asyncio.gather(
        store.commit(good[0].collect_events()),
        store.commit(broken),
        *(store.commit(each.collect_events()) for each in good[1:]),
        return_exceptions=True,
    )
    assert isinstance(results[1], Exception)
    assert not isinstance(results[1], Conflict)
    assert [each for each in results if each is not results[1]] == [None] * 4
    assert await store.existing([*(g.id for g in good), bad.id]) == {g.id for g in good}
    await store.close()


def _break(_: Any) -> None:
    raise RuntimeError("a defect")


async def test_a_listener_that_breaks_does_not_stop_the_store(store_url: str) -> None:
    store = open_store(store_url)
    store.start()
    heard: list[Any] = []
    store.listen(_break)
    store.listen(heard.extend)
    for _ in range(2):
        await store.commit(requested().collect_events())
    assert len(heard) == 2
    await store.close()


async def test_who_was_cancelled_before_a_conflict_does_not_stop_the_store(store_url: str) -> None:
    store = open_store(store_url)
    store.start()
    instance = requested()
    await store.commit(instance.collect_events())
    lost = asyncio.create_task(store.commit(requested(instance.id).collect_events()))
    await asyncio.sleep(0)
    lost.cancel()
    await asyncio.wait({lost})
    async with asyncio.timeout(20):
        await store.commit(requested().collect_events())
    await store.close()


async def test_a_sqlite_file_locked_by_another_process_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(f"sqlite://{tmp_path}/events.db")
    store.log.recorder.datastore.pool.lock_timeout = 1  # type: ignore[union-attr]
    store.start()
    other = sqlite3.connect(tmp_path / "events.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    instance = requested()
    waiting = asyncio.create_task(store.commit(instance.collect_events()))
    await asyncio.sleep(1.5)
    assert not waiting.done()
    other.execute("COMMIT")
    async with asyncio.timeout(20):
        await waiting
    other.close()
    assert await store.existing([instance.id]) == {instance.id}
    await store.close()


async def test_a_commit_that_failed_leaves_nothing_for_the_next_one(tmp_path: Path) -> None:
    """A transaction that stays open when its commit fails would be committed with whatever comes after it."""
    store = open_store(f"sqlite://{tmp_path}/events.db")
    store.start()
    pool: Any = store.log.recorder.datastore.pool
    connection = pool.get_connection(is_writer=True)
    pool.put_connection(connection)
    real = connection._sqlite_conn

    class Full:
        """Says once that the disk is full when it comes to the commit."""

        commits = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def commit(self) -> None:
            Full.commits += 1
            raise sqlite3.OperationalError("database or disk is full")

    connection._sqlite_conn = Full()
    instances = [requested() for _ in range(3)]
    for instance in instances:
        async with asyncio.timeout(20):
            await store.commit(instance.collect_events())
    assert Full.commits == 1
    assert connection.closed
    assert await store.existing(i.id for i in instances) == {i.id for i in instances}
    await store.close()


async def test_a_connection_that_cannot_be_made_does_not_keep_the_writers_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "state"
    directory.mkdir()
    store = open_store(f"sqlite://{directory}/events.db")
    store.start()
    pool: Any = store.log.recorder.datastore.pool
    while pool._pool:
        pool._pool.popleft().close()
    directory.rename(tmp_path / "away")
    waiting = asyncio.create_task(store.commit(requested().collect_events()))
    reading = asyncio.create_task(store.owing())
    await asyncio.sleep(0.5)
    assert not waiting.done()
    assert not reading.done()
    (tmp_path / "away").rename(directory)
    async with asyncio.timeout(20):
        await asyncio.gather(waiting, reading)
    await store.close()


async def test_a_postgresql_that_goes_away_is_waited_for(postgres_of_its_own: Postgres) -> None:
    server = postgres_of_its_own
    store = open_store(server.url)
    store.start()
    for go, come_back in ((server.pause, server.resume), (server.kill, server.start)):
        before = requested()
        await store.commit(before.collect_events())
        go()
        after = [requested() for _ in range(3)]
        waiting = [asyncio.create_task(store.commit(each.collect_events())) for each in after]
        reading = asyncio.create_task(store.load(before.id))
        await asyncio.sleep(2)
        assert not [task for task in (*waiting, reading) if task.done()]
        come_back()
        async with asyncio.timeout(30):
            await asyncio.gather(*waiting)
            assert (await reading).id == before.id
        assert await store.existing(each.id for each in after) == {each.id for each in after}
    await store.close()


async def test_the_store_is_closed_in_time_while_its_database_is_away(
    postgres_of_its_own: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "CLOSE_WITHIN", 0.3)
    server = postgres_of_its_own
    for go, come_back in ((server.pause, server.resume), (server.kill, server.start)):
        store = open_store(server.url)
        store.start()
        await store.commit(requested().collect_events())
        go()
        waiting = asyncio.create_task(store.commit(requested().collect_events()))
        await asyncio.sleep(0.5)
        began = time.monotonic()
        await store.close()
        assert time.monotonic() - began < 25
        with pytest.raises(StoreUnavailableError):
            await waiting
        come_back()


def test_a_defect_is_not_waited_for() -> None:
    assert not is_unavailable(InternalError("current transaction is aborted"))
    assert is_unavailable(OperationalError("database or disk is full"))


def test_positions_alone_conflict_too(store_url: str) -> None:
    async def twice() -> None:
        store: EventStore = open_store(store_url)
        store.start()
        await store.commit([], positions=[Tracking("outbox", 3)])
        async with asyncio.timeout(20):
            with pytest.raises(Conflict):
                await store.commit([], positions=[Tracking("outbox", 3)])
        await store.close()

    asyncio.run(twice())
