"""What a create costs on the lab, beside the same made by openstacksdk alone: `python -m tests.openstack.benchmark`.

The lab's own work is in both figures and dwarfs ours; what is ours is the difference. With --write-docs the rows go
into docs/reference/figures.md.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from uuid import UUID, uuid4

import openstack
from openstack.connection import Connection
from rich.console import Console

from aggregates.commands import CreateInstance, DeleteInstance
from tests.benchmarks.__main__ import BENCHMARKS, ELSEWHERE, table
from tests.benchmarks.document import write_document
from tests.benchmarks.measure import Figure, Pair, load, median
from tests.openstack.crash.bed import LabBed, on_the_lab
from tests.openstack.crash.matrix import end_as_interrupted
from tests.openstack.ledger import Requests, remove
from tests.openstack.resources import port_of, server_of, volume_of
from tests.openstack.services import Lab
from tests.support.eventually import soon

(NAME,) = ELSEWHERE
EVERY = 0.2  # seconds between two looks by hand
# Port, volume, server and attachment are asked for; that the last three are there must be seen once at least.
NEEDED = 7
CROWD = 8  # creates at once


async def measure(rounds: int) -> list[Figure]:
    """The figures."""
    async with on_the_lab(direct=True) as bed:
        await _create(bed, 1)  # what is looked up once and kept is looked up now
        timed = median([Pair((await _create(bed, 1))[0], await asyncio.to_thread(_by_hand)) for _ in range(rounds)])
        alone = (await _create(bed, 1))[1]
        crowd = (await _create(bed, CROWD))[1] / CROWD
    needed = "asking for each, and seeing once that it is there"
    return [
        _figure(
            "create_instance until the server has its volume", timed, "s", f"openstacksdk alone, a look each {EVERY} s"
        ),
        _figure("requests for one create_instance", Pair(alone, NEEDED), "requests", needed),
        _figure(f"requests for each of {CROWD} create_instance at once", Pair(crowd, NEEDED), "requests", needed),
    ]


def _figure(what: str, found: Pair, unit: str, baseline: str) -> Figure:
    return Figure(
        benchmark=NAME,
        what=what,
        value=found.value,
        unit=unit,
        baseline_what=baseline,
        baseline=found.baseline,
        load=load(),
    )


async def _create(bed: LabBed, count: int) -> tuple[float, int]:
    """Make so many, and delete them: seconds until the last has its volume, and requests for all that until then."""
    requests = Requests(Lab())
    ids = [bed.new_id() for _ in range(count)]
    command = CreateInstance(name="orders", flavor="small", datastore="redis", volume_size=1)
    messages = [bed.message(command, instance_id) for instance_id in ids]
    began = time.time()
    await asyncio.gather(*(bed.handle.publish(message) for message in messages))
    if not await bed.until(lambda: all(_attached(bed, each) for each in ids)):
        raise TimeoutError("no instance was made: see the worker's log")
    seconds = max(_attached(bed, each) for each in ids) - began
    asked = [each for each in requests.made() if each.service != "keystone" and each.at < began + seconds]
    await asyncio.gather(*(bed.handle.learn(message, bed.patience) for message in messages))
    deletions = [bed.message(DeleteInstance(), instance_id) for instance_id in ids]
    await asyncio.gather(*(bed.handle.publish(message) for message in deletions))
    await asyncio.gather(*(bed.handle.learn(message, bed.patience) for message in deletions))
    return seconds, len(asked)


def _attached(bed: LabBed, instance_id: UUID) -> float:
    """When the log says that the volume was attached, in seconds since 1970; 0 while it does not."""
    found = (each for each in bed.history(instance_id) if type(each).__name__ == "VolumeAttached")
    return next((each.timestamp.timestamp() for each in found), 0.0)


def _by_hand() -> float:
    """Seconds that the same takes with nothing but openstacksdk."""
    name = f"bench-{uuid4()}"
    with openstack.connect(cloud="lab-service") as cloud, openstack.connect(cloud="lab-admin") as admin:
        cloud.compute.find_flavor("small", ignore_missing=False)  # it is signed in
        try:
            began = time.monotonic()
            _make(cloud, name)
            return time.monotonic() - began
        finally:
            remove(admin, name)


def _make(cloud: Connection, name: str) -> None:
    port_id, volume_id = port_of(cloud, name), volume_of(cloud, name)
    soon(lambda: cloud.block_storage.get_volume(volume_id).status == "available", every=EVERY)
    server_id = server_of(cloud, name, port_id, config_drive=True)
    soon(lambda: cloud.compute.get_server(server_id).status == "ACTIVE", every=EVERY)
    cloud.compute.create_volume_attachment(server_id, volume_id=volume_id)
    soon(lambda: cloud.block_storage.get_volume(volume_id).status == "in-use", every=EVERY)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.openstack.benchmark", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of which the median counts")
    parser.add_argument("--write-docs", action="store_true", help="put the rows into docs/reference/figures.md")
    options = parser.parse_args(argv)
    end_as_interrupted()
    figures = asyncio.run(measure(options.rounds))
    Console(width=None if sys.stdout.isatty() else 180).print(table(figures))
    if options.write_docs:
        write_document(figures, [*BENCHMARKS, *ELSEWHERE])
    return 0


if __name__ == "__main__":
    sys.exit(main())
