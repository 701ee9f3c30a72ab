"""A worker that dies is followed: its operations go on elsewhere within seconds, none lost, doubled or stuck."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from statistics import quantiles
from uuid import UUID

import pytest

from engine.partitions import range_of_aggregate
from tests.support.simulated_cloud import WHOLE
from tests.workers.conftest import Workers

KILLS = 2
EACH = 50


@pytest.fixture
def cloud_arguments() -> tuple[str, ...]:
    """Operations of several seconds, so that many run when a worker dies."""
    return ("--latest-effect", "0.5", "--verb-time", "0.5", "--build-time", "0.5", "--latency", "0.05")


async def test_operations_of_a_killed_worker_go_on_elsewhere(
    workers: Workers, record_property: Callable[[str, object], None]
) -> None:
    for _ in range(3):
        workers.start()
    await workers.shared()
    ids: list[UUID] = []
    gaps: list[float] = []
    for _ in range(KILLS):
        owners = await workers.shared()
        ids += await workers.create(EACH)
        await asyncio.sleep(random.uniform(0.5, 1.5))
        killed = random.choice(workers.running)
        moment = workers.kill(killed)
        theirs = [i for i in ids[-EACH:] if owners[range_of_aggregate(i)] == killed.pid]
        await workers.settled(ids)
        gaps += [gap for i in theirs if (gap := await workers.moved_on(i, moment)) is not None]
        workers.start()
    await workers.shared()
    assert {i.state for i in await workers.settled(ids)} == {"ACTIVE"}
    assert len(gaps) >= KILLS
    kept = await workers.held()
    assert set(kept.values()) == {1}
    assert Counter(kind for kind, _ in kept) == {kind: len(ids) * each for kind, each in WHOLE.items()}
    record_property(
        "figures",
        f"{KILLS} of 3 workers killed (-9) under {len(ids)} creates: 0 lost, 0 doubled, 0 stuck; {len(gaps)} "
        f"operations went on elsewhere after {min(gaps):.2f} s at the least, median {quantiles(gaps, n=2)[0]:.2f} s, "
        f"p99 {quantiles(gaps, n=100)[98]:.2f} s, {max(gaps):.2f} s at the most",
    )
