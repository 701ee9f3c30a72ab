"""The projector follows the log: at once when nudged, soon when not, whatever happens to one model or to the log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any
from uuid import UUID

import pytest
import structlog.testing

from projections.base import Log, ReadModels, StoredEvent
from projections.projector import Projector
from tests.projections.asking import dump
from tests.projections.story import Story

LONG = 30.0


@pytest.fixture
async def projector(story: Story, models: ReadModels) -> AsyncIterator[Projector]:
    following = Projector(story.log, models)
    yield following
    await following.close()


async def eventually(true: Callable[[], bool]) -> None:
    """Wait until it is so."""
    async with asyncio.timeout(LONG):
        while not true():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)


async def test_it_comes_up_to_the_end_and_goes_on(story: Story, projector: Projector) -> None:
    story.settle(story.create())
    projector.start()
    await projector.wait_for(story.log.end(), LONG)
    assert (projector.lag, set(projector.positions.values())) == (0, {story.log.end()})
    story.create()
    await projector.wait_for(story.log.end(), LONG)


async def test_a_nudge_wakes_it(story: Story, models: ReadModels) -> None:
    wake = asyncio.Event()
    projector = Projector(story.log, models, wake)
    projector.start()
    for _ in range(5):
        story.create()
        wake.set()
        await projector.wait_for(story.log.end(), LONG)
    await projector.close()


async def test_who_waits_for_an_aggregate_is_told(story: Story, projector: Projector) -> None:
    instance_id = story.create()
    projector.start()
    await projector.wait_for(story.log.end(), LONG)
    with projector.changes([str(instance_id)]) as changed, projector.changes(["another"]) as other:
        story.pay(instance_id)
        async with asyncio.timeout(LONG):
            await changed.wait()
        assert not other.is_set()


async def test_waiting_for_what_never_comes_ends(story: Story, projector: Projector) -> None:
    projector.start()
    with pytest.raises(TimeoutError):
        await projector.wait_for(story.log.end() + 1, 0.05)


async def test_a_model_that_cannot_go_on_stands_still_and_says_so(
    story: Story, models: ReadModels, projector: Projector
) -> None:
    story.settle(story.create())
    good = story.log.end()
    bad = story.spoil()
    story.create()
    with structlog.testing.capture_logs() as logs:
        projector.start()
        await projector.wait_for(story.log.end(), LONG)
        await eventually(lambda: "instances" in projector.stopped)
        story.create()
        await projector.wait_for(story.log.end(), LONG)
    said = [line for line in logs if line["event"] == "read_model_stopped"]
    assert [(line["model"], line["position"], line["log_level"]) for line in said] == [("instances", bad, "error")]
    assert projector.positions["instances"] == models.position("instances") == good
    assert projector.lag == story.log.end() - good


class _Mended:
    """The log as it reads once an event that could not be read or taken is mended."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.broken: Callable[[StoredEvent], bool] = lambda _: False
        self.hidden: Callable[[StoredEvent], bool] = lambda _: False

    def read(self, after: int, limit: int) -> Sequence[StoredEvent]:
        page = [stored for stored in self.log.read(after, limit) if not self.hidden(stored)]
        if any(self.broken(stored) for stored in page):
            raise OSError("the log cannot be read there")
        return page

    def end(self) -> int:
        return self.log.end()

    def give_up(self) -> None:
        self.log.give_up()


async def test_a_rebuild_sets_a_stopped_model_going_again(story: Story, models: ReadModels) -> None:
    story.settle(story.create())
    bad = story.spoil()
    story.create()
    log = _Mended(story.log)
    projector = Projector(log, models)
    projector.start()
    await eventually(lambda: "instances" in projector.stopped)
    log.hidden = lambda stored: stored.position == bad
    await projector.rebuild(["instances"])
    assert projector.stopped == {}
    story.create()
    await projector.wait_for(story.log.end(), LONG)
    assert len(dump(models)["instances"]) == 3
    await projector.close()


async def test_it_outlives_a_log_that_cannot_be_read(story: Story, models: ReadModels) -> None:
    story.settle(story.create())
    reached = story.log.end()
    story.create()
    log = _Mended(story.log)
    log.broken = lambda stored: stored.position > reached
    projector = Projector(log, models)
    projector.start()
    await projector.wait_for(reached, LONG)
    assert projector.position == reached
    log.broken = lambda _: False
    await projector.wait_for(story.log.end(), LONG)
    await projector.close()


async def test_rebuilding_while_following_ends_up_equal(story: Story, models: ReadModels) -> None:
    projector = Projector(story.log, models)
    projector.start()
    for step in story.wander(120):
        if step % 40 == 20:
            await projector.rebuild()
        await asyncio.sleep(0)
    await projector.wait_for(story.log.end(), LONG)
    followed = dump(models)
    await projector.rebuild()
    assert dump(models) == followed
    with pytest.raises(ValueError, match="no read model nonsense"):
        await projector.rebuild(["nonsense"])
    await projector.close()


async def test_a_kind_that_no_model_reads_is_named_once(story: Story, models: ReadModels) -> None:
    log = _Stranger()
    projector = Projector(log, models)
    with structlog.testing.capture_logs() as logs:
        projector.start()
        await projector.wait_for(2, LONG)
        await projector.close()
    assert [line["topic"] for line in logs if line["event"] == "topic_not_read"] == ["moon.Rose"]


class _Stranger:
    """A log of an aggregate that the read models know nothing of."""

    def read(self, after: int, limit: int) -> Sequence[Any]:
        return [_Rose(position) for position in (1, 2) if position > after][:limit]

    def end(self) -> int:
        return 2

    def give_up(self) -> None:
        """It never hangs."""


class _Rose:
    topic, version, event = "moon.Rose", 1, None
    aggregate_id = UUID(int=1)

    def __init__(self, position: int) -> None:
        self.position = position
