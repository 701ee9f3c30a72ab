"""The composition root of a worker: inbox, settler, outbox, health and endpoints around one store and one cloud.

All or nothing: when one of them ends by a defect the worker ends, for whoever supervises it to start it anew; nothing
is lost by that.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import structlog
from nats.aio.client import Client

from aggregates.catalogue import Catalogue
from engine.clock import Now, utc_now
from engine.clouds.port import Cloud
from engine.endpoints import Endpoints, Vault
from engine.health import HealthMonitor
from engine.hot import HotAggregates
from engine.inbox import Inbox
from engine.outbox import Outbox
from engine.payer import GuestPort, Payer
from engine.settler import Settler
from engine.store import EventStore
from engine.tasks import run_together

log = structlog.get_logger(__name__)

IN_FLIGHT = 64  # effects towards the cloud and its guests at once
CATALOGUE_AGE = 60.0  # seconds after which the cloud is asked again what it offers


class Worker:
    """Makes things happen until cancelled. `jitter` spreads retries: a number from 0 to 1 each time."""

    def __init__(
        self,
        client: Client,
        store: EventStore,
        cloud: Cloud,
        guests: GuestPort,
        vault: Vault,
        *,
        in_flight: int = IN_FLIGHT,
        now: Now = utc_now,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._client = client
        self._store = store
        self._cloud = cloud
        self._guests = guests
        self._vault = vault
        self._in_flight = in_flight
        self._now = now
        self._jitter = jitter
        self._catalogue: Catalogue | None = None

    async def run(self) -> None:
        """Serve until cancelled. The store must be started; it is left open."""
        await self._cloud.start()
        try:
            self._catalogue = await self._cloud.catalogue()
            hot = HotAggregates(self._store)
            payer = Payer(self._client, self._store, self._cloud, self._guests)
            settler = Settler(
                self._store,
                hot,
                payer.pay,
                limit=self._in_flight,
                latest_effect=self._cloud.latest_effect,
                now=self._now,
                jitter=self._jitter,
            )
            log.info("worker_started")
            await run_together(
                settler=settler.run(),
                inbox=Inbox(self._client, self._store, hot, self._offered, self._now).run(),
                outbox=Outbox(self._client, self._store).run(),
                health=HealthMonitor(self._client, self._store, hot, self._now).run(),
                endpoints=Endpoints(self._client, self._store, self._vault, self._offered, self._now).run(),
                catalogue=self._refresh_catalogue(),
            )
        finally:
            await self._cloud.close()

    def _offered(self) -> Catalogue:
        if self._catalogue is None:
            raise RuntimeError("the cloud has not said yet what it offers")
        return self._catalogue

    async def _refresh_catalogue(self) -> None:
        while True:
            await asyncio.sleep(CATALOGUE_AGE)
            self._catalogue = await self._cloud.catalogue()
