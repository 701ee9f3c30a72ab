"""A build with one more event class than this one. `write <store> <instance>` records the event, `serve <store>
<broker>` is a worker of that build.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from aggregates.instance_events import InstanceEvent
from engine.broker import BrokerSettings, connect
from engine.clouds.simulated import SimulatedCloud, SimulatedGuests
from engine.store import open_store
from engine.worker import Worker
from tests.engine.conftest import Vault


class InstanceRenamed(InstanceEvent):
    """The instance has another name now."""

    name: str

    def apply(self, aggregate: Any) -> None:
        """Assign."""
        aggregate.name = self.name


async def write(store_url: str, instance_id: str) -> None:
    """Record the event."""
    store = open_store(store_url)
    store.start()
    instance = await store.load(UUID(instance_id))
    instance.trigger_event(InstanceRenamed, timestamp=datetime.now(UTC), name="renamed")
    await store.commit(instance.collect_events())
    await store.close()


async def serve(store_url: str, broker_url: str) -> None:
    """Serve until killed."""
    client = await connect(BrokerSettings(url=broker_url), name="newer")
    store = open_store(store_url)
    store.start()
    await Worker(client, store, SimulatedCloud(latest_effect=timedelta(0)), SimulatedGuests(), Vault()).run()


if __name__ == "__main__":
    asyncio.run({"write": write, "serve": serve}[sys.argv[1]](*sys.argv[2:]))
