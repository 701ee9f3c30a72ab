"""The crash matrix: every scenario recorded, every new boundary of it met by a death, the breaches counted.

It runs in two forms, in virtual time and on real processes, shared out among several interpreters. A boundary that is
not met is a failure, but where moments decide whether there is one: a page of the outbox or of the projector may have
taken more than one commit, a command that interrupts may have met one try more or less.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import multiprocessing
import random
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import structlog

from engine.clouds.simulated.api import ANSWERS
from engine.messages import GuestVerb
from tests.crash.boundaries import PAGED, Boundaries, Passed, changed_twice, flights
from tests.crash.runs import Bed, Run, series
from tests.crash.scenarios import Scenario
from tests.crash.simulated import processes
from tests.crash.verdict import Breach, Evidence, Problem, judge
from tests.crash.virtual import in_virtual_time

T = TypeVar("T")
Item = TypeVar("Item")
R = TypeVar("R")


class Form(StrEnum):
    """Where the matrix is run."""

    VIRTUAL = "virtual"
    PROCESSES = "processes"


# Runs on one bed: what it costs to make it, against what it costs that it has grown.
RECORDED = {Form.VIRTUAL: 1, Form.PROCESSES: 20}
STRUCK = {Form.VIRTUAL: 12, Form.PROCESSES: 40}

# The beginning of the names of calls whose answer a worker remembers: ids of networks and the like.
REMEMBERED = "find_"

# The calls that can be on their way for long: those to the cloud and to guests.
IN_FLIGHT = frozenset(ANSWERS) | frozenset(GuestVerb)


class Recording(msgspec.Struct, frozen=True, kw_only=True):
    """A scenario's undisturbed run. `wrong`: what is wrong with it already."""

    scenario: Scenario
    passed: list[Passed]
    sent_at: list[int]
    evidence: Evidence
    wrong: list[str]


class Strike(msgspec.Struct, frozen=True, kw_only=True):
    """Boundaries of one scenario, to be met one after the other."""

    recording: Recording
    boundaries: list[Passed]


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one death. `met`: it was died there. `certain`: it had to be there."""

    scenario: str
    operation: str
    boundary: str
    met: bool
    certain: bool
    problems: list[Problem]

    @property
    def bad(self) -> bool:
        """Whether a promise was broken, or what had to be tried was not."""
        return bool(self.problems) or (self.certain and not self.met)


class Report:
    """The figures, for each operation and over all."""

    def __init__(self) -> None:
        self.results: list[Result] = []

    def add(self, results: Iterable[Result]) -> None:
        """Count them."""
        self.results.extend(results)

    def count(self, breach: Breach, operation: str | None = None) -> int:
        """In how many runs the promise was broken."""
        return sum(any(p.breach is breach for p in r.problems) for r in self._of(operation))

    @property
    def missed(self) -> list[Result]:
        """Boundaries that were not there this time."""
        return [result for result in self.results if not result.met and not result.certain]

    @property
    def bad(self) -> list[Result]:
        """Those that must not be."""
        return [result for result in self.results if result.bad]

    def lines(self) -> Iterator[str]:
        """The table."""
        yield f"{'operation':<22}{'boundaries':>11}" + "".join(f"{breach:>9}" for breach in Breach)
        for operation in sorted({result.operation for result in self.results}):
            yield self._line(operation, operation)
        yield self._line("all", None)

    def _line(self, name: str, operation: str | None) -> str:
        met = sum(result.met for result in self._of(operation))
        return f"{name:<22}{met:>11,}" + "".join(f"{self.count(breach, operation):>9}" for breach in Breach)

    def _of(self, operation: str | None) -> list[Result]:
        return [r for r in self.results if operation in (None, r.operation)]


# --- in one interpreter -------------------------------------------------------------------------------------------


def record(form: Form, scenarios: Sequence[Scenario], store_url: str | None = None) -> list[Recording]:
    """Run each scenario undisturbed."""

    return _on(form, lambda bed: recorded(bed, scenarios), store_url)


async def recorded(bed: Bed, scenarios: Sequence[Scenario]) -> list[Recording]:
    """Run each scenario undisturbed, on a bed that is there."""
    return [_recording(each, (await series(bed, each, [None]))[0]) for each in scenarios]


def _recording(scenario: Scenario, run: Run) -> Recording:
    wrong = [str(problem) for problem in judge(scenario, run.evidence, None)] + changed_twice(run.passed)
    return Recording(scenario=scenario, passed=run.passed, sent_at=run.sent_at, evidence=run.evidence, wrong=wrong)


def strike(form: Form, strikes: Sequence[Strike], store_url: str | None = None) -> list[Result]:
    """Meet the boundaries, on one bed."""
    return _on(form, lambda bed: struck(bed, strikes), store_url)


def sample(
    form: Form, scenarios: Sequence[Scenario], seed: int, size: int, store_url: str | None = None
) -> tuple[Matrix, list[Result]]:
    """Record the scenarios and meet so many of their boundaries, drawn by the seed, on one bed."""

    async def runs(bed: Bed) -> tuple[Matrix, list[Result]]:
        matrix = made_of(await recorded(bed, scenarios)).spread(seed, size)
        return matrix, await struck(bed, matrix.strikes)

    return _on(form, runs, store_url)


async def struck(bed: Bed, strikes: Sequence[Strike]) -> list[Result]:
    """Meet the boundaries, on a bed that is there."""
    results = []
    for each in strikes:
        met = await series(bed, each.recording.scenario, each.boundaries)
        results += [_result(each.recording, run) for run in met]
    if untrue := await bed.untrue():
        wrong = [Problem(Breach.UNTRUE, what) for what in untrue]
        results[-1] = msgspec.structs.replace(results[-1], problems=results[-1].problems + wrong)
    return results


def _result(recording: Recording, run: Run) -> Result:
    scenario = recording.scenario
    return Result(
        scenario=scenario.name,
        operation=scenario.operation,
        boundary=str(run.boundary),
        met=run.met,
        certain=_is_certain(run.boundary) and len(scenario.steps) == 1,
        problems=judge(scenario, run.evidence, recording.evidence),
    )


def _is_certain(boundary: Passed | None) -> bool:
    """Whether a run has to pass it: not what a worker does once and remembers, nor what moments decide."""
    return boundary is None or not (
        boundary.point.startswith((*PAGED, "flight")) or boundary.subject.startswith(REMEMBERED)
    )


def _on(form: Form, work: Callable[[Bed], Coroutine[Any, Any, T]], store_url: str | None) -> T:
    if form is Form.VIRTUAL:
        return in_virtual_time(work)
    return asyncio.run(_on_processes(work, store_url))


async def _on_processes(work: Callable[[Bed], Coroutine[Any, Any, T]], store_url: str | None) -> T:
    directory = Path(tempfile.mkdtemp(prefix="holdfast-crash-"))
    try:
        async with processes(directory, store_url) as bed:
            return await work(bed)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


# --- all of it ----------------------------------------------------------------------------------------------------


class Matrix(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be met: strikes, in the order of the scenarios, and what was wrong with the recordings."""

    strikes: list[Strike]
    wrong: list[str]

    @property
    def boundaries(self) -> int:
        """How many there are."""
        return sum(len(strike.boundaries) for strike in self.strikes)

    def spread(self, seed: int, size: int) -> Matrix:
        """So many of the boundaries, drawn by the seed."""
        every = [(strike.recording, boundary) for strike in self.strikes for boundary in strike.boundaries]
        drawn = random.Random(seed).sample(every, min(size, len(every)))
        return Matrix(strikes=[Strike(recording=r, boundaries=[b]) for r, b in drawn], wrong=self.wrong)

    def beds(self, form: Form) -> Iterator[list[Strike]]:
        """The strikes as they are shared out to beds."""
        bed: list[Strike] = []
        room = STRUCK[form]
        for strike in self.strikes:
            for part in _batched(strike.boundaries, STRUCK[form]):
                if len(part) > room:
                    yield bed
                    bed, room = [], STRUCK[form]
                bed.append(Strike(recording=strike.recording, boundaries=list(part)))
                room -= len(part)
        if bed:
            yield bed


