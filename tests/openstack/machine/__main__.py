"""The lab's guest hook: `python -m tests.openstack.machine DIRECTORY ACTION [--broker URL]`, a JSON document on stdin.

Nova-compute waits for it: it starts what a machine runs detached, and returns. Servers whose user data is not ours,
or names another broker than the one given, are left alone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

from tests.openstack.machine.machine import Machine, Told


def main() -> int:
    """Do what the action says. Yields the exit status."""
    parser = argparse.ArgumentParser(prog="machine", description=__doc__)
    parser.add_argument("directory", type=Path, help="where the machines are kept; other users must be able to pass")
    parser.add_argument("action", help="spawn, power_on, power_off, reboot, attach_volume, detach_volume or destroy")
    parser.add_argument("--broker", metavar="URL", help="play only machines that are told of this broker")
    options = parser.parse_args()
    told = msgspec.json.decode(sys.stdin.buffer.read(), type=Told, dec_hook=lambda kind, value: kind(value))
    with Machine.of(options.directory, told.uuid) as machine:
        machine.act(options.action, told, options.broker)
    return 0


if __name__ == "__main__":
    sys.exit(main())
