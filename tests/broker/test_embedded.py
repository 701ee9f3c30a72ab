"""The embedded broker keeps what it acknowledged, stands up again, and outlives whoever started it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import nats.errors
import psutil
import pytest
from nats.aio.client import Client

from engine.broker import COMMAND_STREAM, BrokerError, connect, ensure_streams, require_durable
from engine.credentials import inbox_prefix
from engine.embedded import EmbeddedBroker
from engine.messages import CommandSubject
from engine.state import StateDirectory
from tests.broker.servers import eventually

_STARTER = """
import asyncio, sys
from pathlib import Path
from engine.embedded import EmbeddedBroker
from engine.state import StateDirectory

async def main():
    broker = EmbeddedBroker(StateDirectory(Path(sys.argv[1])), None)
    await broker.start()
    print(broker.url, broker.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@asynccontextmanager
async def connected(broker: EmbeddedBroker, user: str) -> AsyncIterator[Client]:
    client = await connect(broker.settings(user), name=user, inbox_prefix=inbox_prefix(user))
    try:
        yield client
    finally:
        await client.close()


def _subject(n: int) -> str:
    return str(CommandSubject("p", "instance", f"id-{n}", "restart"))


async def test_it_syncs_before_it_acknowledges_and_listens_on_the_loopback_alone(broker: EmbeddedBroker) -> None:
    facts = await broker.facts()

    assert facts["jetstream"]["config"]["sync_always"] is True
    assert (facts["host"], facts["http_port"], facts["max_payload"]) == ("127.0.0.1", 0, 1024 * 1024)
    listening = {c.laddr.ip for c in psutil.Process(broker.pid).net_connections() if c.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}
    async with connected(broker, "worker") as client:
        await ensure_streams(client.jetstream())
        await require_durable(client.jetstream(), embedded=True)


async def test_a_restart_keeps_the_messages_and_the_port(broker: EmbeddedBroker, state: StateDirectory) -> None:
    async with connected(broker, "worker") as client:
        await ensure_streams(client.jetstream())
        await client.jetstream().publish(_subject(1), b"{}")
    first_url, first_pid = broker.url, broker.pid
    await broker.stop()
    assert not psutil.pid_exists(first_pid)

    again = EmbeddedBroker(state, None)
    await again.start()

    try:
        assert again.url == first_url
        async with connected(again, "worker") as client:
            assert (await client.jetstream().stream_info(COMMAND_STREAM)).state.messages == 1
    finally:
        await again.stop()


async def test_all_that_was_acknowledged_is_there_after_the_server_was_killed(broker: EmbeddedBroker) -> None:
    acknowledged: list[int] = []
    stop = asyncio.Event()

    async def publish(lane: int) -> None:
        async with connected(broker, "publisher") as client:
            n = lane
            while not stop.is_set():
                with suppress(nats.errors.Error):  # unacknowledged, as far as the publisher knows
                    await client.jetstream().publish(_subject(n), b"{}", timeout=1)
                    acknowledged.append(n)
                n += 8

    async with connected(broker, "worker") as client:
        await ensure_streams(client.jetstream())
    supervising = asyncio.create_task(broker.supervise())
    publishers = [asyncio.create_task(publish(lane)) for lane in range(8)]
    for _ in range(3):
        before, pid = len(acknowledged), broker.pid
        await eventually(lambda before=before: len(acknowledged) > before + 100, "publishes are acknowledged")  # type: ignore[misc]
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda pid=pid: broker.pid not in (0, pid), "another server runs")  # type: ignore[misc]
    before = len(acknowledged)
    await eventually(lambda: len(acknowledged) > before, "publishers go on by themselves")
    stop.set()
    await asyncio.gather(*publishers)

    async with connected(broker, "worker") as client:
        js = client.jetstream()
        count = (await js.stream_info(COMMAND_STREAM)).state.messages
        reader = await js.pull_subscribe("holdfast.v1.cmdp.>", stream=COMMAND_STREAM)
        stored: set[int] = set()
        seen = 0
        while seen < count:
            for message in await reader.fetch(500, timeout=20):
                stored.add(int(message.subject.split(".")[-2].removeprefix("id-")))
                seen += 1
    supervising.cancel()
    assert set(acknowledged) <= stored


