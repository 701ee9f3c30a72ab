"""Without the broker nobody owns anything and nothing is done; when it is back, all goes on by itself."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from tests.support.simulated_cloud import WHOLE
from tests.workers.conftest import Process, Workers


@pytest.fixture
def cloud_arguments() -> tuple[str, ...]:
    """Operations that are not done before the broker goes."""
    return ("--latest-effect", "0.5", "--verb-time", "1", "--build-time", "1", "--latency", "0.1")


async def test_workers_stand_still_without_it_and_go_on_with_it(workers: Workers) -> None:
    processes = [workers.start(), workers.start()]
    await workers.shared()
    ids = await workers.create(20)
    said = {process: len(process.said()) for process in processes}
    workers.broker.kill()
    await workers.eventually(lambda: all_lost(said))
    ledger = await workers.far_side.ledger()
    await asyncio.sleep(1)
    assert await workers.far_side.ledger() == ledger
    await asyncio.to_thread(workers.broker.start)
    assert {i.state for i in await workers.settled(ids)} == {"ACTIVE"}
    await workers.shared()
    kept = await workers.held()
    assert set(kept.values()) == {1}
    assert Counter(kind for kind, _ in kept) == {kind: len(ids) * each for kind, each in WHOLE.items()}


async def all_lost(said: dict[Process, int]) -> bool:
    return all("ranges_lost" in process.said()[before:] for process, before in said.items())
