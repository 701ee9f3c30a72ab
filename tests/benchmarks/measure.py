"""What is measured and how: a figure beside its baseline, both taken in turn, each the median of its rounds.

Only the ratio of the two means anything on another machine, or on this one at another load. Nothing here judges a
figure: a slow machine has slow figures and no failures.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence

import msgspec


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    """How much is measured: `full` for figures that count, `quick` for a look, `smallest` to see that it runs."""

    level: int

    def of(self, full: int, quick: int, smallest: int) -> int:
        """The number for this scale."""
        return (full, quick, smallest)[self.level]


FULL, QUICK, SMALLEST = Scale(level=0), Scale(level=1), Scale(level=2)


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table. The `ratio` of a rate is the better the larger it is, of a duration the smaller."""

    benchmark: str
    what: str
    value: float
    unit: str
    baseline_what: str
    baseline: float
    load: float

    @property
    def ratio(self) -> float:
        """Figure by baseline."""
        return self.value / self.baseline if self.baseline else float("nan")


class Pair(msgspec.Struct, frozen=True):
    """One round: what is measured, and its baseline right beside it."""

    value: float
    baseline: float


def median(pairs: Sequence[Pair]) -> Pair:
    """The medians of the rounds."""
    return Pair(statistics.median(p.value for p in pairs), statistics.median(p.baseline for p in pairs))


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which this share lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def load() -> float:
    """The machine's load over the last minute."""
    return os.getloadavg()[0]


def rounded(value: float) -> str:
    """Three digits that count, in groups of three."""
    if value >= 100:
        return f"{float(f'{value:.3g}'):,.0f}".replace(",", " ")
    return f"{value:.3g}"
