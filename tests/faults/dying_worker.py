"""A worker that a command named `deadly` kills as it is decided; run as a process of its own: URL of broker, of store.

It notes each such death in the file named third before it dies.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

from aggregates.base import Context
from aggregates.commands import CreateInstance
from aggregates.instance import Instance
from engine.broker import BrokerSettings, connect, ensure_streams
from engine.clouds.simulated import SimulatedCloud, SimulatedGuests
from engine.deciding import AGGREGATES
from engine.store import open_store
from engine.worker import Worker
from tests.engine.conftest import Vault


class DeadlyInstance:
    """Creating one that is named so is the end."""

    @classmethod
    def create(cls, aggregate_id: UUID, command: CreateInstance, context: Context) -> Any:
        if command.name == "deadly":
            with Path(sys.argv[3]).open("a") as deaths:
                deaths.write("died\n")
            os.kill(os.getpid(), signal.SIGKILL)
        return Instance.create(aggregate_id, command, context)


async def main() -> None:
    AGGREGATES["instance"] = DeadlyInstance
    client = await connect(BrokerSettings(url=sys.argv[1]), name="worker")
    await ensure_streams(client.jetstream())
    store = open_store(sys.argv[2])
    store.start()
    await Worker(client, store, SimulatedCloud(), SimulatedGuests(), Vault()).run()


asyncio.run(main())
