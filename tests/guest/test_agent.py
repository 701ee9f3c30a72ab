"""What the agent does for any datastore: answers, beats, ends. Redis stands for all, being the quickest."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import nkeys  # type: ignore[import-untyped]
import psutil
import pytest

from engine.guest.agent import Agent
from engine.guest.connection import read_credentials
from engine.guest.datastores.catalogue import available
from engine.guest.journal import Journal
from engine.guest.process import trim
from engine.messages import GuestState, GuestStatus
from tests.guest.conftest import NewServer
from tests.guest.server import PATIENCE, GuestServer
from tests.support.broker import Broker


@pytest.fixture
async def server(new_server: NewServer) -> GuestServer:
    """A server of Redis, its agent started."""
    made = new_server()
    await made.open()
    return made


async def test_a_new_server_reports_new_and_beats(server: GuestServer) -> None:
    report = await server.report()
    assert (report["status"], report["port"], report["volume"]) == ("NEW", None, None)
    await server.until("beats", lambda _: len(server.beats) > 2)
    first, second = server.beats[:2]
    assert first.boot == second.boot == report["boot"]
    assert second.sequence == first.sequence + 1
    assert (first.status, first.datastore, first.instance_id) == (GuestStatus.NEW, "redis", server.id)


async def test_each_change_of_status_beats_at_once(new_server: NewServer) -> None:
    server = new_server(beat_interval=3600.0)
    await server.open()
    await server.prepare()
    await server.do("stop", "stop-1")

    wanted = [GuestStatus.BUILDING, GuestStatus.HEALTHY, GuestStatus.SHUTDOWN]
    await server.until("all changes", lambda _: [b.status for b in server.beats if b.status != "NEW"] == wanted)


async def test_an_agent_started_again_is_told_by_its_boot(server: GuestServer) -> None:
    before = (await server.report())["boot"]
    server.kill_agent()
    server.start_agent()
    assert (await server.report())["boot"] != before


async def test_a_repeated_request_joins_the_running_one(new_server: NewServer) -> None:
    server = new_server(("postgresql", "16"))
    await server.open()
    first = await server.post("prepare", "prepare-1", **server.prepare_args())
    second = await server.post("prepare", "prepare-1", **server.prepare_args())
    assert first.state is second.state is GuestState.RUNNING
    assert (await server.report())["status"] in ("NEW", "BUILDING")

    await server.prepare("prepare-1")
    assert [(line["verb"], bool(line.get("reply"))) for line in server.journal()] == [
        ("prepare", False),
        ("prepare", True),
    ]


async def test_malformed_requests_are_refused_with_the_field(server: GuestServer) -> None:
    for verb, args, why in (
        ("explode", {}, "explode"),
        ("start", {"ram": "much", "overrides": {}}, "$.ram"),
        ("prepare", {"ram": 1}, "volume_size"),
    ):
        reply = await server.post(verb, f"key-{verb}", wait=5.0, **args)
        assert (reply.state, reply.transient) == (GuestState.FAILED, False)
        assert why in str(reply.error)


async def test_verbs_before_prepare_are_refused(server: GuestServer) -> None:
    for verb, args in (("start", {"ram": 256, "overrides": {}}), ("restart", {})):
        reply = await server.ask(verb, f"{verb}-1", **args)
        assert reply.state is GuestState.FAILED
        assert "not_prepared" in str(reply.error)
    await server.do("stop", "stop-1")


async def test_one_key_stands_for_one_verb(server: GuestServer) -> None:
    await server.do("stop", "key-1")
    reply = await server.ask("restart", "key-1")
    assert "key_reused" in str(reply.error)


async def test_on_sigterm_the_agent_ends_well_and_the_database_goes_on(server: GuestServer) -> None:
    port = await server.prepare()
    assert server.agent is not None
    database = server.database()
    server.agent.send_signal(signal.SIGTERM)
    assert server.agent.wait(30) == 0, server.log()
    assert database.is_running()
    server.tenant(port).put("color", "blue")


async def test_an_agent_told_to_end_in_the_middle_of_a_verb_ends_at_once(new_server: NewServer) -> None:
    server = new_server(("postgresql", "18"))
    await server.open()
    await server.post("prepare", "prepare-1", **server.prepare_args())
    assert server.agent is not None
    server.agent.send_signal(signal.SIGTERM)
    assert server.agent.wait(30) == 0, server.log()
    server.start_agent()
    port = await server.prepare("prepare-1")
    server.tenant(port).put("color", "blue")


async def test_an_agent_told_to_end_while_its_status_changes_ends_at_once(new_server: NewServer) -> None:
    for turns in range(-4, 5):  # of the loop, between the two: in one of them the news is there and not yet taken
        server = new_server(beat_interval=0.1)
        await server.listen()
        with Journal(server.directory) as journal:
            agent, stop = Agent(server.config, journal), asyncio.Event()
            serving = asyncio.create_task(agent.serve(read_credentials(server.config), stop))
            await server.until("beats", lambda _, beats=server.beats: bool(beats))  # type: ignore[misc]
            first, second = stop.set, partial(agent._status_changed, GuestStatus.FAILED)
            if turns < 0:
                first, second = second, first
            first()
            for _ in range(abs(turns)):
                await asyncio.sleep(0)
            second()
            await asyncio.wait({serving}, timeout=10)
            assert serving.done(), f"still serves; {turns} turns of the loop between the two"
            serving.result()


def test_a_log_that_grows_is_set_aside(tmp_path: Path) -> None:
    log = tmp_path / "database.log"
    with log.open("ab") as writer:
        writer.write(b"old" * 100)
        writer.flush()
        trim(log, limit=100)
        writer.write(b"new")
    assert log.read_bytes() == b"new"
    assert (tmp_path / "database.old.log").read_bytes() == b"old" * 100


async def test_a_second_agent_on_a_directory_gives_up(server: GuestServer) -> None:
    await server.report()
    first = server.agent
    assert first is not None
    server.start_agent()
    assert server.agent is not None
    assert server.agent.wait(60) == 1
    assert "agent_runs" in (server.root / "agent.log").read_text()
    server.agent = first
    assert psutil.pid_exists(first.pid)


async def test_where_the_usual_port_is_taken_another_is_used(new_server: NewServer) -> None:
    one = new_server()
    await one.open()
    two = new_server(address=one.config.address)
    await two.open()

    ports = [await server.prepare() for server in (one, two)]
    assert ports[0] == 6379
    assert ports[1] != ports[0]
    two.tenant(ports[1]).put("color", "blue")
    assert one.tenant(ports[0]).get("color") is None
    assert (await two.report())["port"] == ports[1]


async def test_an_agent_outlasts_its_broker(tmp_path: Path, new_server: NewServer) -> None:
    broker = Broker(tmp_path / "broker")
    broker.start()
    try:
        server = new_server(nats_url=broker.url)
        broker.kill()
        server.start_agent()
        await until_logged(server, "broker_")
        broker.start()
        await server.listen()
        await server.prepare()

        broker.kill()
        broker.start()
        server.beats.clear()
        await server.until("beats again", lambda _: bool(server.beats))
        assert (await server.report())["status"] == "HEALTHY"
    finally:
        await server.close()
        broker.stop()


async def until_logged(server: GuestServer, words: str) -> None:
    """Wait until the agent has said so."""
    deadline = time.monotonic() + PATIENCE
    while words not in (server.root / "agent.log").read_text():
        assert time.monotonic() < deadline, server.log()
        await asyncio.sleep(0.05)


async def test_an_agent_gets_by_with_its_own_subjects(tmp_path: Path, new_server: NewServer) -> None:
    raw_seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    public_key = nkeys.from_seed(raw_seed).public_key.decode()
    seed = tmp_path / "agent.nk"
    seed.write_bytes(raw_seed)
    seed.chmod(0o600)
    broker = Broker(tmp_path / "broker")
    broker.start()
    server = new_server(nats_url=broker.url, seed_file=seed)
    broker.stop()
    guarded = Broker(tmp_path / "guarded", _users(public_key, str(server.id)))
    guarded.port = broker.port
    guarded.start()
    try:
        await server.open()
        await server.prepare()
        await server.until("beats", lambda _: bool(server.beats))
        assert "ermissions" not in (server.root / "agent.log").read_text()
    finally:
        await server.close()
        guarded.stop()


def _users(public_key: str, instance: str) -> str:
    return f"""
    no_auth_user: engine
    authorization {{ users: [
      {{ user: engine, password: engine }}
      {{ nkey: {public_key}, permissions: {{
          publish: ["holdfast.v1.hb.{instance}"],
          subscribe: ["holdfast.v1.guest.{instance}.*", "_INBOX.guest.{instance}.>"],
          allow_responses: true }} }}
    ] }}
    """


async def test_what_the_agent_owns_is_the_unprivileged_users(server: GuestServer) -> None:
    await server.prepare()
    user = 65534 if os.geteuid() == 0 else os.geteuid()
    assert server.agent is not None
    assert set(psutil.Process(server.agent.pid).uids()) == {user}
    assert set(server.database().uids()) == {user}
    assert {path.stat().st_uid for path in (server.volume, server.directory, server.directory / "journal.jsonl")} == {
        user
    }


def test_this_machine_offers_every_datastore() -> None:
    assert {(d.manager, d.versions) for d in available()} >= {("postgresql", ("16", "18")), ("redis", ("6.2",))}
    assert all(d.parameters for d in available())


def test_a_missing_configuration_is_said(tmp_path: Path) -> None:
    missing = subprocess.run(
        [sys.executable, "-m", "engine.guest", str(tmp_path / "none.json")],
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert missing.returncode == 1
    assert b"none.json" in missing.stderr