def made_of(recordings: Sequence[Recording], in_flight: frozenset[str] = IN_FLIGHT) -> Matrix:
    """The matrix of the recordings: each boundary once, and each call that changes something also in its flight.

    `in_flight`: the calls that can be on their way for long enough to be met there.
    """
    known = Boundaries()
    strikes = []
    for each in recordings:
        new = known.new(each.scenario, each.passed, each.sent_at)
        strikes.append(Strike(recording=each, boundaries=new + flights(new, in_flight)))
    wrong = [f"{each.scenario.name}: {what}" for each in recordings for what in each.wrong]
    return Matrix(strikes=[each for each in strikes if each.boundaries], wrong=wrong)


def quiet() -> None:
    """Have this interpreter's own log say nothing of connections; the processes that it starts keep theirs."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))


class Crew:
    """Interpreters that run the matrix, so many at once; none: this one."""

    def __init__(self, form: Form, parallel: int, store_url: Callable[[], str] | None = None) -> None:
        self._form = form
        self._parallel = parallel
        self._store_url = store_url

    def record(self, scenarios: Sequence[Scenario]) -> list[Recording]:
        """All of them, undisturbed."""
        batches = list(_batched(scenarios, RECORDED[self._form]))
        return [each for batch in self._map(record, batches) for each in batch]

    def strike(self, matrix: Matrix) -> Iterator[list[Result]]:
        """Meet the boundaries; the results of each bed as it is through."""
        yield from self._map(strike, list(matrix.beds(self._form)))

    def _map(self, work: Callable[..., list[R]], batches: Sequence[Any]) -> Iterator[list[R]]:
        urls = [None if self._store_url is None else self._store_url() for _ in batches]
        if not self._parallel:
            yield from map(work, itertools.repeat(self._form), batches, urls)
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self._parallel, mp_context=context, initializer=quiet) as pool:
            yield from pool.map(work, itertools.repeat(self._form), batches, urls)


def _batched(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for at in range(0, len(items), size):
        yield items[at : at + size]
