"""`holdfast up` is killed (-9) thirty times, seeded, while tenants use it: nothing is lost, doubled or stuck."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from aggregates.base import Transitioned
from aggregates.record import Decided
from engine.event_log import open_log
from tests.support.databases import Database, create_arguments
from tests.support.installation import Installation, Tenant, installation

KILLS = int(os.environ.get("HOLDFAST_KILLS", "30"))
SEED = int(os.environ.get("HOLDFAST_SEED", "20261122"))
STUCK_AFTER = 240.0

OPERATIONS: dict[str, Any] = {
    "restart": lambda _: {},
    "reboot": lambda _: {"hard": False},
    "resize_volume": lambda size: {"new_size": size + 1},
    "resize_flavor": lambda _: {},
    "migrate": lambda _: {},
    "stop_instance": lambda _: {},
}


class Tally:
    """What came of every command that the broker acknowledged."""

    def __init__(self) -> None:
        self.sent = 0
        self.outcomes: Counter[str] = Counter()
        self.lost: list[str] = []
        self.stuck: list[str] = []
        self.doubled: list[str] = []


class Life:
    """One instance from create to delete, with random operations in between, its data looked at after each."""

    def __init__(self, tenant: Tenant, datastore: str, version: str, rng: random.Random, tally: Tally) -> None:
        self.id = str(uuid4())
        self._tenant = tenant
        self._datastore = datastore
        self._version = version
        self._rng = rng
        self._tally = tally
        self._password = f"pw-{rng.getrandbits(64):x}"
        self._size = 1
        self._flavor = "micro"

    async def live(self, stop: asyncio.Event) -> None:
        reference = await self._tenant.secret(self._password)
        name = f"{self._datastore}-{self.id[:8]}"
        await self._do("create_instance", create_arguments(name, self._datastore, self._version, reference))
        await self._use("created", write=True)
        pending = list(OPERATIONS)
        while pending or not stop.is_set():
            pending = pending or list(OPERATIONS)
            command = pending.pop(self._rng.randrange(len(pending)))
            args = OPERATIONS[command](self._size)
            if command == "resize_volume":
                self._size = args["new_size"]
            if command == "resize_flavor":
                self._flavor = args["flavor"] = "small" if self._flavor == "micro" else "micro"
            await self._do(command, args)
            if command == "stop_instance":
                await self._do("start_instance", {})
            await self._use("created")
        await self._do("delete_instance", {})

    async def _do(self, command: str, args: dict[str, Any]) -> None:
        command_id = str(uuid4())
        body = {"command_id": command_id, "args": args, "actor": "storm", "issued_at": "2026-01-31T12:00:00Z"}
        await self._tenant.publish(command, self.id, json.dumps(body).encode())
        self._tally.sent += 1
        try:
            answer = await self._tenant.outcome(command_id, STUCK_AFTER)
        except TimeoutError as late:
            self._tally.stuck.append(f"{command} {self.id}: {late}")
            raise
        self._tally.outcomes[str(answer.get("outcome"))] += 1
        if answer.get("outcome") != "done":
            self._tally.lost.append(f"{command} of {self._datastore}: {answer}")

    async def _use(self, key: str, *, write: bool = False) -> None:
        instance = await self._tenant.query("instances.get", instance_id=self.id)
        database = Database(instance, self._password)
        if write:
            await asyncio.to_thread(database.write, key, self.id)
        found = await asyncio.to_thread(database.read, key)
        if found != self.id:
            self._tally.lost.append(f"a row of {self._datastore} {self.id}: {found}")


async def _storm(made: Installation, rng: random.Random, stop: asyncio.Event) -> None:
    for _ in range(KILLS):
        await asyncio.sleep(rng.uniform(0.05, 2.0))
        await asyncio.to_thread(made.kill)
        await asyncio.to_thread(made.start)
    stop.set()


@pytest.mark.timeout(1500)
async def test_nothing_is_lost_doubled_or_stuck(record_property: Callable[[str, object], None]) -> None:
    rng = random.Random(SEED)
    tally = Tally()
    began = time.monotonic()
    with installation() as made:
        await asyncio.to_thread(made.start)
        client = await made.connect()
        tenant = Tenant(client)
        catalogue = await tenant.query("catalogue.get")
        offered = [(d["manager"], v) for d in catalogue["datastores"] for v in d["versions"]]
        lives = [Life(tenant, *each, random.Random(rng.random()), tally) for each in offered]
        stop = asyncio.Event()
        await asyncio.gather(_storm(made, rng, stop), *(life.live(stop) for life in lives))
        left = sorted(
            str(path.relative_to(made.state))
            for pattern in ("cloud/hosts/*/servers/*", "cloud/volumes/*", "cloud/ports/*")
            for path in made.state.glob(pattern)
        )
        assert await asyncio.to_thread(made.stop) == 0, made.said()
        tally.doubled += _doubles(made)
        processes = [" ".join(p.cmdline())[:200] for p in made.processes()]
        await client.close()
    record_property(
        "figures",
        f"killed {KILLS} times (seed {SEED}) in {time.monotonic() - began:.0f} s over {len(lives)} instances of "
        f"{len(offered)} datastore versions, {tally.sent} commands: lost {len(tally.lost)}, "
        f"doubled {len(tally.doubled) + len(left)}, stuck {len(tally.stuck)}",
    )
    assert (tally.lost, tally.doubled, tally.stuck) == ([], [], [])
    assert left == []
    assert processes == []
    assert tally.outcomes == {"done": tally.sent}


def _doubles(made: Installation) -> list[str]:
    """Commands decided twice, and states that one operation entered twice, as the log has them."""
    log = open_log(f"sqlite://{made.state}/store/events.db")
    seen: Counter[str] = Counter()
    position = 0
    while page := log.read(position, 1000):
        position = page[-1].position
        for stored in page:
            if isinstance(stored.event, Decided):
                seen[f"decision of {stored.event.command_id}"] += 1
            elif isinstance(stored.event, Transitioned):
                seen[f"{stored.event.operation_id} entered {stored.event.state}"] += 1
    log.close()
    return [what for what, count in seen.items() if count > 1]
