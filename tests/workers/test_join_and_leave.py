"""Workers join and leave while operations run, in order and by death: none is lost, doubled or stuck."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable

import pytest

from tests.support.simulated_cloud import WHOLE
from tests.workers.conftest import Workers

OPERATIONS = 100
CHANGES = 6


@pytest.fixture
def cloud_arguments() -> tuple[str, ...]:
    """Slow enough that operations run all the time."""
    return ("--latest-effect", "0.5", "--verb-time", "0.4", "--build-time", "0.4", "--latency", "0.05")


async def test_nothing_is_lost_doubled_or_stuck(
    workers: Workers, record_property: Callable[[str, object], None]
) -> None:
    workers.start()
    workers.start()
    await workers.shared()
    creating = workers.begin_create(OPERATIONS)
    done = []
    for number in range(CHANGES):
        await asyncio.sleep(random.uniform(0.3, 1.0))
        change = ("join", "leave", "die")[number % 3]
        if change == "join":
            workers.start()
        elif change == "die":
            workers.kill(random.choice(workers.running))
            workers.start()
        else:
            leaving = workers.running.pop(0)
            assert await asyncio.to_thread(leaving.end) == 0
        done.append(change)
    ids = await creating
    assert {i.state for i in await workers.settled(ids)} == {"ACTIVE"}
    assert len({i.id for i in await workers.settled(ids)}) == OPERATIONS
    kept = await workers.held()
    assert set(kept.values()) == {1}
    assert Counter(kind for kind, _ in kept) == {kind: OPERATIONS * each for kind, each in WHOLE.items()}
    await workers.shared()
    record_property(
        "figures",
        f"{OPERATIONS} creates while workers did {', '.join(done)}: 0 lost, 0 doubled, 0 stuck",
    )
