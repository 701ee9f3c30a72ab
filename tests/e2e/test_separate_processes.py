"""Worker and projector as processes of their own, a foreign broker and a PostgreSQL store: the same, with faults."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from engine.broker import BrokerSettings, connect
from tests.support.broker import Broker, running_broker
from tests.support.databases import Database, create_arguments
from tests.support.installation import HOLDFAST, Installation, Tenant, installation


class Processes:
    """One worker and one projector."""

    def __init__(self, made: Installation, broker: Broker, store: str) -> None:
        self.broker = broker
        self._common = ["--nats", broker.url, "--store", store, "--state", str(made.state)]
        self._log = made.log
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, role: str, sign: str) -> None:
        offset = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            vouched = ["--durable-broker"] if role == "worker" else []
            self._running[role] = subprocess.Popen([HOLDFAST, role, *self._common, *vouched], stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while sign not in self._log.read_bytes()[offset:].decode(errors="replace"):
            assert time.monotonic() < deadline, self._log.read_text()
            assert self._running[role].poll() is None, self._log.read_text()
            time.sleep(0.05)

    def kill(self, role: str) -> None:
        self._running[role].kill()
        self._running[role].wait(30)

    def end(self) -> list[int]:
        for process in self._running.values():
            process.terminate()
        return [process.wait(60) for process in self._running.values()]


@pytest.fixture
def processes(tmp_path: Path, postgres: str) -> Iterator[Processes]:
    schema = f"apart_{uuid4().hex}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
    with running_broker(tmp_path / "broker") as broker, installation() as made:
        apart = Processes(made, broker, f"{postgres}?schema={schema}")
        apart.start("worker", "inbox_reading")
        apart.start("projector", "projector_started")
        try:
            yield apart
        finally:
            statuses = apart.end()
        assert statuses == [0, 0], made.said()


@pytest.fixture
async def tenant(processes: Processes) -> AsyncIterator[Tenant]:
    client = await connect(BrokerSettings(url=processes.broker.url), name="tenant")
    yield Tenant(client)
    await client.close()


async def test_killed_worker_projector_and_broker_lose_nothing(processes: Processes, tenant: Tenant) -> None:
    reference = await tenant.secret("a-long-password")
    instance_id = str(uuid4())
    decision = await tenant.send(
        "create_instance", instance_id, create_arguments("apart", "postgresql", "16", reference)
    )
    processes.kill("worker")
    processes.kill("projector")
    processes.start("worker", "inbox_reading")
    processes.start("projector", "projector_started")
    assert (await tenant.outcome(decision["command_id"]))["outcome"] == "done"
    instance = await tenant.query("instances.get", instance_id=instance_id)
    database = Database(instance, "a-long-password")
    await asyncio.to_thread(database.write, "key", "value")
    processes.broker.kill()
    assert await asyncio.to_thread(database.read, "key") == "value"
    await asyncio.to_thread(processes.broker.start)
    for command, args in (("resize_volume", {"new_size": 2}), ("migrate", {}), ("delete_instance", {})):
        decision = await tenant.send(command, instance_id, args)
        assert (await tenant.outcome(decision["command_id"]))["outcome"] == "done"


def test_a_broker_that_may_lose_what_it_acknowledged_is_refused(tmp_path: Path) -> None:
    with running_broker(tmp_path / "broker") as broker, installation() as made:
        done = made.holdfast("worker", "--nats", broker.url)
    assert done.returncode == 1
    assert "broker_not_durable" in done.stderr
