"""Running many seeds, over several processes, in a module of its own so that those can import it."""

from __future__ import annotations

import gc
import multiprocessing
import time
import traceback
from collections.abc import Iterator
from functools import partial

import msgspec

from tests.simulation.schedule import HOUR, Report, course

SEEDS_OF_A_PROCESS = 25  # after which it is replaced by a fresh one


class Run(msgspec.Struct):
    """One seed's report, or the error it broke with, and the seconds it took."""

    seed: int
    report: Report | None
    error: str | None
    wall: float
    processor: float

    @property
    def breaches(self) -> list[str]:
        """What went wrong."""
        if self.report is None:
            return [self.error or "no report"]
        return self.report.breaches


def run(seed: int, hours: float | None) -> Run:
    """Run one seed."""
    gc.set_threshold(50_000, 20, 20)
    wall, processor = time.perf_counter(), time.process_time()
    report = error = None
    try:
        report = course(seed, None if hours is None else hours * HOUR)
    except Exception:  # noqa: BLE001 - it is what the seed has found
        error = traceback.format_exc()
    return Run(seed, report, error, time.perf_counter() - wall, time.process_time() - processor)


def runs(seeds: range, hours: float | None, processes: int) -> Iterator[Run]:
    """The seeds as they end."""
    with multiprocessing.get_context("spawn").Pool(processes, maxtasksperchild=SEEDS_OF_A_PROCESS) as pool:
        yield from pool.imap_unordered(partial(run, hours=hours), seeds)
