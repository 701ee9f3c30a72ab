"""Time jumps, and a process that is killed or paused does nothing more, or nothing for a while."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.simulation.virtual_time import Process, Stalled, VirtualLoop, run, virtual


def test_a_day_passes_at_once() -> None:
    async def day() -> float:
        await asyncio.sleep(86_400)
        return asyncio.get_running_loop().time()

    began = time.monotonic()
    assert run(day(), VirtualLoop()) == 86_400
    assert time.monotonic() - began < 60


def test_work_for_threads_takes_its_time_in_one_piece_and_order() -> None:
    done: list[int] = []

    async def work() -> float:
        thread = ThreadPoolExecutor(1)
        loop = virtual()
        await asyncio.gather(*(loop.run_in_executor(thread, done.append, n) for n in range(3)))
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 / 0)
        return loop.time()

    assert run(work(), VirtualLoop(thread_time=lambda: 2.0)) == 8.0
    assert done == [0, 1, 2]


def test_a_killed_process_runs_not_even_its_finally() -> None:
    seen: list[str] = []

    async def main() -> None:
        try:
            seen.append("begun")
            await asyncio.sleep(10)
        finally:
            seen.append("finally")

    async def scenario() -> list[str]:
        process = Process("doomed")
        process.start(main())
        await asyncio.sleep(1)
        process.kill()
        await asyncio.sleep(100)
        return list(seen)

    assert run(scenario(), VirtualLoop()) == ["begun"]


def test_a_killed_process_gets_nothing_done_in_threads() -> None:
    done: list[str] = []

    async def main() -> None:
        await asyncio.to_thread(done.append, "written")

    async def scenario() -> list[str]:
        process = Process("doomed")
        process.start(main())
        await asyncio.sleep(1)
        process.kill()
        await asyncio.sleep(100)
        return list(done)

    assert run(scenario(), VirtualLoop(thread_time=lambda: 4.0)) == []


def test_a_paused_process_goes_on_where_it_stood() -> None:
    at: list[float] = []

    async def main() -> None:
        for _ in range(3):
            await asyncio.sleep(1)
            at.append(asyncio.get_running_loop().time())

    async def scenario() -> None:
        process = Process("paused")
        process.start(main())
        await asyncio.sleep(1.5)
        process.pause()
        await asyncio.sleep(10)
        assert at == [1.0]
        process.resume()
        await asyncio.sleep(10)

    run(scenario(), VirtualLoop())
    assert at == [1.0, 11.5, 12.5]


def test_waiting_for_what_nobody_does_is_an_error() -> None:
    async def wait() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Stalled):
        run(wait(), VirtualLoop())
