"""A simulated cloud in a process of its own: it outlives its callers, and says who does not find it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from aggregates.effects import RestartDatabase
from engine.broker import BrokerSettings, connect, ensure_streams
from engine.clouds.port import TransientError, UnknownOutcomeError
from engine.clouds.simulated import FAULTS, GUEST_FAULTS, SimulatedGuests
from engine.clouds.simulated.client import FarSide, RemoteCloud
from engine.clouds.simulated.faults import Fault, Kind
from engine.clouds.simulated.wire import Injected
from tests.clouds.wishes import Wishes
from tests.support.broker import running_broker
from tests.support.eventually import eventually
from tests.support.installation import HOLDFAST
from tests.support.publisher import CREATE, Publisher
from tests.support.simulated_cloud import simulated_cloud

CALLER = """
import asyncio, sys
from pathlib import Path
from engine.clouds.simulated.client import FarSide
from engine.clouds.simulated.faults import Call

async def main():
    far_side = FarSide(Path(sys.argv[1]))
    asking = asyncio.create_task(far_side.call(Call(name="create_volume", args={"name": "v", "size": 1})))
    await asyncio.sleep(0.2)
    print("asked", flush=True)
    await asking

asyncio.run(main())
"""


@pytest.fixture
def socket(tmp_path: Path) -> Iterator[Path]:
    with simulated_cloud(tmp_path, "--latest-effect", "0", "--deadline", "5") as path:
        yield path


@pytest.fixture
async def outside(socket: Path) -> AsyncIterator[FarSide]:
    far_side = FarSide(socket)
    yield far_side
    await far_side.close()


async def test_a_call_whose_caller_has_died_is_carried_out_and_stands_in_the_ledger(
    outside: FarSide, socket: Path
) -> None:
    await outside.plan("create_volume", Fault(kind=Kind.LATE, seconds=1))
    caller = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CALLER, str(socket), stdout=asyncio.subprocess.PIPE
    )
    assert caller.stdout is not None
    assert await caller.stdout.readline() == b"asked\n"
    caller.kill()
    await caller.wait()
    assert (await outside.inventory())["volumes"] == {}
    entry = (await eventually(outside.ledger))[0]
    assert (entry.action, entry.kind, entry.name) == ("create", "volume", "v")
    written = json.loads((socket.parent / "ledger.jsonl").read_text())
    assert written["id"] == entry.id


async def test_faults_are_planned_from_outside_and_counted(outside: FarSide, socket: Path) -> None:
    await outside.plan("create_port", FAULTS["acts_and_answers_500"])
    cloud = RemoteCloud(FarSide(socket), in_flight=8)
    await cloud.start()
    wishes = Wishes(cloud)
    with pytest.raises(UnknownOutcomeError, match="500"):
        await wishes.pay(wishes.port())
    await wishes.pay(wishes.port())
    await cloud.close()
    assert [(entry.action, entry.kind) for entry in await outside.ledger()] == [("create", "port")]
    assert await outside.injected() == [Injected(call="create_port", kind="broken", times=1)]


async def test_guests_answer_while_their_server_is_up(outside: FarSide, socket: Path) -> None:
    cloud = RemoteCloud(outside, in_flight=8)
    guests = SimulatedGuests(agents=outside)
    wishes = Wishes(cloud)
    stop = RestartDatabase(instance_id=wishes.id, patience=0.1)
    with pytest.raises(TransientError, match="no answer from the guest agent"):
        await guests.pay(stop, "key")
    await wishes.build()
    await outside.plan_guest("restart", GUEST_FAULTS["fails"])
    with pytest.raises(TransientError, match="so it was planned"):
        await guests.pay(stop, "key")
    with pytest.raises(Exception, match="not_prepared"):
        await guests.pay(stop, "key")


async def test_who_finds_nobody_at_the_socket_hears_what_to_do(tmp_path: Path) -> None:
    cloud = RemoteCloud(FarSide(tmp_path / "nothing.sock"), in_flight=8)
    with pytest.raises(TransientError, match="start one: python"):
        await cloud.start()


def test_a_second_one_at_the_same_socket_is_refused(socket: Path) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "engine.clouds.simulated", "--socket", str(socket)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert second.returncode == 1
    assert "another simulated cloud answers" in second.stdout + second.stderr


async def test_a_worker_killed_on_it_and_started_anew_makes_each_resource_once(tmp_path: Path) -> None:
    with (
        running_broker(tmp_path / "broker") as broker,
        simulated_cloud(
            tmp_path / "cloud", "--latest-effect", "1", "--build-time", "0.5", "--latency", "0.05"
        ) as socket,
    ):
        outside = FarSide(socket)
        worker = _Worker(tmp_path, broker.url, f"simulated:{socket}")
        publisher = Publisher(await connect(BrokerSettings(url=broker.url), name="publisher"))
        await ensure_streams(publisher.client.jetstream())
        instance_id = uuid4()
        await publisher.send("create_instance", instance_id, CREATE)
        await eventually(lambda: _made(outside, "server"))
        await worker.kill()
        worker.start()
        await eventually(lambda: _prepared(outside), within=60)
        await worker.end()
        await publisher.client.close()
        made = Counter((entry.kind, entry.name) for entry in await outside.ledger() if entry.action == "create")
        assert {"credentials", "port", "server", "volume"} <= {kind for kind, _ in made}
        assert set(made.values()) == {1}
        assert {entry.caller for entry in await outside.ledger()} <= {f"process {pid}" for pid in worker.pids}
        await outside.close()


async def _made(far_side: FarSide, kind: str) -> bool:
    return any(entry.kind == kind and entry.action == "create" for entry in await far_side.ledger())


async def _prepared(far_side: FarSide) -> bool:
    return any(deed.verb == "prepare" for deed in await far_side.deeds())


class _Worker:
    """`holdfast worker` on a simulated cloud."""

    def __init__(self, directory: Path, nats: str, cloud: str) -> None:
        self._log = directory / "worker.log"
        self._command = [str(HOLDFAST), "worker", "--nats", nats, "--durable-broker", "--cloud", cloud]
        self._command += ["--state", str(directory / "state")]
        self.pids: list[int] = []
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        self.pids.append(self._process.pid)

    async def kill(self) -> None:
        self._process.kill()
        await asyncio.to_thread(self._process.wait, 30)

    async def end(self) -> None:
        self._process.terminate()
        assert await asyncio.to_thread(self._process.wait, 30) == 0, self._log.read_text()


def test_a_cloud_that_is_not_known_is_refused(tmp_path: Path) -> None:
    with running_broker(tmp_path / "broker") as broker:
        for cloud, said in (
            ("marble", "there is no cloud marble"),
            (f"simulated:{tmp_path}/none", "start one: python"),
        ):
            worker = _Worker(tmp_path, broker.url, cloud)
            assert worker._process.wait(60) == 1
            assert said in worker._log.read_text()
