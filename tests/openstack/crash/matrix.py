"""The crash matrix on the lab: the operations that a real cloud bears most of, undisturbed but for the deaths.

What goes wrong in other ways is met on the simulated cloud, where it can be had for the asking.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from itertools import groupby

from engine.crash_environment import LOOKS
from tests.crash.matrix import Matrix, Recording, Result, Strike, made_of, quiet, recorded, struck
from tests.crash.scenarios import Scenario, scenarios
from tests.openstack.crash.bed import on_the_lab

OPERATIONS = ("create_instance", "resize_volume", "resize_flavor", "delete_instance")
TOGETHER = 10  # instances on one bed: each has an agent and a database of its own
PARALLEL = 4  # beds at once: they mostly wait for calls of the dead to be over


def plain(operations: Sequence[str] = OPERATIONS) -> list[Scenario]:
    """One scenario of each operation: of an instance that is well, and nothing else goes wrong."""
    found = [
        each
        for each in scenarios()
        if each.operation in operations
        and each.begins in ("", "ACTIVE")
        and len(each.steps) == 1
        and not each.steps[0].fails
        and not each.steps[0].unanswered
    ]
    return [next(same) for _, same in groupby(sorted(found, key=_by_operation), key=_by_operation)]


def record(chosen: Sequence[Scenario]) -> Matrix:
    """The matrix of the scenarios, each run undisturbed."""
    recordings = asyncio.run(_recorded(chosen))
    return made_of(recordings, _changes(recordings))


def strike(matrix: Matrix, parallel: int) -> Iterator[list[Result]]:
    """Meet the boundaries, so many at a time, each time on a bed that is cleared away, and on so many beds at once."""
    with _interpreters(parallel) as pool:
        met = [pool.submit(_met, each) for each in _parts(matrix)]
        for each in as_completed(met):
            yield each.result()


@contextmanager
def _interpreters(parallel: int) -> Iterator[ProcessPoolExecutor]:
    """Each with a bed; when this one is interrupted they clear away what they have made, and end."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(parallel, mp_context=context, initializer=end_as_interrupted) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for interpreter in multiprocessing.active_children():
                interpreter.terminate()
            raise


def end_as_interrupted() -> None:
    """Have SIGTERM end this interpreter as Ctrl-C does: what was started and made must not outlive it."""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
    quiet()


def _parts(matrix: Matrix) -> Iterator[Strike]:
    for each in _joined(matrix.strikes):
        for at in range(0, len(each.boundaries), TOGETHER):
            yield Strike(recording=each.recording, boundaries=each.boundaries[at : at + TOGETHER])


def _met(strike: Strike) -> list[Result]:
    return asyncio.run(_struck(strike))


async def _recorded(chosen: Sequence[Scenario]) -> list[Recording]:
    async with on_the_lab() as bed:
        return await recorded(bed, chosen)


async def _struck(strike: Strike) -> list[Result]:
    async with on_the_lab() as bed:
        return await struck(bed, [strike])


def _by_operation(scenario: Scenario) -> str:
    return scenario.operation


def _changes(recordings: Sequence[Recording]) -> frozenset[str]:
    """The calls that change something: a death may meet them on their way."""
    calls = {passed.subject for each in recordings for passed in each.passed if passed.point == "call"}
    return frozenset(call for call in calls if not call.startswith(LOOKS))


def _joined(strikes: Sequence[Strike]) -> Iterator[Strike]:
    """One strike for each scenario."""
    by_name = sorted(strikes, key=lambda strike: strike.recording.scenario.name)
    for _, same in groupby(by_name, key=lambda strike: strike.recording.scenario.name):
        joined = list(same)
        yield Strike(recording=joined[0].recording, boundaries=[b for each in joined for b in each.boundaries])
