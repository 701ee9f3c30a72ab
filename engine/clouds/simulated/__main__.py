"""The simulated cloud's program: `python -m engine.clouds.simulated --socket PATH`. Ends with 0 when told by SIGTERM.

For tests and trials: `holdfast worker --cloud simulated:PATH` works on it.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path

import structlog

from engine import logs
from engine.clouds.simulated.cloud import DEADLINE, LATEST_EFFECT
from engine.clouds.simulated.server import serve
from engine.clouds.simulated.site import Site
from engine.clouds.simulated.wire import Settings

log = structlog.get_logger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT. Yields the exit status."""
    parser = argparse.ArgumentParser(prog="python -m engine.clouds.simulated", description="Serve a simulated cloud.")
    parser.add_argument("--socket", type=Path, required=True, help="the Unix socket to serve at")
    parser.add_argument("--ledger", type=Path, help="a file to which each change is added as a line of JSON")
    for name, default, what in (
        ("--latest-effect", LATEST_EFFECT.total_seconds(), "seconds that an unanswered call may take to show"),
        ("--deadline", DEADLINE, "seconds that callers are to wait for an answer"),
        ("--build-time", 0.0, "seconds that the cloud works on a server or a volume"),
        ("--verb-time", 0.0, "seconds that a guest takes for what it is asked"),
        ("--latency", 0.0, "seconds before each call has its effect"),
    ):
        parser.add_argument(name, type=float, default=default, help=f"{what}; {default:g} by default")
    options = parser.parse_args(argv)
    logs.configure()
    try:
        asyncio.run(_until_told(options))
    except OSError as error:
        log.error("cannot_run", reason=str(error))  # noqa: TRY400 - the error says it all
        return 1
    return 0


async def _until_told(options: argparse.Namespace) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    site = Site(
        build_time=options.build_time, verb_time=options.verb_time, latency=options.latency, ledger=options.ledger
    )
    settings = Settings(latest_effect=options.latest_effect, deadline=options.deadline)
    await serve(options.socket, site, settings, stop)


if __name__ == "__main__":
    sys.exit(main())
