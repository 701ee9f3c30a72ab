"""Measures, and prints one table: each figure beside its baseline. `--help` says what can be asked.

What it prints holds for the machine and the moment; the ratios say more than the figures. It judges nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import pstats
import signal
import sys
import tempfile
import traceback
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec
import structlog
from rich.console import Console
from rich.table import Table

from tests.benchmarks import create_postgresql, read_side, replay, way_of_a_command
from tests.benchmarks.document import write_document
from tests.benchmarks.measure import FULL, QUICK, Figure, Scale, rounded

BENCHMARKS: dict[str, Callable[[Scale], Awaitable[list[Figure]]]] = {
    "live": way_of_a_command.live,
    "backlog": way_of_a_command.backlog,
    "idle": way_of_a_command.idle,
    "accepting": way_of_a_command.accepting,
    "in-flight": way_of_a_command.in_flight,
    "operations": way_of_a_command.operations,
    "create": create_postgresql.create,
    "replay": replay.replay,
    "rebuild": replay.rebuild,
    "heartbeats": read_side.heartbeats,
    "queries": read_side.queries,
}
ELSEWHERE = ("openstack",)  # of programs of their own, whose rows in the document stay
PROFILED = ("backlog", "operations")


def table(figures: Sequence[Figure]) -> Table:
    """The figures for a terminal."""
    shown = Table(title="Holdfast, measured on this machine now")
    for column in ("benchmark", "what", "figure", "baseline", "ratio", "load"):
        shown.add_column(column, justify="left" if column in ("benchmark", "what", "baseline") else "right")
    for each in figures:
        shown.add_row(
            each.benchmark,
            each.what,
            f"{rounded(each.value)} {each.unit}",
            f"{rounded(each.baseline)} {each.unit}, {each.baseline_what}",
            f"{each.ratio:.2f}",
            f"{each.load:.1f}",
        )
    return shown


async def measure(names: Sequence[str], scale: Scale) -> tuple[list[Figure], list[str]]:
    """Run the benchmarks one after the other: the figures, and the names of those that broke."""
    figures: list[Figure] = []
    broken = []
    for name in names:
        sys.stderr.write(f"measuring {name} ...\n")
        try:
            figures.extend(await BENCHMARKS[name](scale))
        except Exception:  # noqa: BLE001 - what the others measured in many minutes must not be lost with it
            traceback.print_exc()
            broken.append(name)
    return figures, broken


def profile(name: str, scale: Scale) -> None:
    """Print where a worker's processor time goes."""
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as directory:
        path = Path(directory) / "profile"
        asyncio.run(way_of_a_command.profiled(name, scale, path))
        stats = pstats.Stats(str(path)).strip_dirs()
    stats.sort_stats("cumtime").print_stats(80)
    stats.sort_stats("tottime").print_stats(40)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--only", action="append", choices=BENCHMARKS, help="this benchmark alone; may be repeated")
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON, too")
    parser.add_argument("--write-docs", action="store_true", help="put the table into docs/reference/figures.md")
    parser.add_argument("--profile", choices=PROFILED, help="print where the worker's processor time goes, instead")
    arguments = parser.parse_args()
    # Ended as by Ctrl-C: brokers and databases are made to outlive whoever started them, and must not outlive this.
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    scale = QUICK if arguments.quick else FULL
    if arguments.profile:
        profile(arguments.profile, scale)
        return
    figures, broken = asyncio.run(measure(arguments.only or list(BENCHMARKS), scale))
    Console(width=None if sys.stdout.isatty() else 180).print(table(figures))
    if arguments.json:
        content = [{**msgspec.to_builtins(each), "ratio": each.ratio} for each in figures]
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(content)) + b"\n")
    if arguments.write_docs and not broken:
        write_document(figures, [*BENCHMARKS, *ELSEWHERE])
    if broken:
        sys.exit(f"broke: {', '.join(broken)}")


if __name__ == "__main__":
    main()
