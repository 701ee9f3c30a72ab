"""A worker started while its broker or its store is away waits, or says what to do; told to end, it ends in time."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from engine.broker import BrokerSettings, connect
from tests.engine.test_bad_input import envelope
from tests.support.broker import Broker
from tests.support.installation import HOLDFAST
from tests.support.postgres import Postgres, own_postgres
from tests.support.publisher import CREATE, Publisher


@pytest.fixture
def postgres_of_its_own() -> Iterator[Postgres]:
    with own_postgres() as server:
        yield server


class Process:
    """A real `holdfast worker` or `projector`."""

    def __init__(self, directory: Path, part: str, broker: Broker, store: str) -> None:
        self._log = directory / f"{part}.log"
        command = [str(HOLDFAST), part, "--state", str(directory / part), "--nats", broker.url, "--store", store]
        if part == "worker":
            command.append("--durable-broker")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def said(self, words: str, within: float = 60) -> str:
        """Its log, once it has said these words."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            log = self._log.read_text(errors="replace")
            if words in log:
                return log
            time.sleep(0.05)
        raise TimeoutError(f"it did not say {words}: {self._log.read_text(errors='replace')}")

    def told_to_end(self, within: float) -> int:
        """Its exit code after SIGTERM."""
        self._process.terminate()
        return self._process.wait(within)

    def ended(self, within: float = 60) -> int:
        """Its exit code."""
        return self._process.wait(within)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(10)


Start = Callable[..., Process]


@pytest.fixture
def start() -> Iterator[Start]:
    started = []
    directory = Path(tempfile.mkdtemp(prefix="holdfast-"))
    directory.chmod(0o755)  # under root, guests are another user's

    def start(part: str, broker: Broker, store: str) -> Process:
        started.append(Process(directory, part, broker, store))
        return started[-1]

    yield start
    for process in started:
        process.kill()
    shutil.rmtree(directory, ignore_errors=True)


async def test_all_wait_for_the_store_and_end_in_time_without_it(
    broker: Broker, postgres_of_its_own: Postgres, start: Start, record_property: Callable[[str, object], None]
) -> None:
    server = postgres_of_its_own
    server.stop()
    worker, projector = (start(part, broker, server.url) for part in ("worker", "projector"))
    for process in (worker, projector):
        assert "start it, or correct --store" in process.said("store_unavailable")
    server.start()
    worker.said("inbox_reading")
    projector.said("projector_started")
    server.pause()
    # Something is waited for when the end comes.
    client = await connect(BrokerSettings(url=broker.url), name="publisher")
    publisher = Publisher(client)
    await publisher.publish("create_instance", uuid4(), envelope(CREATE))
    await asyncio.sleep(1)
    began = time.monotonic()
    assert worker.told_to_end(within=40) == 0
    record_property("figures", f"worker ended {time.monotonic() - began:.1f} s after SIGTERM without its store")
    assert projector.told_to_end(within=40) == 0
    server.resume()
    # The one that comes next decides it, and goes on.
    start("worker", broker, server.url).said("inbox_reading")
    assert (await publisher.send_body("create_instance", uuid4(), envelope(CREATE)))["accepted"]
    await client.close()


def test_a_worker_waits_for_its_broker_for_a_while(broker: Broker, tmp_path: Path, start: Start) -> None:
    broker.stop()
    worker = start("worker", broker, f"sqlite://{tmp_path}/events.db")
    worker.said("broker_error")
    broker.start()
    worker.said("inbox_reading")
    assert worker.told_to_end(within=40) == 0


def test_a_store_that_refuses_us_is_not_waited_for(broker: Broker, postgres: str, start: Start) -> None:
    worker = start("worker", broker, postgres.replace("holdfast@", "nobody@"))
    assert worker.ended() == 1
    said = worker.said("store_refused")
    assert 'role "nobody" does not exist' in said
    assert "correct --store" in said
    assert "Traceback" not in said
