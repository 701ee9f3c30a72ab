"""The read side in one: projector, heartbeat view and query service, started in order and closed in reverse.

Runs beside a worker or alone, one for an installation. Ending it loses nothing: the next one goes on where it was.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog
from nats.aio.client import Client

from engine.clock import Now, utc_now
from projections.base import Log, ReadModels
from projections.heartbeats import HeartbeatView
from projections.models import MODELS
from projections.projector import Projector, Wake
from projections.queries import QueryService
from projections.reading import Reader

log = structlog.get_logger(__name__)


class Projections:
    """What answers queries. Raises `ProjectorRunningError` when another process does so in this directory."""

    def __init__(self, models: ReadModels, projector: Projector, reader: Reader, beats: HeartbeatView) -> None:
        self.projector = projector
        self._models = models
        self._reader = reader
        self._beats = beats
        self._queries: QueryService | None = None
        self._closed = False

    @classmethod
    async def start(
        cls, events: Log, directory: Path, client: Client, *, wake: Wake | None = None, now: Now = utc_now
    ) -> Projections:
        """Open the directory and begin to follow, to listen and to answer."""
        models = await asyncio.to_thread(ReadModels, directory, MODELS)
        projector = Projector(events, models, wake)
        beats = await asyncio.to_thread(HeartbeatView, client, directory, now)
        started = cls(models, projector, Reader(models.path), beats)
        try:
            # It must know of every page from where it has read the instances.
            projector.listen(beats.follow)
            projector.start()
            await beats.start()
            started._queries = QueryService(client, projector, started._reader, beats)
            await started._queries.start()
        except BaseException:
            await started.close()
            raise
        log.info("projector_started", directory=str(directory), position=projector.position)
        return started

    async def close(self) -> None:
        """Stop answering, finish the page under way, let go of the files. Closing twice is closing once."""
        if self._closed:
            return
        self._closed = True
        if self._queries is not None:
            await self._queries.close()
        await self._beats.close()
        await self.projector.close()
        self._reader.close()
        self._models.close()


async def run_projector(events: Log, directory: Path, client: Client, *, wake: Wake | None = None) -> None:
    """Serve the read side until cancelled."""
    started = await Projections.start(events, directory, client, wake=wake)
    try:
        await asyncio.Event().wait()
    finally:
        await started.close()
