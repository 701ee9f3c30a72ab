"""What a settler knew of a range is forgotten with the range: others may have paid there meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from aggregates.effects import Effect
from engine.clouds.port import others_act_until
from engine.hot import HotAggregates
from engine.partitions import RANGES, Sole
from engine.recorders import OwingChange
from engine.settler import Settler
from engine.store import open_store
from engine.tasks import end
from tests.support.given import NOON, requested


class HandedOver(Sole):
    """All is held, and served unless it is being handed over."""

    leaving = False

    def serves(self, name: str) -> bool:
        return not self.leaving and super().serves(name)


async def test_who_comes_back_to_an_operation_reckons_with_who_paid_meanwhile(tmp_path: Path) -> None:
    store = open_store(f"sqlite://{tmp_path}/events.db")
    store.start()
    ownership = HandedOver()
    alone: list[bool] = []
    paying = asyncio.Event()

    async def pay(effect: Effect, key: str) -> Mapping[str, Any]:
        del effect, key
        alone.append(others_act_until.get() == 0)
        paying.set()
        await asyncio.Event().wait()
        return {}

    hot = HotAggregates(store, ownership)
    settler = Settler(store, hot, pay, ownership=ownership, latest_effect=timedelta(seconds=60), now=lambda: NOON)
    running = asyncio.create_task(settler.run())
    ownership.leaving = True
    instance = requested()
    owing = [OwingChange(aggregate_id=instance.id, partition=instance.partition, owes=True)]
    await store.commit(instance.collect_events(), owing=owing)
    await asyncio.sleep(0.1)
    settler.lost(RANGES)
    ownership.leaving = False
    settler.gained(RANGES)
    await asyncio.wait_for(paying.wait(), 20)
    assert alone == [False]
    await end(running)
    await store.close()
