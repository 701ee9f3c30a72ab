"""The crash matrix's program: `python -m tests.crash`, or `make crash`. Ends with 1 when a promise was broken.

Each boundary that fails is printed with the command that meets it alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from tests.crash.boundaries import Passed
from tests.crash.matrix import Crew, Form, Matrix, Report, Result, Strike, made_of
from tests.crash.scenarios import Scenario, scenarios


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is asked. Yields the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description="Kill at every boundary, and check.")
    parser.add_argument("--virtual", action="store_true", help="in this process and in virtual time")
    parser.add_argument("--only", metavar="OPERATION", help="the scenarios of one operation")
    parser.add_argument("--scenario", metavar="NAME", help="one scenario, by its whole name")
    parser.add_argument("--at", metavar="POINT:SUBJECT:OCCURRENCE", help="one boundary of that scenario")
    parser.add_argument("--spread", type=int, metavar="N", help="N boundaries, drawn by --seed, instead of all")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="by which the spread is drawn")
    parser.add_argument("--parallel", type=int, metavar="N", help="interpreters at once; 6, or 2 in virtual time")
    parser.add_argument("--list", action="store_true", help="name the scenarios and end")
    options = parser.parse_args(argv)
    chosen = [each for each in scenarios() if _wanted(each, options.only, options.scenario)]
    if options.list or not chosen:
        print("\n".join(each.name for each in chosen) or "there is no such scenario; see --list")
        return 0 if chosen else 2
    form = Form.VIRTUAL if options.virtual else Form.PROCESSES
    # Real processes mostly wait for each other; in virtual time nobody waits.
    parallel = options.parallel or (2 if options.virtual else 6)
    return _run(Crew(form, parallel), form, chosen, options)


def _run(crew: Crew, form: Form, chosen: Sequence[Scenario], options: argparse.Namespace) -> int:
    began = time.monotonic()
    print(f"recording {len(chosen)} scenarios")
    recordings = crew.record(chosen)
    matrix = made_of(recordings)
    if options.at:
        one = [Strike(recording=each, boundaries=[Passed.read(options.at)]) for each in recordings]
        matrix = Matrix(strikes=one, wrong=matrix.wrong)
    if options.spread:
        print(f"a spread of {options.spread} of {matrix.boundaries:,} boundaries, --seed {options.seed}")
        matrix = matrix.spread(options.seed, options.spread)
    for wrong in matrix.wrong:
        print(f"WRONG undisturbed: {wrong}")
    report = Report()
    for results in crew.strike(matrix):
        report.add(results)
        _show_bad(results, options)
        done = len(report.results)
        print(f"{done:,} of {matrix.boundaries:,} boundaries, {time.monotonic() - began:.0f} s", flush=True)
    print()
    print("\n".join(report.lines()))
    if report.missed:
        print(
            f"{len(report.missed)} boundaries were not there this time: pages that others had taken, tries not needed"
        )
    print(f"{form} form, {time.monotonic() - began:.0f} s")
    return 1 if report.bad or matrix.wrong else 0


def _show_bad(results: Sequence[Result], options: argparse.Namespace) -> None:
    only = Report()
    only.add(results)
    for each in only.bad:
        print(f"FAILED {each.scenario} at {each.boundary}: {'; '.join(map(str, each.problems)) or 'not met'}")
        flag = " --virtual" if options.virtual else ""
        print(f"  again: python -m tests.crash{flag} --scenario '{each.scenario}' --at {each.boundary}")


def _wanted(scenario: Scenario, operation: str | None, name: str | None) -> bool:
    return operation in (None, scenario.operation) and name in (None, scenario.name)


if __name__ == "__main__":
    sys.exit(main())
