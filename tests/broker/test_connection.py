"""A connection comes back by itself, says why it does not, and keeps its secrets."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
import structlog.testing
from nats.aio.client import Client
from nats.aio.msg import Msg

from engine.broker import BrokerError, BrokerSettings, connect, shown
from tests.broker.servers import PlainServer, eventually, free_port


async def test_a_broker_that_comes_later_is_waited_for(tmp_path: Path) -> None:
    late = PlainServer(tmp_path)
    connecting = asyncio.create_task(connect(BrokerSettings(url=late.url), name="early", timeout=60))
    try:
        with structlog.testing.capture_logs() as logs:
            await eventually(lambda: any(e["event"] == "broker_error" for e in logs), "a failure is logged")
            late.start()
            client = await connecting
        assert client.is_connected
        await client.close()
        assert [e["event"] for e in logs if e["log_level"] == "info"][-1] == "broker_connected"
    finally:
        connecting.cancel()
        late.kill()


async def test_a_broker_that_never_comes_is_an_error_in_time(capfd: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    url = f"nats://user:secret@127.0.0.1:{free_port()}"

    with structlog.testing.capture_logs() as logs, pytest.raises(BrokerError) as gone:
        await connect(BrokerSettings(url=url), name="lonely", timeout=0.7)

    assert gone.value.code == "broker_unreachable"
    assert time.monotonic() - began < 10
    assert len([e for e in logs if e["event"] == "broker_error"]) == 1
    assert "secret" not in f"{logs} {gone.value}"
    shown_on_terminal = capfd.readouterr()
    assert "Traceback" not in shown_on_terminal.out + shown_on_terminal.err


async def test_a_connection_comes_back_with_its_subscriptions_after_the_broker_was_killed(
    server: PlainServer, client: Client
) -> None:
    got: list[bytes] = []

    async def keep(message: Msg) -> None:
        got.append(message.data)

    await client.subscribe("news", cb=keep)
    await client.flush()
    with structlog.testing.capture_logs() as logs:
        server.kill()
        await eventually(lambda: not client.is_connected, "the loss is noticed")
        server.start()
        await eventually(lambda: client.is_connected, "the connection is back")
        await client.publish("news", b"again")
        await eventually(lambda: got == [b"again"], "the subscription works again")

    events = [e["event"] for e in logs]
    assert "broker_disconnected" in events
    assert "broker_reconnected" in events


async def test_one_of_several_servers_is_enough(server: PlainServer) -> None:
    settings = BrokerSettings(url=f"nats://127.0.0.1:{free_port()}, {server.url}")

    client = await connect(settings, name="choosy")

    assert client.is_connected
    await client.close()


async def test_a_connection_closed_for_good_is_told(server: PlainServer) -> None:
    told = asyncio.Event()

    async def closed() -> None:
        told.set()

    client = await connect(BrokerSettings(url=server.url), name="short", on_closed=closed)
    await client.close()

    await asyncio.wait_for(told.wait(), 10)


async def test_a_flush_returns_when_the_broker_has_what_was_sent_before(server: PlainServer, client: Client) -> None:
    other = await connect(BrokerSettings(url=server.url), name="other")
    for n in range(50):
        subscription = await client.subscribe(f"asked.{n}")
        await client.flush()
        await other.publish(f"asked.{n}", b"now")
        await other.flush()
        assert (await subscription.next_msg(timeout=10)).data == b"now"
    await other.close()


async def test_a_connection_lost_a_moment_ago_can_be_closed(server: PlainServer) -> None:
    for _ in range(3):
        client = await connect(BrokerSettings(url=server.url), name="short")
        server.kill()
        await asyncio.gather(client.publish("x", b"x" * 100_000), client.close())
        assert client.is_closed
        server.start()


async def test_a_seed_that_cannot_be_read_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(BrokerError, match=r"absent\.nk cannot be read") as unreadable:
        await connect(BrokerSettings(seed_file=tmp_path / "absent.nk"), name="x")

    assert unreadable.value.code == "credentials_unreadable"


def test_a_url_is_shown_without_its_password() -> None:
    assert shown("nats://u:p@a:4222, tls://t@b:4222,nats://c") == "nats://a:4222,tls://b:4222,nats://c"
