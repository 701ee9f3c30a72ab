"""The embedded broker leaves the loopback only when told to, and then nothing of it goes in clear."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nats
import nats.errors
import pytest

from engine.broker import BrokerError, BrokerSettings, connect
from engine.client import Connection
from engine.credentials import inbox_prefix
from engine.embedded import EmbeddedBroker
from engine.listening import Listening
from engine.state import StateDirectory
from tests.support.certificates import Authority


@pytest.fixture
def listening(tmp_path: Path) -> Listening:
    authority = Authority(tmp_path / "ca")
    issued = authority.issue("broker")
    return Listening.on("localhost", issued.cert, issued.key, authority.ca)


@pytest.fixture
async def secure(state: StateDirectory, listening: Listening) -> AsyncIterator[EmbeddedBroker]:
    running = EmbeddedBroker(state, None, listening=listening)
    await running.start()
    try:
        yield running
    finally:
        await running.stop()


def test_it_is_on_the_loopback_unless_told() -> None:
    assert Listening.on(None, None, None, None).url(4222) == "nats://127.0.0.1:4222"


@pytest.mark.parametrize("host", ["192.0.2.1", "198.51.100.7"])
def test_it_does_not_talk_in_clear_over_a_network(host: str) -> None:
    with pytest.raises(BrokerError, match="broker_without_tls"):
        Listening.on(host, None, None, None)


@pytest.mark.parametrize("host", ["0.0.0.0", "no.such.name.invalid", ""])  # noqa: S104 - to be refused
def test_it_is_told_an_address_that_machines_can_use(host: str) -> None:
    if host:
        with pytest.raises(BrokerError, match="broker_address_unknown"):
            Listening.on(host, None, None, None)
    else:
        assert Listening.on(host, None, None, None).host == "127.0.0.1"


@pytest.mark.parametrize("missing", ["cert", "key", "ca"])
def test_tls_is_whole_or_refused(tmp_path: Path, missing: str) -> None:
    files: dict[str, Any] = {name: tmp_path / name for name in ("cert", "key", "ca")}
    for file in files.values():
        file.touch()
    with pytest.raises(BrokerError, match="broker_tls_incomplete"):
        Listening.on("192.0.2.1", **files | {missing: None})


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BrokerError, match=r"credentials_unreadable: .*gone\.pem"):
        Listening.on("192.0.2.1", tmp_path / "gone.pem", tmp_path / "gone.key", tmp_path / "ca.pem")


async def test_all_its_users_come_by_tls(secure: EmbeddedBroker) -> None:
    assert secure.url.startswith("tls://localhost:")
    for user in ("worker", "projector", "publisher", "enrol"):
        client = await connect(secure.settings(user), name=user, inbox_prefix=inbox_prefix(user), timeout=10)
        assert client._transport is not None
        assert client._transport._io_writer.get_extra_info("ssl_object") is not None  # type: ignore[attr-defined]
        await client.close()


async def test_nobody_is_let_in_by_clear_text(secure: EmbeddedBroker) -> None:
    seed = secure.users.seed("worker").read_text().strip()
    url = secure.url.replace("tls://", "nats://")
    reader, writer = await asyncio.open_connection("localhost", int(url.rpartition(":")[2]))
    assert b'"tls_required":true' in await reader.readline()
    writer.write(b'CONNECT {"verbose":false}\r\nPING\r\n')
    assert b"PONG" not in await reader.read()
    writer.close()
    with pytest.raises((nats.errors.Error, OSError)):
        await nats.connect(url, nkeys_seed_str=seed, allow_reconnect=False)


async def test_whoever_trusts_another_ca_stays_out(secure: EmbeddedBroker, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other").ca
    settings = BrokerSettings(url=secure.url, seed_file=secure.users.seed("enrol"), tls_ca=other)
    with pytest.raises(BrokerError, match="broker_untrusted"):
        await connect(settings, name="agent", timeout=2)


async def test_the_program_finds_it_by_the_state_directory(secure: EmbeddedBroker, state: StateDirectory) -> None:
    async with Connection.local(state, "operator") as connection:
        assert "error" not in await connection.request("$JS.API.INFO", {})


async def test_back_on_the_loopback_it_is_replaced(secure: EmbeddedBroker, state: StateDirectory) -> None:
    before = secure.pid
    await secure.disconnect()
    back = EmbeddedBroker(state, None)
    await back.start()
    try:
        assert back.pid != before
        async with Connection.local(state, "operator") as connection:
            assert "error" not in await connection.request("$JS.API.INFO", {})
    finally:
        await back.stop()
