"""What a worker hears of pauses with, on a broker of the tests' own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from nats.aio.client import Client

from engine.broker import BrokerSettings, connect
from engine.pauses import Pauses
from engine.tasks import end
from tests.support.eventually import eventually


@asynccontextmanager
async def hearing(url: str) -> AsyncIterator[tuple[Client, Pauses]]:
    """A connection and what tells and listens by it, once it does."""
    client = await connect(BrokerSettings(url=url), name="worker")
    pauses = Pauses(client)
    listens = asyncio.Event()
    pauses.listen("anything", lambda _: listens.set())
    running = asyncio.create_task(pauses.run())

    async def told() -> bool:
        pauses.tell("anything", 0.0)
        return listens.is_set()

    try:
        await eventually(told)
        yield client, pauses
    finally:
        await end(running)
        await client.close()
