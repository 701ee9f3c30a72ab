"""The composition root of a worker: inbox, settler, outbox, health, observer, endpoints; one store and one cloud.

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
from engine.clouds.port import Cloud, PayError, TransientError
from engine.endpoints import Endpoints, Vault
from engine.health import HealthMonitor
from engine.hot import HotAggregates
from engine.inbox import Inbox
from engine.nudges import Nudge, Nudges
from engine.observer import OBSERVE_EVERY, Observer
from engine.orphans import Orphans
from engine.outbox import Outbox
from engine.partitions import Leases, Ownership, Sole
from engine.payer import ACTOR, GuestPort, Payer
from engine.settler import Settler
from engine.store import EventStore
from engine.tasks import run_together

log = structlog.get_logger(__name__)

CATALOGUE_AGE = 60.0  # seconds after which the cloud is asked again what it offers
CATALOGUE_RETRY = 2.0  # seconds, while nothing is known of it
CATALOGUE_LACKS = 10.0  # seconds, while nothing is known of some region


class Worker:
    """Makes things happen until cancelled. `jitter` spreads retries: a number from 0 to 1 each time.

    `observe_every`: seconds between two looks at all that the cloud holds; 0 for none.
    `ownership`: shared out among all workers of the store, where it takes several; all of it where it takes one.
    """

    def __init__(
        self,
        client: Client,
        store: EventStore,
        cloud: Cloud,
        guests: GuestPort,
        vault: Vault,
        *,
        observe_every: float = OBSERVE_EVERY,
        ownership: Ownership | None = None,
        now: Now = utc_now,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._client = client
        self._store = store
        self._cloud = cloud
        self._guests = guests
        self._vault = vault
        self._observe_every = observe_every
        self._ownership = ownership
        self._now = now
        self._jitter = jitter
        self._catalogue: Catalogue | None = None

    async def run(self) -> None:
        """Serve until cancelled. The store must be started; it is left open."""
        await self._cloud.start()
        try:
            self._catalogue = await self._first_catalogue()
            await self._serve()
        finally:
            await self._cloud.close()

    async def _serve(self) -> None:
        client, store = self._client, self._store
        ownership = self._owned()
        hot = HotAggregates(store, ownership)
        payer = Payer(client, store, self._cloud, self._guests)
        settler = Settler(
            store,
            hot,
            payer.pay,
            ownership=ownership,
            latest_effect=self._cloud.latest_effect,
            now=self._now,
            jitter=self._jitter,
        )
        ownership.running = lambda: settler.running
        ownership.traffic = lambda: self._cloud.traffic
        outbox = Outbox(client, store, ownership)

        def heard(nudge: Nudge) -> None:
            outbox.wake()
            payer.decided(nudge.decided)

        parts = {
            "ownership": ownership.run(),
            "settler": settler.run(),
            "inbox": Inbox(client, store, hot, self._offered, self._now, ownership).run(),
            "outbox": outbox.run(),
            "health": HealthMonitor(client, store, hot, self._now, ownership).run(),
            "endpoints": Endpoints(client, store, self._vault, self._offered, ownership, self._now).run(),
            "orphans": Orphans(client, store, hot, self._cloud, payer.pay, ownership, self._now).run(),
            "catalogue": self._refresh_catalogue(),
        }
        if self._observe_every:
            observer = Observer(
                store,
                hot,
                self._cloud,
                payer.pay,
                every=self._observe_every,
                ownership=ownership,
                now=self._now,
                jitter=self._jitter,
            )
            parts["observer"] = observer.run()
        if store.shared:
            parts["nudges"] = Nudges(client, store, heard, internal=ACTOR).run()
        log.info("worker_started")
        try:
            await run_together(**parts)
        finally:
            await ownership.release()

    def _owned(self) -> Ownership:
        if self._ownership is not None:
            return self._ownership
        return Leases(self._client, self._store, self._now) if self._store.shared else Sole(self._now)

    def _offered(self) -> Catalogue:
        if self._catalogue is None:
            raise RuntimeError("the cloud has not said yet what it offers")
        return self._catalogue

    async def _first_catalogue(self) -> Catalogue:
        """Without one nothing can be decided, so a cloud that is away is waited for."""
        while True:
            try:
                return await self._cloud.catalogue()
            except TransientError as error:
                log.warning("no_catalogue", error=str(error), retry_in=CATALOGUE_RETRY)
            await asyncio.sleep(CATALOGUE_RETRY)

    async def _refresh_catalogue(self) -> None:
        while True:
            await asyncio.sleep(CATALOGUE_AGE if self._offered().whole else CATALOGUE_LACKS)
            try:
                self._catalogue = await self._cloud.catalogue()
            except PayError as error:
                log.warning("catalogue_not_refreshed", error=str(error), retry_in=CATALOGUE_AGE)
