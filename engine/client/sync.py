"""The synchronous face of the client, for scripts: the same methods, blocking, over a loop in a thread of its own.

Guarantees the same results and errors as `engine/client.py`. It must not be used on a running event loop, which it
would block.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Concatenate, ParamSpec, Self, TypeVar
from uuid import UUID

from engine.client import Operation, Progress, Result, SecretRef, TaskManager
from engine.messages import Decision

P = ParamSpec("P")
T = TypeVar("T")


class _LoopThread:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="holdfast-client", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it there and wait here; interrupted here, it is cancelled there."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """End the loop and its thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


class SyncOperation:
    """The handle of a published command; see `Operation`."""

    def __init__(self, loop: _LoopThread, operation: Operation) -> None:
        self._loop = loop
        self._operation = operation

    @property
    def id(self) -> str:
        """The command's and the operation's id."""
        return self._operation.id

    @property
    def instance_id(self) -> str | None:
        """The instance, once known."""
        return self._operation.instance_id

    def accepted(self, timeout: float = 30.0) -> Decision:
        """The engine's decision."""
        return self._loop.run(self._operation.accepted(timeout))

    def done(self, timeout: float | None = None) -> Result:
        """Wait for the end."""
        return self._loop.run(self._operation.done(timeout))

    def cancel(self, reason: str | None = None, timeout: float = 30.0) -> Decision:
        """Have it ended and undone."""
        return self._loop.run(self._operation.cancel(reason, timeout))

    def retry(self, reason: str | None = None, timeout: float = 30.0) -> Decision:
        """Have what it waits for tried now."""
        return self._loop.run(self._operation.retry(reason, timeout))

    def progress(self, timeout: float | None = None) -> Iterator[Progress]:
        """Each change of the progress until the end."""
        yield from _drain(self._loop, self._operation.progress(timeout))


def _blocking(
    method: Callable[Concatenate[TaskManager, P], Coroutine[Any, Any, Operation]],
) -> Callable[Concatenate[SyncTaskManager, P], SyncOperation]:
    def call(self: SyncTaskManager, /, *args: P.args, **kwargs: P.kwargs) -> SyncOperation:
        # By name, since a strategy's class may have its own.
        publish: Callable[P, Coroutine[Any, Any, Operation]] = getattr(self.manager, method.__name__)
        return SyncOperation(self._loop, self._loop.run(publish(*args, **kwargs)))

    functools.update_wrapper(call, method)
    return call


class SyncTaskManager:
    """`TaskManager` for scripts; takes the same parameters. Close it, or use it as a context manager."""

    def __init__(self, context: Any, client: type[TaskManager] = TaskManager, **options: Any) -> None:
        self.manager = client(context, **options)
        self._loop = _LoopThread()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, which lives on our loop and so is nobody else's, and end the thread."""
        try:
            self._loop.run(self.manager.connection.close())
        finally:
            self._loop.stop()

    create_instance = _blocking(TaskManager.create_instance)
    delete_instance = _blocking(TaskManager.delete_instance)
    reboot = _blocking(TaskManager.reboot)
    restart = _blocking(TaskManager.restart)
    resize_volume = _blocking(TaskManager.resize_volume)
    resize_flavor = _blocking(TaskManager.resize_flavor)
    migrate = _blocking(TaskManager.migrate)
    rebuild = _blocking(TaskManager.rebuild)
    update_access = _blocking(TaskManager.update_access)
    stop_instance = _blocking(TaskManager.stop_instance)
    start_instance = _blocking(TaskManager.start_instance)
    set_quota = _blocking(TaskManager.set_quota)
    cancel_operation = _blocking(TaskManager.cancel_operation)
    retry_operation = _blocking(TaskManager.retry_operation)
    skip_step = _blocking(TaskManager.skip_step)
    abandon_operation = _blocking(TaskManager.abandon_operation)

    def operation(self, command_id: UUID | str) -> SyncOperation:
        """The handle of a command published before."""
        return SyncOperation(self._loop, self.manager.operation(command_id))

    def put_secret(self, secret: str) -> SecretRef:
        """Hand a secret to the vault for its reference."""
        return self._loop.run(self.manager.put_secret(secret))

    def get(self, model: str, **key: Any) -> dict[str, Any]:
        """One record of a read model."""
        return self._loop.run(self.manager.queries.get(model, **key))

    def items(self, model: str, **options: Any) -> Iterator[dict[str, Any]]:
        """All records of a read model's list."""
        yield from _drain(self._loop, self.manager.queries.items(model, **options))


def _drain(loop: _LoopThread, source: AsyncIterator[T]) -> Iterator[T]:
    async def step() -> tuple[T] | None:
        try:
            return (await anext(source),)
        except StopAsyncIteration:
            return None

    while (found := loop.run(step())) is not None:
        yield found[0]
