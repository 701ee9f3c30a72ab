"""The boundaries of a run: the points that a recording passed, and which of them are worth a death.

A boundary that was met before, after the same change of state, is no new one. Pages of the outbox and of the projector
take what several commits have brought: theirs are new by their number in an operation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from engine.crash_environment import LOOKS
from tests.crash.scenarios import Scenario

PAGED = ("outbox_", "projector_")
REPEATED = 3  # what is passed again and again at one place, by who waits, is the same from this time on


class Passed(msgspec.Struct, frozen=True):
    """A point that was passed: the occurrence is counted from the beginning of the run."""

    point: str
    subject: str
    occurrence: int

    @classmethod
    def read(cls, line: str) -> Passed:
        """The point of a line `point:subject:occurrence`."""
        point, _, rest = line.partition(":")
        subject, _, occurrence = rest.rpartition(":")
        return cls(point, subject, int(occurrence))

    @property
    def by_projector(self) -> bool:
        """Whether it is the projector that passes it; all others are the worker's."""
        return self.point.startswith("projector_")

    def __str__(self) -> str:
        return f"{self.point}:{self.subject}:{self.occurrence}"


Around = tuple[str, ...]


class Boundaries:
    """Which boundaries have been met, over all runs."""

    def __init__(self) -> None:
        self._met: set[Around] = set()

    def new(self, scenario: Scenario, passed: Iterable[Passed], sent_at: Sequence[int]) -> list[Passed]:
        """Those of a run of the scenario that were not met before, in the order in which they were passed.

        `sent_at`: how many points the worker had passed when each of the scenario's commands was sent.
        """
        found = []
        for each, around in _placed(scenario, passed, sent_at):
            if around not in self._met:
                self._met.add(around)
                found.append(each)
        return found


def _placed(scenario: Scenario, passed: Iterable[Passed], sent_at: Sequence[int]) -> Iterator[tuple[Passed, Around]]:
    """Each point with the place at which it was passed: after what, in what, as which of its kind there."""
    interruptions = dict(zip(sent_at[1:], (str(step) for step in scenario.steps[1:]), strict=True))
    before, state = "", f"from {scenario.begins}"
    there: Counter[tuple[str, str]] = Counter()
    for number, each in enumerate(passed):
        if number in interruptions and not each.by_projector:
            before, state = state, interruptions[number]
            there.clear()
        if each.point == "before_effect" and each.subject != state:
            before, state = state, each.subject
            there.clear()
        there[each.point, each.subject] += 1
        if not each.point.startswith(PAGED):
            ordinal = min(there[each.point, each.subject], REPEATED)
            yield each, (before, state, each.point, each.subject, str(ordinal))
        elif len(scenario.steps) == 1:
            yield each, (scenario.operation, each.point, each.subject, str(each.occurrence))


def flights(passed: Iterable[Passed], known: frozenset[str]) -> list[Passed]:
    """For each of the calls that change something, of those known: a death while it is on its way."""
    return [
        Passed("flight", each.subject, each.occurrence)
        for each in passed
        if each.point == "call" and each.subject in known and not each.subject.startswith(LOOKS)
    ]


def changed_twice(passed: Sequence[Passed]) -> list[str]:
    """What one payment changed by more than one call that was answered: such a state would have to be two."""
    found = []
    state, calls = "", Counter[str]()
    for each in [*passed, Passed("before_effect", "", 0)]:
        if each.point == "before_effect":
            found += [f"{state}: {count} calls that change a {what}" for what, count in calls.items() if count > 1]
            state, calls = each.subject, Counter()
        elif each.point == "answer" and not each.subject.startswith(LOOKS):
            calls[each.subject.partition("_")[2] or "guest"] += 1
    return found
