"""The agent's program: `python -m engine.guest <agent.json> [--run-as uid:gid]`. Ends with 0 when told to by SIGTERM.

It takes one agent for each directory; the database that it looks after is left running when it ends.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import IO

import msgspec
import structlog

from engine.guest import config as configuration
from engine.guest import privileges
from engine.guest.agent import run
from engine.guest.connection import Credentials, read_credentials
from engine.guest.datastores.base import DatastoreError

_log = structlog.get_logger()
_LOCK_TIMEOUT = 10.0


def main(argv: list[str] | None = None) -> int:
    """Run an agent until SIGTERM or SIGINT. Yields the exit status."""
    parser = argparse.ArgumentParser(prog="holdfast agent", description="Run the guest agent of one instance.")
    parser.add_argument("config", type=Path, help="the agent's configuration, agent.json")
    parser.add_argument("--run-as", metavar="UID:GID", help="the user to become, when started as root")
    options = parser.parse_args(argv)
    _configure_logging()
    os.umask(0o077)
    try:
        config = configuration.read(options.config)
        credentials = read_credentials(config)
        if options.run_as:
            privileges.become(*privileges.parse(options.run_as), (config.directory, config.volume))
        with _sole_agent(config.directory):
            asyncio.run(_until_told(config, credentials))
    except (OSError, msgspec.MsgspecError, privileges.PrivilegeError, DatastoreError) as error:
        _log.error("agent_cannot_run", config=str(options.config), reason=str(error))
        return 1
    return 0


async def _until_told(config: configuration.AgentConfig, credentials: Credentials) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    _log.info("agent_started", instance=str(config.instance_id), datastore=config.datastore, user=os.geteuid())
    await run(config, credentials, stop)


def _sole_agent(directory: Path) -> IO[bytes]:
    """Two agents on one directory would start two databases: the second waits for the first to end, then gives up."""
    lock = (directory / "agent.lock").open("ab")
    deadline = time.monotonic() + _LOCK_TIMEOUT
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                lock.close()
                raise DatastoreError(
                    "agent_runs", f"another agent runs on {directory}: end it, or leave this one away"
                ) from None
            time.sleep(0.05)
        else:
            return lock


def _configure_logging() -> None:
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(20),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )


def program() -> None:
    """`main` as a process: a verb cut off in a thread does not hold up the end."""
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    if threading.active_count() > 1:
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    program()
