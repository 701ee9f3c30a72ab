"""Controls: with one thing in the engine broken, a few seeds are enough to find it, by the promise that it breaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from typing import Any
from unittest.mock import patch
from uuid import UUID

import msgspec
import pytest

from aggregates.commands import Command, ReleaseQuota
from aggregates.effects import ResourceAbsent, VolumeAbsent
from aggregates.quota import Quota
from aggregates.record import record_id
from engine.clouds.simulated import SimulatedCloud
from engine.observer import Observer
from engine.store import EventStore
from tests.simulation import schedule
from tests.simulation.streams import Headers, Stream
from tests.simulation.world import simulated

SEEDS = 25
LENGTH = 4 * schedule.MINUTE
GIVEN_UP = 20 * schedule.MINUTE
LONG_ENOUGH = 10 * schedule.MINUTE  # for a worker that is stopped in the gap to wake up again


def _forgets_who_owes() -> AbstractContextManager[Any]:
    """A worker started anew takes up nothing."""

    async def owing(_store: EventStore) -> list[Any]:
        return []

    return patch.object(EventStore, "owing", owing)


def _decides_again() -> AbstractContextManager[Any]:
    """Without the command record's key, a command that comes twice is decided twice."""
    numbers = count()

    def anew(project: str, command_id: UUID) -> UUID:
        return record_id(f"{project}{next(numbers)}", command_id)

    return patch("engine.deciding.record_id", anew)


def _leaves_volumes() -> AbstractContextManager[Any]:
    """The cloud's adapter says that a volume is gone, and lets it be."""
    pay = SimulatedCloud.pay

    async def pay_but_volumes(cloud: SimulatedCloud, effect: Any, key: str) -> Any:
        return {} if isinstance(effect, (VolumeAbsent, ResourceAbsent)) else await pay(cloud, effect, key)

    return patch.object(SimulatedCloud, "pay", pay_but_volumes)


def _keeps_quota() -> AbstractContextManager[Any]:
    """What an instance held is never given back."""
    execute = Quota.execute

    def without_release(quota: Quota, command: Command, context: Any) -> None:
        if not isinstance(command, ReleaseQuota):
            execute(quota, command, context)

    return patch.object(Quota, "execute", without_release)


def _observes_nothing() -> AbstractContextManager[Any]:
    """No worker looks at what the cloud holds."""

    async def look(_observer: Observer) -> None:
        return

    return patch.object(Observer, "look", look)


@contextmanager
def _broker_loses() -> Iterator[None]:
    """The broker acknowledges commands that it does not keep, as without a sync before the power went."""
    store = Stream.store
    numbers = count()

    def lossy(stream: Stream, subject: str, data: bytes, headers: Headers, now: float) -> tuple[int, bool]:
        stored = store(stream, subject, data, headers, now)
        if stream.config["name"] == "HOLDFAST_COMMANDS" and not stored[1] and next(numbers) % 4 == 3:
            stream.delete(stored[0])
        return stored

    with patch.object(Stream, "store", lossy):
        yield


@pytest.mark.parametrize(
    ("broken", "found"),
    [
        (_forgets_who_owes, "stuck"),
        (_decides_again, "lost"),
        (_leaves_volumes, "left over"),
        (_keeps_quota, "quota"),
        (_broker_loses, "lost"),
    ],
)
def test_a_seed_finds_it(
    broken: Callable[[], AbstractContextManager[Any]], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "SETTLES_WITHIN", GIVEN_UP)
    with broken():
        for seed in range(SEEDS):
            if any(found in breach for breach in schedule.course(seed, LENGTH).breaches):
                return
    pytest.fail(f"{SEEDS} seeds saw nothing of it")


def _stopped_in_gaps(seed: int) -> list[str]:
    """What is found by a seed in which workers are stopped in the gap, and which has no other trouble."""
    drawn = schedule.plan(seed, LONG_ENOUGH)
    chosen = msgspec.structs.replace(drawn, workers=3, trouble=schedule.Trouble(gaps=0.5))
    return simulated(seed, lambda world: schedule.Schedule(world, chosen).run(), shared=True).breaches


def test_a_seed_finds_that_nobody_observes() -> None:
    with _observes_nothing():
        assert any("doubled" in breach for seed in range(SEEDS) for breach in _stopped_in_gaps(seed))


@pytest.mark.parametrize("seed", range(5))
def test_where_somebody_observes_it_finds_nothing(seed: int) -> None:
    assert _stopped_in_gaps(seed) == []
