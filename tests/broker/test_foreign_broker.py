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
        "broker_unauthorised",
        "wants a client certificate",
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


async def test_a_certificate_of_another_authority_is_refused(tmp_path: Path) -> None:
    kind, other = client_certificate(tmp_path), Authority(tmp_path, "another").issue("strange")
    strange = kind.ours | {"tls_cert": other.cert, "tls_key": other.key}
    with running_broker(tmp_path / "broker", kind.config) as broker:
        with pytest.raises(BrokerError) as refused:
            await connect(settings(broker, kind, strange), name="strange", timeout=1)

        assert refused.value.code in {"broker_unauthorised", "broker_unreachable"}  # it may hang up before it is heard


async def test_a_broker_that_leaves_tls_to_its_clients_is_spoken_to_in_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    config = tls_block(authority.issue("server"), more="allow_non_tls: true\ndebug: true")
    with running_broker(tmp_path / "broker", config) as broker:
        client = await connect(BrokerSettings(url=broker.url, tls_ca=authority.ca), name="ours")
        try:
            assert "TLS handshake complete" in (tmp_path / "broker" / "log").read_text()
        finally:
            await client.close()


@pytest.mark.parametrize("scheme", ["tls", "nats"])
async def test_a_broker_without_tls_is_told_nothing_when_tls_is_wanted(scheme: str, tmp_path: Path) -> None:
    ours: dict[str, Any] = {} if scheme == "tls" else {"tls_ca": Authority(tmp_path).ca}
    with running_broker(tmp_path / "broker") as broker:
        with pytest.raises(BrokerError) as refused:
            await connect(BrokerSettings(url=f"{scheme}://127.0.0.1:{broker.port}", **ours), name="ours", timeout=1)

        assert refused.value.code == "broker_untrusted"
        assert "secure connection not available" in refused.value.message


async def test_credentials_replaced_while_connected_are_used_at_the_next_connect(tmp_path: Path) -> None:
    operator, other = Operator(), Operator()
    file = operator.credentials(tmp_path / "ours.creds")
    directory = tmp_path / "broker"
    with running_broker(directory, operator.config) as broker:
        client = await connect(BrokerSettings(url=broker.url, creds_file=file), name="ours")
        try:
            await asyncio.to_thread(broker.stop)
            file.write_text("")  # as a writer that is interrupted leaves it
            broker.configure(other.config)
            await asyncio.to_thread(broker.start)
            other.credentials(file)
            await ensure_streams(client.jetstream())
            await publish(client)
        finally:
            await client.close()


@pytest.mark.parametrize(
    ("field", "wanted"),
    [("seed_file", "an NKey seed"), ("creds_file", "a JWT and its seed"), ("tls_ca", "a certificate of a CA")],
)
async def test_a_file_that_holds_something_else_is_said_at_once(field: str, wanted: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("something else\n")

    with pytest.raises(BrokerError, match=f"{file} does not hold {wanted}") as wrong:
        await connect(msgspec.structs.replace(BrokerSettings(), **{field: file}), name="x")

    assert wrong.value.code == "credentials_unreadable"


async def test_a_key_with_a_passphrase_is_said_at_once(tmp_path: Path) -> None:
    locked = Authority(tmp_path).issue("client", passphrase="open sesame")

    with pytest.raises(BrokerError, match=f"{locked.key} does not hold .* without a passphrase"):
        await connect(BrokerSettings(tls_cert=locked.cert, tls_key=locked.key), name="x")
