"""The agent's program: `python -m engine.guest`, told by an agent.json, by user data, or by a config drive.

Ends with 0 when told to by SIGTERM. It takes one agent for each directory; the database that it looks after is left
running when it ends.
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
from engine.guest import image, privileges
from engine.guest.agent import run
from engine.guest.belongings import leave, take_over
from engine.guest.connection import Credentials, read_credentials
from engine.guest.datastores.base import DatastoreError
from engine.guest.enrol import enrol, prepare
from engine.guest.image import IMAGE
from engine.guest.machine import agent_config
from engine.guest.mount import Mount
from engine.guest.user_data import Machine, UserDataError, read_drive, read_machine
from engine.tasks import end

_log = structlog.get_logger()
_LOCK_TIMEOUT = 10.0


def main(argv: list[str] | None = None) -> int:
    """Run an agent until SIGTERM or SIGINT. Yields the exit status."""
    parser = argparse.ArgumentParser(prog="holdfast agent", description="Run the guest agent of one instance.")
    told = parser.add_mutually_exclusive_group(required=True)
    told.add_argument("config", nargs="?", type=Path, help="the agent's configuration, agent.json")
    told.add_argument("--config-drive", type=Path, metavar="DIR", help="where the machine's config drive is mounted")
    told.add_argument("--machine", type=Path, metavar="FILE", help="what cloud-init wrote from the machine's user data")
    parser.add_argument(
        "--image", type=Path, metavar="FILE", default=IMAGE, help=f"what the image says, by default {IMAGE}"
    )
    parser.add_argument("--run-as", metavar="UID:GID", help="the user to become, when started as root")
    options = parser.parse_args(argv)
    _configure_logging()
    os.umask(0o077)
    try:
        machine = _machine(options)
        config = _config(options, machine)
        credentials = read_credentials(config) if machine is None else None
        if machine is not None:
            config.directory.mkdir(exist_ok=True)
        if options.run_as:
            privileges.become(*privileges.parse(options.run_as), (config.directory, config.volume))
        with _sole_agent(config.directory):
            asyncio.run(_until_told(config, credentials, machine))
    except (
        OSError,
        ValueError,
        msgspec.MsgspecError,
        UserDataError,
        privileges.PrivilegeError,
        DatastoreError,
    ) as error:
        _log.error(
            "agent_cannot_run", config=str(options.config or options.machine or options.config_drive), reason=str(error)
        )
        return 1
    return 0


def _machine(options: argparse.Namespace) -> Machine | None:
    """What the user data says, where the agent is told by it."""
    if options.config_drive is not None:
        return read_drive(options.config_drive)
    return read_machine(options.machine) if options.machine is not None else None


def _config(options: argparse.Namespace, machine: Machine | None) -> configuration.AgentConfig:
    if machine is None:
        return configuration.read(options.config)
    return agent_config(machine, image.read(options.image), options.config_drive)


async def _until_told(
    config: configuration.AgentConfig, credentials: Credentials | None, machine: Machine | None
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    _log.info("agent_started", instance=str(config.instance_id), datastore=config.datastore, user=os.geteuid())
    if machine is not None:
        _settle_in(config)
        prepare(machine, config)
        _leave(config)  # before anybody is told of the key: there will be no other
        enrolling = asyncio.create_task(enrol(machine, config))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({enrolling, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not enrolling.done():
            await end(enrolling)
            return
        enrolling.result()
        _leave(config)
    await run(config, credentials, stop)


def _settle_in(config: configuration.AgentConfig) -> None:
    """A server that has no key yet looks on its volume for one. Raises `DatastoreError` while that is not there."""
    if config.kept is not None and not (config.seed_file and config.seed_file.exists()):
        _mount(config).take()
        take_over(config.kept, config.directory)


def _leave(config: configuration.AgentConfig) -> None:
    if config.kept is not None and _mount(config).there:
        leave(config.directory, config.kept)


def _mount(config: configuration.AgentConfig) -> Mount:
    return Mount(volume=config.volume, requests=config.requests)


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
