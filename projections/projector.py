"""The projector: follows the log into the read models, page by page, and tells who waits for a change.

Every event is applied once to every model, whatever died in between. A model that cannot take an event stands still
and says so, the others go on; an event of a kind that no model reads is passed over and named once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import structlog

from engine import crash_points
from engine.clock import monotonic
from engine.databases import is_unavailable
from projections.base import CannotApplyError, Log, ReadModels, StoredEvent
from projections.commands import touched
from projections.models import MODELS

log = structlog.get_logger(__name__)
_T = TypeVar("_T")

PAGE = 500
POLL = (0.05, 0.2)  # seconds between two looks at the log: just after events, and when nothing happens
CLOSE_WITHIN = 5.0  # seconds for the page under way
WOKEN = 1.0  # the same where `wake` tells of this process's own events: only others' are looked for
PAUSE = (0.2, 5.0)  # seconds before the log or the file is tried again after an error


class Wake(Protocol):
    """What tells of new events; an `asyncio.Event` set on the projector's loop. Without it the log is looked at."""

    async def wait(self) -> object: ...
    def clear(self) -> None: ...


Listener = Callable[[Sequence[StoredEvent]], None]


class Projector:
    """Runs on one event loop; the work is done in one thread of its own."""

    def __init__(self, events: Log, models: ReadModels, wake: Wake | None = None) -> None:
        self._log = events
        self._models = models
        self._wake = wake
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="projector")
        self._positions = {name: models.position(name) for name in models.models}
        self._end = max(self._positions.values())
        self._stopped: dict[str, CannotApplyError] = {}
        self._unread: set[str] = set()
        self._waiting: dict[str, dict[asyncio.Event, None]] = {}
        self._listeners: list[Listener] = []
        self._turn = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to follow."""
        self._task = asyncio.create_task(self._follow(), name="projector")

    async def close(self) -> None:
        """Finish the page under way, unless the log stays away, and stop."""
        if self._task is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_WITHIN), self._turn:
                    self._task.cancel()
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._log.give_up()
        await asyncio.to_thread(self._thread.shutdown)

    # --- where it stands ------------------------------------------------------------------------------------------

    @property
    def positions(self) -> dict[str, int]:
        """The position of each model."""
        return dict(self._positions)

    @property
    def position(self) -> int:
        """What every model that is not stopped has read."""
        running = [position for name, position in self._positions.items() if name not in self._stopped]
        return min(running, default=0)

    @property
    def lag(self) -> int:
        """How far the slowest model, a stopped one too, stands behind the end of the log as last seen."""
        return max(0, self._end - min(self._positions.values()))

    @property
    def stopped(self) -> dict[str, str]:
        """The models that stand still, and why."""
        return {name: str(error) for name, error in self._stopped.items()}

    # --- waiting --------------------------------------------------------------------------------------------------

    def listen(self, listener: Listener) -> None:
        """Have the listener called on the loop with each page that is committed. It must not raise."""
        self._listeners.append(listener)

    @contextmanager
    def changes(self, ids: Iterable[str]) -> Iterator[asyncio.Event]:
        """An event that is set when an answer about one of these commands or aggregates may have changed."""
        event = asyncio.Event()
        keys = list(ids)
        for key in keys:
            self._waiting.setdefault(key, {})[event] = None
        try:
            yield event
        finally:
            for key in keys:
                self._waiting[key].pop(event, None)
                if not self._waiting[key]:
                    del self._waiting[key]

    async def wait_for(self, position: int, timeout: float) -> None:
        """Wait until every running model has read up to the position. Raises `TimeoutError`."""
        async with asyncio.timeout(timeout):
            while self.position < position:
                with self.changes([_ANY]) as changed:
                    if self.position < position:
                        await changed.wait()

    # --- following ------------------------------------------------------------------------------------------------

    async def rebuild(self, names: Sequence[str] | None = None) -> None:
        """Make the models (all by default) again from the whole log; readers see the old rows until it is done.

        Raises `CannotApplyError`; the old rows then stay.
        """
        wanted = list(self._models.models) if names is None else list(names)
        unknown = sorted(set(wanted) - self._models.models.keys())
        if unknown:
            raise ValueError(f"no read model {', '.join(unknown)}; there are: {', '.join(self._models.models)}")
        async with self._turn:
            began = monotonic()
            await self._in_thread(lambda: self._models.rebuild(wanted, self._log, PAGE))
            for name in wanted:
                self._positions[name] = await self._in_thread(partial(self._models.position, name))
                self._stopped.pop(name, None)
            self._wake_all()
        log.info("read_models_rebuilt", models=wanted, seconds=round(monotonic() - began, 3))

    async def _follow(self) -> None:
        pause, poll = PAUSE[0], POLL[0]
        while True:
            try:
                async with self._turn:
                    moved = await self._step()
            except Exception as error:
                if not is_unavailable(error):
                    log.exception("projector_interrupted", error=repr(error), retry_in=pause)
                elif pause == PAUSE[0]:
                    log.warning("store_unavailable", error=str(error), next="read models stand still until it is back")
                await asyncio.sleep(pause)
                pause = min(pause * 2, PAUSE[1])
                continue
            pause = PAUSE[0]
            poll = POLL[0] if moved else min(poll * 1.5, POLL[1])
            if not moved:
                await self._nudge(poll)

    async def _nudge(self, poll: float) -> None:
        if self._wake is None:
            await asyncio.sleep(poll)
            return
        try:
            async with asyncio.timeout(WOKEN):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()

    async def _step(self) -> bool:
        """Advance the models by one page, those at one position together; whether there was anything."""
        groups: dict[int, list[str]] = {}
        for name, position in self._positions.items():
            if name not in self._stopped:
                groups.setdefault(position, []).append(name)
        moved = False
        for position, names in groups.items():
            page = await self._read(position)
            if page:
                await self._advance(names, page)
                moved = True
        return moved

    async def _read(self, position: int) -> Sequence[StoredEvent]:
        try:
            page = await self._in_thread(lambda: self._log.read(position, PAGE))
        except Exception as error:
            if is_unavailable(error):
                raise
            log.warning("page_not_read", after=position, error=str(error))
            # One event that cannot be read must not keep back those before it.
            page = await self._in_thread(lambda: self._log.read(position, 1))
        if len(page) == PAGE:
            self._end = await self._in_thread(self._log.end)
        elif page:
            self._end = max(self._end, page[-1].position)
        return page

    async def _advance(self, names: Sequence[str], page: Sequence[StoredEvent]) -> None:
        crash_points.reach("projector_before_commit")
        stopped = await self._in_thread(lambda: self._models.advance(names, page))
        crash_points.reach("projector_after_commit")
        for name in names:
            if name not in stopped:
                self._positions[name] = page[-1].position
                continue
            error = self._stopped[name] = stopped[name]
            self._positions[name] = await self._in_thread(partial(self._models.position, name))
            log.error("read_model_stopped", model=name, position=error.position, error=str(error))
        self._name_unread(page)
        self._tell(page)

    def _name_unread(self, page: Sequence[StoredEvent]) -> None:
        known = frozenset().union(*(model.kinds for model in self._models.models.values()))
        for topic in {stored.topic for stored in page} - self._unread:
            if topic.partition(".")[0] not in known:
                self._unread.add(topic)
                log.warning("topic_not_read", topic=topic)

    def _tell(self, page: Sequence[StoredEvent]) -> None:
        for listener in self._listeners:
            listener(page)
        if self._waiting:
            for key in (*touched(page), _ANY):
                for event in self._waiting.get(key, ()):
                    event.set()

    def _wake_all(self) -> None:
        for events in self._waiting.values():
            for event in events:
                event.set()

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


_ANY = ""  # what waits for any page


def rebuild(events: Log, directory: Path, names: Sequence[str] | None = None) -> None:
    """Make read models again while no projector runs. Raises `ProjectorRunningError`, `CannotApplyError`."""
    models = ReadModels(directory, MODELS)
    try:
        models.rebuild(list(models.models) if names is None else names, events, PAGE)
    finally:
        models.close()