async def test_a_hung_server_is_replaced(state: StateDirectory) -> None:
    broker = EmbeddedBroker(state, None, patience=1.5)
    await broker.start()
    supervising = asyncio.create_task(broker.supervise())
    try:
        hung = broker.pid
        os.kill(hung, signal.SIGSTOP)

        await eventually(lambda: broker.pid not in (0, hung), "another server runs", within=60)
        async with connected(broker, "publisher") as client:
            assert client.is_connected
        assert not psutil.pid_exists(hung)
    finally:
        supervising.cancel()
        await broker.stop()


async def test_a_server_outlives_its_task_manager_and_is_adopted_by_the_next(state: StateDirectory) -> None:
    starter = _task_manager(state)
    broker = EmbeddedBroker(state, None)
    try:
        assert starter.stdout is not None
        reply = await asyncio.to_thread(_line_with_url, starter)
        url, pid = reply.split()
        starter.kill()
        await asyncio.to_thread(starter.wait, 10)

        await broker.start()

        assert (broker.url, broker.pid) == (url, int(pid))
        async with connected(broker, "worker") as client:
            await ensure_streams(client.jetstream())
        supervising = asyncio.create_task(broker.supervise())
        os.kill(int(pid), signal.SIGKILL)
        await eventually(lambda: broker.pid not in (0, int(pid)), "an adopted server is supervised as well")
        supervising.cancel()
    finally:
        starter.kill()
        await asyncio.to_thread(starter.wait, 10)
        if starter.stdout is not None:
            starter.stdout.close()
        if not broker.pid:
            await broker.start()
        await broker.stop()


def _task_manager(state: StateDirectory) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", _STARTER, str(state.root)], stdout=subprocess.PIPE, text=True)


def _line_with_url(starter: subprocess.Popen[str]) -> str:
    assert starter.stdout is not None
    for line in starter.stdout:
        if line.startswith("nats://"):
            return line
    raise AssertionError("the starter ended")


async def test_there_is_never_a_second_server_on_one_state_directory(
    broker: EmbeddedBroker, state: StateDirectory
) -> None:
    second = EmbeddedBroker(state, None)

    await second.start()

    assert second.pid == broker.pid
    await second.disconnect()


async def test_a_server_left_on_another_port_is_replaced(broker: EmbeddedBroker, state: StateDirectory) -> None:
    left = broker.pid
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    moved = EmbeddedBroker(state, port)
    await moved.start()

    try:
        assert moved.url == f"nats://127.0.0.1:{port}"
        assert moved.pid != left
    finally:
        await moved.stop()


async def test_a_port_that_another_program_has_is_said(state: StateDirectory) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        with pytest.raises(BrokerError, match=f"port {port} .* start with another port") as refused:
            await EmbeddedBroker(state, port).start()

    assert refused.value.code == "broker_port_taken"


async def test_a_server_that_will_not_start_says_why(state: StateDirectory) -> None:
    (state.broker / "data").write_text("in the way")

    with pytest.raises(BrokerError, match=r"ended while it started: .*storage directory is not a directory") as refused:
        await EmbeddedBroker(state, None).start()

    assert refused.value.code == "broker_ended"


async def test_no_secret_stands_in_a_file_a_command_line_or_an_environment(
    broker: EmbeddedBroker, state: StateDirectory
) -> None:
    seeds = [path.read_text().strip() for path in state.credentials.glob("*.nk")]
    process = psutil.Process(broker.pid)
    shown = [" ".join(process.cmdline()), str(process.environ())]
    shown += [path.read_text(errors="replace") for path in state.broker.glob("*") if path.is_file()]

    assert len(seeds) == 6
    assert not any(seed in text for seed in seeds for text in shown)
    assert {path.stat().st_mode & 0o777 for path in state.credentials.glob("*.nk")} == {0o600}
    assert set(process.environ()) == {"PATH"}


def test_the_address_is_not_known_before_the_start(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="before it was started"):
        _ = EmbeddedBroker(StateDirectory(tmp_path)).url
