"""A broker with TLS and users of its own: engine, guests and publishers come to it, each with their rights alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest

from engine.broker import BrokerSettings, connect
from engine.credentials import USERS, inbox_prefix
from engine.messages import guest_subject, heartbeat_subject
from tests.support.broker import Broker, running_broker
from tests.support.broker_users import Key
from tests.support.certificates import Authority, tls_block
from tests.support.databases import Database, create_arguments
from tests.support.installation import Installation, Tenant, installation


class Foreign(msgspec.Struct, frozen=True):
    """The broker, the directory with what its operator handed out, and the installation around it."""

    broker: Broker
    handed: Path
    made: Installation

    @property
    def url(self) -> str:
        return f"tls://127.0.0.1:{self.broker.port}"

    @property
    def publisher(self) -> BrokerSettings:
        return BrokerSettings(url=self.url, seed_file=self.handed / "publisher.nk", tls_ca=self.handed / "ca.pem")


def user(seed: Path, publish: Iterable[str], subscribe: Iterable[str], more: str = "") -> str:
    key = Key()
    key.write(seed)
    rights = f"publish: {{ allow: {json.dumps(list(publish))} }}, subscribe: {{ allow: {json.dumps(list(subscribe))} }}"
    return f"{{ nkey: {key.public}, permissions: {{ {rights} {more} }} }}"


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[Foreign]:
    worker, projector, publisher = USERS["worker"], USERS["projector"], USERS["publisher"]
    authority = Authority(tmp_path, "ca")
    users = (
        user(
            tmp_path / "engine.nk",
            {*worker.publish, *projector.publish},
            {*worker.subscribe, *projector.subscribe},
        ),
        user(
            tmp_path / "guest.nk",
            [heartbeat_subject("*")],
            [guest_subject("*", "*"), f"{inbox_prefix('guest-*')}.>"],
            ', allow_responses: { max: 1, expires: "2m" }',
        ),
        user(tmp_path / "publisher.nk", publisher.publish, publisher.subscribe),
    )
    config = tls_block(authority.issue("server"), more=f"authorization {{ users: [ {', '.join(users)} ] }}")
    with running_broker(tmp_path / "broker", config) as broker, installation() as made:
        # Relative paths: agents are started in another directory, and find the CA all the same.
        files = ["--seed", "engine.nk", "--tls-ca", "ca.pem", "--guest-seed", "guest.nk", "--durable-broker"]
        made.start(arguments=["--nats", f"tls://127.0.0.1:{broker.port}", *files], directory=tmp_path)
        yield Foreign(broker, tmp_path, made)


async def test_an_instance_lives_and_dies_by_a_foreign_broker_that_restarts(foreign: Foreign) -> None:
    client = await connect(foreign.publisher, name="tenant", inbox_prefix=inbox_prefix("publisher"))
    try:
        tenant, instance_id = Tenant(client), str(uuid4())
        reference = await tenant.secret("a-long-password")
        arguments = create_arguments("abroad", "redis", None, reference)
        created = await tenant.send("create_instance", instance_id, arguments)
        assert (await tenant.outcome(created["command_id"]))["outcome"] == "done"
        database = Database(await tenant.query("instances.get", instance_id=instance_id), "a-long-password")
        await asyncio.to_thread(database.write, "key", "value")

        await asyncio.to_thread(foreign.broker.kill)
        await asyncio.to_thread(foreign.broker.start)

        assert await asyncio.to_thread(database.read, "key") == "value"
        restarted = await tenant.send("restart", instance_id)
        assert (await tenant.outcome(restarted["command_id"]))["outcome"] == "done"
        listed = await asyncio.to_thread(
            foreign.made.holdfast, "list", "--json", "--nats", foreign.url,
            "--seed", str(foreign.publisher.seed_file), "--tls-ca", str(foreign.publisher.tls_ca),
        )  # fmt: skip
        assert [each["id"] for each in json.loads(listed.stdout)["items"]] == [instance_id], listed.stderr
        deleted = await tenant.send("delete_instance", instance_id)
        assert (await tenant.outcome(deleted["command_id"]))["outcome"] == "done"
    finally:
        await client.close()
    assert foreign.made.stop() == 0
    assert foreign.made.processes() == []
    assert list(foreign.made.state.glob("cloud/hosts/*/servers/*")) == []
    assert "Violation" not in (foreign.broker.directory / "log").read_text()
