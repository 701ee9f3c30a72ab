"""What a run must have left behind, whatever died in it: the promises, as the crash matrix counts their breaches.

A run is compared with the same run undisturbed. It judges what can be seen from the outside: the log, the cloud's
ledger, the guests' deeds, and what the publisher was told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Any
from uuid import UUID

import msgspec

from tests.crash.scenarios import Scenario


class Breach(StrEnum):
    """A promise that was broken."""

    LOST = "lost"  # a command or its outcome
    DOUBLED = "doubled"  # something was done or made twice, or is left over
    STUCK = "stuck"  # an operation never ended
    UNTRUE = "untrue"  # read models do not say what the log says


class Problem(msgspec.Struct, frozen=True):
    """One breach, and what was seen."""

    breach: Breach
    seen: str

    def __str__(self) -> str:
        return f"{self.breach}: {self.seen}"


class Told(msgspec.Struct):
    """A command of the run and what its publisher's handle learned. `outcome` None: nothing within its patience."""

    command_id: UUID
    command: str
    outcome: str | None = None
    code: str | None = None


class Stand(msgspec.Struct, frozen=True, kw_only=True):
    """How the aggregate stood at the end of a run. `parked`: why, if it was."""

    state: str
    owing: bool
    parked: str | None
    version: int

    @classmethod
    def of(cls, aggregate: Any) -> Stand | None:
        """How it stands; None when there is none."""
        if aggregate is None:
            return None
        parked = None if aggregate.parked is None else str(aggregate.parked)
        return cls(state=aggregate.state, owing=aggregate.owes() is not None, parked=parked, version=aggregate.version)


class Evidence(msgspec.Struct, kw_only=True):
    """What was seen at the end of a run, and once the instance had been deleted.

    `done`: mutating calls by action and kind, and deeds of the guest by verb. `holds`: what there was of it in cloud
    and quota at the end of the run; `left`: once it had been deleted. `again`: what the same commands brought when
    they were published once more.
    """

    told: list[Told]
    again: list[Told]
    stand: Stand | None
    version_after: int
    began: Counter[str]
    done: Counter[str]
    holds: list[str]
    left: list[str]


def judge(scenario: Scenario, seen: Evidence, clean: Evidence | None) -> list[Problem]:
    """The breaches, by comparison with the undisturbed run if this is not the one."""
    return [
        *_of_the_aggregate(scenario, seen),
        *_of_the_publisher(scenario, seen, clean),
        *_of_the_resources(scenario, seen, clean),
    ]


def _of_the_aggregate(scenario: Scenario, seen: Evidence) -> Iterator[Problem]:
    stand = seen.stand
    if stand is None:
        yield Problem(Breach.LOST, "the aggregate is not there")
        return
    if stand.parked is not None:
        yield Problem(Breach.STUCK, f"parked in {stand.state}: {stand.parked}")
    elif stand.owing:
        yield Problem(Breach.STUCK, f"it still owes what {stand.state} owes")
    elif stand.state != scenario.ends:
        yield Problem(Breach.LOST, f"it ended in {stand.state}, not in {scenario.ends}")
    if stand.version != seen.version_after:
        yield Problem(Breach.DOUBLED, "the same commands published again changed the aggregate")
    for command_id, times in seen.began.items():
        if times > 1:
            yield Problem(Breach.DOUBLED, f"command {command_id} began {times} operations")


def _of_the_publisher(scenario: Scenario, seen: Evidence, clean: Evidence | None) -> Iterator[Problem]:
    for told in (*seen.told, *seen.again):
        if told.outcome is None:
            yield Problem(Breach.LOST, f"the publisher of {told.command} learned nothing: {told.code}")
    for first, again in zip(seen.told, seen.again, strict=True):
        if again.outcome is not None and (first.outcome, first.code) != (again.outcome, again.code):
            yield Problem(Breach.DOUBLED, f"{first.command} was told {first.outcome}, then {again.outcome}")
    if clean is None or _interrupts(scenario):
        return
    for told, expected in zip(seen.told, clean.told, strict=True):
        if told.outcome is not None and told.outcome != expected.outcome:
            yield Problem(Breach.LOST, f"{told.command} was {told.outcome}, not {expected.outcome}: {told.code}")


def _of_the_resources(scenario: Scenario, seen: Evidence, clean: Evidence | None) -> Iterator[Problem]:
    for what in seen.left:
        yield Problem(Breach.DOUBLED, f"left over after the last deletion: {what}")
    if clean is None:
        if seen.stand is not None and seen.stand.state in ("DELETED", "FAILED") and not _gives_up(scenario):
            for what in seen.holds:
                yield Problem(Breach.DOUBLED, f"left over in {seen.stand.state}: {what}")
        return
    if sorted(seen.holds) != sorted(clean.holds):
        yield Problem(Breach.DOUBLED, f"it holds {sorted(seen.holds)}, not {sorted(clean.holds)}")
    for what in _sorted(seen.done, clean.done):
        more = _more(what, seen, clean)
        # An effect that is overtaken may have been carried out or not.
        allowed = 1 if _interrupts(scenario) else 0
        if more > allowed:
            yield Problem(Breach.DOUBLED, f"{what}: {seen.done[what]} times, not {clean.done[what]}")
        elif more < -allowed:
            yield Problem(Breach.LOST, f"{what}: {seen.done[what]} times, not {clean.done[what]}")


def _more(what: str, seen: Evidence, clean: Evidence) -> int:
    """How many times more than undisturbed it was done. What was made once too often and removed again is no more."""
    action, _, kind = what.partition(" ")
    surplus = min(seen.done[f"{each} {kind}"] - clean.done[f"{each} {kind}"] for each in ("create", "delete"))
    more = seen.done[what] - clean.done[what]
    return more - max(0, surplus) if action in ("create", "delete") else more


def _interrupts(scenario: Scenario) -> bool:
    """Whether a command meets an operation on its way, so that what had been done by then is a matter of moments."""
    return any(step.during is not None and not step.parked for step in scenario.steps)


def _gives_up(scenario: Scenario) -> bool:
    """Whether somebody said that something be left where it is."""
    return any("operation_id" in step.command.__struct_fields__ for step in scenario.steps)


def _sorted(*counters: Counter[str]) -> Iterable[str]:
    return sorted({what for counter in counters for what in counter})
