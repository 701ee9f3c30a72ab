"""An asyncio loop whose time is virtual, and processes on it that can be killed and paused at any moment.

When nothing is ready the time jumps to the next timer, and work for threads runs on the loop, so one seed gives one
run. It shows nothing of races between threads, nor of how long anything takes on a real machine.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from contextvars import Context, ContextVar, copy_context
from typing import Any, NoReturn, TypeVar

import nats.errors

T = TypeVar("T")

STUCK_AFTER = 2_000_000  # callbacks without any time passing: somebody turns in a circle
LETTING_GO = 20  # rounds of cancelling what has not ended


class Died(BaseException):
    """Unwinds the process that has just died at a crash point. Nothing that it does on the way has any effect."""


class Stalled(Exception):  # noqa: N818 - the field's word
    """Nothing will ever happen any more, or time does not pass: somebody waits for what nobody does."""


class Process:
    """What dies and pauses as one. Nothing of it runs while it is paused, and nothing ever again once it is dead.

    A dead one runs no `finally`: its callbacks are dropped by the loop, as SIGKILL leaves them.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead = False
        self.paused = False
        self._held: list[asyncio.Handle] = []
        self._tasks: list[asyncio.Task[Any]] = []

    @property
    def running(self) -> bool:
        """Whether it may act."""
        return not self.dead and not self.paused

    def start(self, main: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run the coroutine, and whatever it begins, as this process."""
        loop = virtual()
        loop.processes.append(self)
        context = copy_context()
        context.run(current.set, self)
        task = loop.create_task(main, name=self.name, context=context)
        # The loop itself holds on to no task; one that waits for what only it knows would be collected.
        self._tasks.append(task)
        return task

    def kill(self) -> None:
        """End it at once."""
        self.dead = True

    def pause(self) -> None:
        """Stop it until `resume`, as SIGSTOP does: time goes on without it."""
        self.paused = True

    def resume(self) -> None:
        """Let it go on. All that came due meanwhile comes at once."""
        self.paused = False
        if not self.dead:
            virtual().take_back(self.release())

    def hold(self, handle: asyncio.Handle) -> None:
        """Keep a callback that came due while it could not run."""
        self._held.append(handle)

    def release(self) -> list[asyncio.Handle]:
        """The callbacks that were kept."""
        held, self._held = self._held, []
        return held


current: ContextVar[Process | None] = ContextVar("process", default=None)


class VirtualLoop(asyncio.BaseEventLoop):
    """`thread_time`: how long one call in a thread takes; half of it passes before its effect, half after."""

    def __init__(self, thread_time: Callable[[], float] = lambda: 0.0) -> None:
        super().__init__()
        self.callbacks = 0
        self.processes: list[Process] = []
        self._thread_time = thread_time
        self._moment = 0.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._order = itertools.count()
        self._busy_until: dict[int, float] = {}
        self._at_this_moment = 0

    def time(self) -> float:
        """The virtual time, in seconds since the loop was made."""
        return self._moment

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Timers due at one moment run in the order in which they were set."""
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    def take_back(self, handles: list[asyncio.Handle]) -> None:
        """Run callbacks that were held back."""
        self._ready.extend(handles)  # type: ignore[attr-defined]

    def _run_once(self) -> None:
        ready: deque[asyncio.Handle] = self._ready  # type: ignore[attr-defined]
        timers = self._timers
        if not ready:
            while timers and timers[0][2].cancelled():
                heapq.heappop(timers)
            if not timers:
                self._stall("nothing is left to happen, and the run has not ended")
            if timers[0][0] > self._moment:
                self._moment = timers[0][0]
                self._at_this_moment = 0
        while timers and timers[0][0] <= self._moment:
            ready.append(heapq.heappop(timers)[2])
        self._at_this_moment += len(ready)
        if self._at_this_moment > STUCK_AFTER:
            self._stall(f"time stands still at {self._moment:.6f} s")
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle.cancelled():
                continue
            process = handle._context.get(current)  # type: ignore[attr-defined]
            if process is not None and not process.running:
                process.hold(handle)
                continue
            self.callbacks += 1
            handle._run()

    def _stall(self, why: str) -> NoReturn:
        raise Stalled(why)

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Run it here, in one piece; an executor of one thread keeps its order."""
        future: asyncio.Future[Any] = self.create_future()
        took = self._thread_time() / 2
        begins = self._moment
        if getattr(executor, "_max_workers", 0) == 1:
            begins = max(begins, self._busy_until.get(id(executor), 0.0))
            self._busy_until[id(executor)] = begins + 2 * took

        def work() -> None:
            try:
                result = func(*args)
            except Exception as error:  # noqa: BLE001 - handed to who waits
                self.call_later(took, _settle, future.set_exception, future, error)
            else:
                self.call_later(took, _settle, future.set_result, future, result)

        self.call_at(begins + took, work)
        return future

    def _write_to_self(self) -> None:
        """Nobody sleeps in a selector."""


def _settle(settle: Callable[[Any], None], future: asyncio.Future[Any], outcome: Any) -> None:
    if not future.done():
        settle(outcome)


def virtual() -> VirtualLoop:
    """The running loop."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop


def run(main: Coroutine[Any, Any, T], loop: VirtualLoop) -> T:
    """Run to the end; then let all that still runs go, the dead too, when nothing that they do counts any more."""
    asyncio.set_event_loop(loop)
    loop.set_exception_handler(_unheard)
    try:
        return loop.run_until_complete(main)
    finally:
        _let_go(loop)
        asyncio.set_event_loop(None)
        loop.close()


def _unheard(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Nobody asks for the exceptions of the dead, nor for the answers that came after all."""
    if not isinstance(context.get("exception"), (Died, nats.errors.Error)):
        loop.default_exception_handler(context)


def _let_go(loop: VirtualLoop) -> None:
    loop.set_exception_handler(lambda *_: None)
    for _ in range(LETTING_GO):
        left = asyncio.all_tasks(loop)
        if not left:
            break
        for task in left:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            task.cancel()
        for process in loop.processes:
            process.dead = process.paused = False
            loop.take_back(process.release())
        loop.call_later(1.0, loop.stop)
        loop.run_forever()
    loop.run_until_complete(loop.shutdown_asyncgens())
