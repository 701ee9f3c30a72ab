"""The crash matrix on the lab: `python -m tests.openstack.crash`, or `make crash-openstack`. Ends with 1 when a promise
was broken.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from tests.crash.matrix import Report
from tests.openstack.crash.matrix import OPERATIONS, PARALLEL, end_as_interrupted, plain, record, strike


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is asked. Yields the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.openstack.crash", description=__doc__)
    parser.add_argument("--only", choices=OPERATIONS, help="one operation")
    parser.add_argument("--spread", type=int, metavar="N", help="N boundaries, drawn by --seed, instead of all")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="by which the spread is drawn")
    parser.add_argument("--parallel", type=int, default=PARALLEL, metavar="N", help=f"beds at once; {PARALLEL}")
    options = parser.parse_args(argv)
    end_as_interrupted()
    began = time.monotonic()
    matrix = record(plain((options.only,) if options.only else OPERATIONS))
    if options.spread:
        print(f"a spread of {options.spread} of {matrix.boundaries} boundaries, --seed {options.seed}")
        matrix = matrix.spread(options.seed, options.spread)
    for wrong in matrix.wrong:
        print(f"WRONG undisturbed: {wrong}")
    report = Report()
    for results in strike(matrix, options.parallel):
        report.add(results)
        for each in results:
            if each.bad:
                print(f"FAILED {each.scenario} at {each.boundary}: {'; '.join(map(str, each.problems)) or 'not met'}")
        done = len(report.results)
        print(f"{done} of {matrix.boundaries} boundaries, {time.monotonic() - began:.0f} s", flush=True)
    print()
    print("\n".join(report.lines()))
    if report.missed:
        print(
            f"{len(report.missed)} boundaries were not there this time: {', '.join(r.boundary for r in report.missed)}"
        )
    return 1 if report.bad or matrix.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
