"""`make simulate SEEDS=1000`: runs seeds, says what was injected how often, and shows a failing one's last moments.

A failing seed is replayed by the command that is printed with it, and goes the same way again as long as the code is
the same. Ratios are of virtual time to the processor's time, so that neighbours on the machine count little.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections import Counter, deque
from collections.abc import Iterator

from tests.simulation.schedule import HOUR, course
from tests.simulation.seeds import Run, runs

LAST = 60  # lines of a failing seed's trace that are shown


class Summary:
    """What came of all seeds so far."""

    def __init__(self) -> None:
        self.done = 0
        self.failed: list[Run] = []
        self.injected: Counter[str] = Counter()
        self.commands: Counter[str] = Counter()
        self.virtual = self.processor = 0.0
        self.events = 0

    def add(self, run: Run) -> None:
        """One more."""
        self.done += 1
        self.processor += run.processor
        if run.breaches:
            self.failed.append(run)
        if run.report is not None:
            self.injected += run.report.injected
            self.commands += run.report.commands
            self.virtual += run.report.virtual
            self.events += run.report.events

    @property
    def ratio(self) -> float:
        """Virtual time to the processor's."""
        return self.virtual / max(self.processor, 0.001)

    def lines(self) -> Iterator[str]:
        """The figures."""
        yield f"seeds: {self.done}, failed: {len(self.failed)}"
        yield (
            f"virtual time: {self.virtual / HOUR:,.1f} h in {self.processor:,.0f} s of processor time, "
            f"ratio {self.ratio:,.0f}; {self.events:,} events"
        )
        for what, counted in (("commands", self.commands), ("injected", self.injected)):
            yield f"{what}: {counted.total():,}"
            yield from (f"  {number:8,}  {name}" for name, number in counted.most_common())


def replay(seed: int, hours: float | None, *, whole: bool) -> bool:
    """Run a seed with its trace; whether it kept the promises."""
    last: deque[str] = deque(maxlen=None if whole else LAST)
    heard = print if whole else last.append
    try:
        report = course(seed, None if hours is None else hours * HOUR, tracing=heard)
    except Exception:  # noqa: BLE001 - it is what the seed has found
        report = None
        last.append(traceback.format_exc())
    for line in () if whole and report is not None else last:
        print(f"  {line}")
    if report is None:
        return False
    for breach in report.breaches:
        print(f"BROKEN  {breach}")
    print(f"seed {seed}: {report.virtual / HOUR:.2f} h, {report.events} events, injected {dict(report.injected)}")
    return not report.breaches


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=100, help="how many seeds")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="one seed alone")
    parser.add_argument("--hours", type=float, help="virtual hours of each schedule, in place of what the seed draws")
    parser.add_argument("--trace", action="store_true", help="with --seed: all that happens")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    if given.seed is not None:
        return 0 if replay(given.seed, given.hours, whole=given.trace) else 1
    summary, began = Summary(), time.monotonic()
    for done in runs(range(given.first, given.first + given.seeds), given.hours, given.processes):
        summary.add(done)
        for breach in done.breaches:
            print(f"seed {done.seed}: {breach}")
        if done.breaches or summary.done % 50 == 0:
            print(
                f"{summary.done} seeds done, {len(summary.failed)} failed, {time.monotonic() - began:.0f} s", flush=True
            )
    print("\n".join(summary.lines()))
    hours = "" if given.hours is None else f" HOURS={given.hours:g}"
    for failed in summary.failed[:3]:
        print(
            f"\nseed {failed.seed} failed; replay it with: make simulate SEED={failed.seed}{hours}; its last moments:"
        )
        replay(failed.seed, given.hours, whole=False)
    return 1 if summary.failed else 0


if __name__ == "__main__":
    sys.exit(main())
