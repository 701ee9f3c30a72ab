"""When no try of a call is ever answered: at the end the cloud holds what the aggregate says, whatever the calls did.

Every changing call of every operation goes unanswered at every try, until no try is left or the deadline has passed. It
is carried out never, at the last try, or a minute after that. Which calls there are is found by running.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple
from uuid import UUID

import pytest

from aggregates.base import Lifecycled, Obligation
from aggregates.commands import OPERATIONS, DeleteInstance, RetryOperation
from aggregates.effects import Effect
from aggregates.instance import Instance
from engine.clouds.errors import CloudAnswerError
from engine.clouds.simulated import Fault, Faults
from engine.clouds.simulated.faults import LATEST, Call, Kind
from engine.clouds.simulated.site import Site
from engine.settler import Settler
from engine.tasks import end
from tests.clouds.ambiguous import Drawn
from tests.clouds.engine_core import Core, directory, says
from tests.clouds.test_ambiguous_operations import lives
from tests.simulation.virtual_time import VirtualLoop, run

LOST = Fault(kind=Kind.LOST)
REFUSED = Fault(kind=Kind.REFUSED, status=403)
ACTS: dict[str, Fault | None] = {
    "never": None,
    "at the last try": Fault(kind=Kind.UNANSWERED),
    "late after the last try": Fault(kind=Kind.LATE, seconds=LATEST),
}
# Seconds: by the number of tries, in the first call, in the pause after it or in the second call.
DEADLINES = (None, 20.0, 40.0)
SECONDS = 1.5 * LATEST  # after which nothing is carried out any more


class NeverAnswered(Drawn):
    """Has no call of the name for one state, from the n-th call on, answered; the `last`, if known, meets `fault`."""

    def __init__(self, n: int, last: int | None = None, fault: Fault | None = None) -> None:
        super().__init__(n, LOST, times=1_000_000)
        self.unanswered: list[Call] = []
        self._last = last
        self._at_last = fault

    def __call__(self, call: Call) -> Fault | None:
        """The fault of this call."""
        fault = super().__call__(call)
        if fault is not None:
            self.unanswered.append(call)
            if len(self.unanswered) == self._last:
                return self._at_last
        return fault

    def _is_like(self, call: Call, drawn: Call) -> bool:
        return (call.name, call.request_id) == (drawn.name, drawn.request_id)


class NeverOnTheWayBack(NeverAnswered):
    """The same of a call that an operation makes after its `refused`-th call has been refused for good."""

    def __init__(self, refused: int, n: int, last: int | None = None, fault: Fault | None = None) -> None:
        super().__init__(n, last, fault)
        self._refused = refused

    def __call__(self, call: Call) -> Fault | None:
        """The fault of this call."""
        fault = super().__call__(call)
        return REFUSED if self.listening and len(self.calls) == self._refused + 1 else fault


class Seen(NamedTuple):
    """Of each last look of the operation under test, whether it found what was owed; and what was paid, by key."""

    looked: list[bool]
    paid: dict[str, Effect]

    def lasts(self, unheard: NeverAnswered) -> bool:
        """Whether nothing on the way back undoes what those calls do."""
        return self.paid[unheard.unanswered[0].request_id].lasts


async def _lived(
    site: Site,
    name: str,
    drawn: Drawn,
    *,
    within: float | None,
    settler: type[Settler],
    dies: tuple[asyncio.Event, float, float],
) -> Seen:

    with directory() as path:
        core = Core(site, path, UUID(int=7), settler=settler)
        await core.start()
        dying = asyncio.create_task(core.dies_after(*dies))
        seen = Seen([], core.paid)
        try:
            for command in lives(name):
                tested = command.wire_name() == name
                drawn.listening = tested
                instance = await core.settled(command, within if tested else None)
                if tested:
                    seen.looked.extend(_looked(await core.names()))
                await _nothing_comes_later(site)
                drawn.listening = False
                if instance.parked is not None:
                    assert instance.operation is not None
                    instance = await core.settled(RetryOperation(operation_id=instance.operation.id))
                await _holds(site, core, instance)
                if instance.failure is not None and not isinstance(command, DeleteInstance):
                    await _holds(site, core, await core.settled(DeleteInstance()))
                    break
        finally:
            await end(dying)
            await core.stop()
        return seen


def _looked(names: list[str]) -> list[bool]:
    return [after not in ("Failed", "OperationParked") for each, after in pairwise(names) if each == "LastLookDue"]


async def _nothing_comes_later(site: Site) -> None:
    before = list(site.api.ledger)
    await asyncio.sleep(SECONDS)
    assert site.api.ledger == before, "it was carried out after the operation had ended"


async def _holds(site: Site, core: Core, instance: Instance) -> None:
    assert instance.parked is None, instance.parked
    assert await core.there(instance) == says(instance)
    try:
        await site.api.call(Call(name="get_credential", args={"id": str(instance.id)}))
        accepted = True
    except CloudAnswerError:
        accepted = False
    assert accepted == (instance.status not in ("DELETED", "FAILED"))


def _last_looks(
    name: str,
    drawn: Drawn,
    within: float | None = None,
    *,
    settler: type[Settler] = Settler,
    dies: tuple[asyncio.Event, float, float] | None = None,
) -> Seen:
    site = Site(build_time=3.0, verb_time=1.0)
    site.api.faults = Faults(drawn)
    death = dies or (asyncio.Event(), 0.0, 0.0)
    return run(_lived(site, name, drawn, within=within, settler=settler, dies=death), VirtualLoop())


def _changes(name: str) -> Iterator[int]:
    """Each call of the operation that changes something, the n-th."""
    drawn = Drawn()
    _last_looks(name, drawn)
    yield from (n for n, call in enumerate(drawn.calls) if call.request_id)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("within", DEADLINES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_where_no_try_is_answered_the_end_is_true(name: str, within: float | None) -> None:
    for n in _changes(name):
        for acts, fault in ACTS.items():
            _try_and_see(name, n, acts, fault, within)


def _try_and_see(name: str, n: int, acts: str, fault: Fault | None, within: float | None) -> None:
    told = f"{name}, call {n}, carried out {acts}, within {within}"
    try:
        unheard = NeverAnswered(n)
        seen = _last_looks(name, unheard, within)
        if fault is not None:
            unheard = NeverAnswered(n, len(unheard.unanswered), fault)
            seen = _last_looks(name, unheard, within)
        assert seen.looked == ([fault is not None] if seen.lasts(unheard) else [])
    except AssertionError as failed:
        raise AssertionError(told) from failed


def _ways_back(name: str) -> Iterator[tuple[int, int]]:
    """Each call that undoing the operation makes and that changes something, the n-th, after which refusal."""
    known: set[tuple[str, str]] = set()
    for refused in _changes(name):
        drawn = Drawn(refused, REFUSED)
        seen = _last_looks(name, drawn)
        for n, call in enumerate(drawn.calls[refused + 1 :], refused + 1):
            about = (call.name, seen.paid[call.request_id].type_name) if call.request_id else None
            if about is not None and about not in known:
                known.add(about)
                yield refused, n


@pytest.mark.timeout(600)
def test_where_no_try_on_the_way_back_is_answered_the_end_is_true() -> None:
    undone = set()
    for name in OPERATIONS:
        for refused, n in _ways_back(name):
            for acts, fault in ACTS.items():
                try:
                    undone.add(_undone_and_seen(name, refused, n, fault))
                except AssertionError as failed:
                    raise AssertionError(f"{name}, call {refused} refused, call {n}, carried out {acts}") from failed
    assert undone > {"VolumeAbsent", "AccessRulesAbsent", "EnsureAccessRules"}  # of what makes something, too


def _undone_and_seen(name: str, refused: int, n: int, fault: Fault | None) -> str:
    """From the way back none leads back: whatever is owed is looked at once more. Yields the name of what is."""
    unheard = NeverOnTheWayBack(refused, n)
    seen = _last_looks(name, unheard)
    if fault is not None:
        unheard = NeverOnTheWayBack(refused, n, len(unheard.unanswered), fault)
        seen = _last_looks(name, unheard)
    owed = seen.paid[unheard.unanswered[0].request_id]
    assert seen.looked == [fault is not None], owed
    return owed.type_name


class Hasty(Settler):
    """Takes no last look."""

    def _is_in_doubt(self, aggregate: Lifecycled, owed: Obligation) -> bool:  # noqa: ARG002 - the settler's own
        return False


@pytest.mark.parametrize(
    ("name", "acts"),
    [
        ("resize_volume", "at the last try"),
        ("resize_volume", "late after the last try"),
        ("reboot", "late after the last try"),
        ("stop_instance", "late after the last try"),
        ("start_instance", "late after the last try"),
        ("delete_instance", "late after the last try"),
    ],
)
def test_control_without_the_last_look_the_end_is_not_true(name: str, acts: str) -> None:
    wrong = 0
    for n in _changes(name):
        unheard = NeverAnswered(n)
        _last_looks(name, unheard)
        try:
            _last_looks(name, NeverAnswered(n, len(unheard.unanswered), ACTS[acts]), settler=Hasty)
        except AssertionError:
            wrong += 1
    assert wrong > 0


# The engine dies with the first call under way, and is away until after the deadline or not; or while it waits to look.
DEATHS = ((0.5, 0.0), (0.5, 60.0), (40.0, 0.0))


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("after", "away"), DEATHS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_whoever_goes_on_after_a_death_takes_the_last_look(name: str, after: float, away: float) -> None:
    for n in _changes(name):
        for acts, fault in ACTS.items():
            unheard = NeverAnswered(n, None if fault is None else 1, fault)
            try:
                seen = _last_looks(name, unheard, 20.0, dies=(unheard.met, after, away))
                if seen.lasts(unheard):
                    assert seen.looked in ([[False]] if fault is None else [[True], []])
            except AssertionError as failed:
                raise AssertionError(f"{name}, call {n}, carried out {acts}") from failed
