"""A broker that is not ours lets us in by whatever it asks for, keeps us over a restart, and says why it does not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import nats.errors
import pytest
from nats.aio.client import Client

from engine.broker import COMMAND_STREAM, BrokerError, BrokerSettings, connect, ensure_streams
from tests.support.broker import Broker, running_broker
from tests.support.broker_users import Key, Operator
from tests.support.certificates import Authority, tls_block


class Kind(msgspec.Struct, frozen=True):
    """What the broker is told, how we come to it, how a stranger does, and what that one hears."""

    config: str
    ours: dict[str, Any]
    strange: dict[str, Any]
    code: str
    reason: str
    scheme: str = "nats"


def private_authority(directory: Path) -> Kind:
    authority = Authority(directory)
    return Kind(
        tls_block(authority.issue("server")),
        {"tls_ca": authority.ca},
        {"tls_ca": Authority(directory, "another").ca},
        "broker_untrusted",
        "certificate verify failed",
        "tls",
    )


def client_certificate(directory: Path) -> Kind:
    authority = Authority(directory)
    client = authority.issue("client")
    return Kind(
        tls_block(authority.issue("server"), authority.ca),
        {"tls_ca": authority.ca, "tls_cert": client.cert, "tls_key": client.key},
        {"tls_ca": authority.ca},
        "broker_unreachable",
        "certificate",
        "tls",
    )


def nkey(directory: Path) -> Kind:
    ours = Key()
    return Kind(
        f"authorization {{ users: [ {{ nkey: {ours.public} }} ] }}",
        {"seed_file": ours.write(directory / "ours.nk")},
        {"seed_file": Key().write(directory / "strange.nk")},
        "broker_unauthorised",
        "Authorization Violation",
    )


def jwt(directory: Path) -> Kind:
    operator = Operator()
    return Kind(
        operator.config,
        {"creds_file": operator.credentials(directory / "ours.creds")},
        {"creds_file": Operator().credentials(directory / "strange.creds")},
        "broker_unauthorised",
        "Authorization Violation",
    )


def jwt_with_other_line_ends(directory: Path) -> Kind:
    operator = Operator()
    return msgspec.structs.replace(
        jwt(directory),
        config=operator.config,
        ours={"creds_file": operator.credentials(directory / "windows.creds", newline="\r\n")},
    )


def password(directory: Path) -> Kind:
    ours, strange = directory / "password", directory / "strange"
    ours.write_text("right-secret\n")
    strange.write_text("wrong-secret\n")
    return Kind(
        'authorization { users: [ { user: holdfast, password: "right-secret" } ] }',
        {"user": "holdfast", "password_file": ours},
        {"user": "holdfast", "password_file": strange},
        "broker_unauthorised",
        "Authorization Violation",
    )


def nkey_within_tls(directory: Path) -> Kind:
    encrypted, known = private_authority(directory), nkey(directory)
    return Kind(
        encrypted.config + known.config,
        encrypted.ours | known.ours,
        encrypted.ours | known.strange,
        known.code,
        known.reason,
        "tls",
    )


KINDS = [private_authority, client_certificate, nkey, jwt, jwt_with_other_line_ends, password, nkey_within_tls]


def settings(broker: Broker, kind: Kind, who: dict[str, Any]) -> BrokerSettings:
    return BrokerSettings(url=f"{kind.scheme}://127.0.0.1:{broker.port}", **who)


async def publish(client: Client) -> None:
    """Publish one command, again until the broker has it: under one id, so that it is kept once."""
    subject, once = f"holdfast.v1.cmd.acme.instance.{uuid4()}.restart", {"Nats-Msg-Id": uuid4().hex}
    deadline = time.monotonic() + 60
    while True:
        try:
            await client.jetstream().publish(subject, b"{}", headers=once, timeout=2)
        except nats.errors.Error:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        else:
            return


@pytest.mark.parametrize("made", KINDS)
async def test_whoever_the_broker_knows_publishes_before_and_after_its_restart(
    made: Callable[[Path], Kind], tmp_path: Path
) -> None:
    kind = made(tmp_path)
    with running_broker(tmp_path / "broker", kind.config) as broker:
        client = await connect(settings(broker, kind, kind.ours), name="ours")
        try:
            await ensure_streams(client.jetstream())
            await publish(client)
            await asyncio.to_thread(broker.stop)
            await asyncio.to_thread(broker.start)
            await publish(client)
            assert (await client.jetstream().stream_info(COMMAND_STREAM)).state.messages == 2
        finally:
            await client.close()


@pytest.mark.parametrize("made", KINDS)
async def test_whoever_it_does_not_know_hears_why(made: Callable[[Path], Kind], tmp_path: Path) -> None:
    kind = made(tmp_path)
    with running_broker(tmp_path / "broker", kind.config) as broker:
        with pytest.raises(BrokerError) as refused:
            await connect(settings(broker, kind, kind.strange), name="strange", timeout=2)

        assert (refused.value.code, kind.reason in refused.value.message) == (kind.code, True), refused.value
        assert "secret" not in refused.value.message
