"""A source that is fenced, was away, or was replaced takes no writes; and gets on again as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import signal

import psutil
import psycopg
import pytest

from engine.messages import GuestState
from tests.guest.conftest import NewServer
from tests.guest.replicas import ReplicationSet, can_write, tenant_of, until_same
from tests.guest.server import ROOT_PASSWORD, GuestServer
from tests.guest.tenants import RedisTenant

LIMIT = 1.5  # seconds that a source's agent may be away


@pytest.fixture
def members(new_server: NewServer, datastore: tuple[str, str]) -> ReplicationSet:
    """A set without members yet."""
    return ReplicationSet(new_server, datastore)


async def kill_all(server: GuestServer) -> None:
    """Agent and database at once."""
    database = server.database()
    server.kill_agent()
    for process in server.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    await asyncio.to_thread(psutil.wait_procs, [database], timeout=30)


async def pass_the_limit() -> None:
    """Let more time go by than a source's agent may be away."""
    await asyncio.sleep(LIMIT + 0.5)  # it is the time itself that is waited for


def is_refused_to_all(server: GuestServer, port: int) -> bool:
    """Whether neither tenants nor root can write, by whatever means."""
    root = {"postgresql": "postgres", "mariadb": "root", "redis": "default"}[server.datastore]
    tenants = [server.tenant(port), server.tenant(port, root, ROOT_PASSWORD)]
    if any(can_write(tenant) for tenant in tenants):
        return False
    return server.datastore != "postgresql" or not can_force(server, port)


def can_force(server: GuestServer, port: int) -> bool:
    """Whether root writes in a transaction that asks for writing by name."""
    try:
        with psycopg.connect(
            host=server.config.address, port=port, dbname="shop", sslmode="disable", user="postgres",
            password=ROOT_PASSWORD, autocommit=True,
        ) as connection:  # fmt: skip
            connection.execute("BEGIN READ WRITE; CREATE TABLE forced (a int); COMMIT")
    except psycopg.Error:
        return False
    return True


async def test_a_fence_holds_for_all_and_over_any_death_until_it_is_taken_away(members: ReplicationSet) -> None:
    source = await members.source()
    await members.tell(source, "configure_source")
    (await tenant_of(source)).put("color", "blue")
    position = (await members.tell(source, "fence_source"))["position"]
    port = (await source.report())["port"]
    assert is_refused_to_all(source, port)

    await kill_all(source)
    source.start_agent()
    await source.until_status("HEALTHY")
    assert is_refused_to_all(source, port)
    assert (await source.report())["replication"]["fenced"] is True
    if source.datastore != "redis":  # whose history has another id after each start
        assert (await members.tell(source, "await_position", position=position))["position"] == position

    await members.tell(source, "unfence_source")
    assert can_write(await tenant_of(source))
    await source.do("restart", "restart-1")
    assert can_write(await tenant_of(source))
    assert (await source.report())["replication"]["fenced"] is False


async def test_scripts_cannot_write_past_a_fence(new_server: NewServer) -> None:
    members = ReplicationSet(new_server, ("redis", "6.2"))
    source = await members.source()
    tenant = await tenant_of(source)
    assert isinstance(tenant, RedisTenant)
    assert tenant.run("return redis.call('set', 'color', 'blue')") == "OK"
    await members.tell(source, "fence_source")
    with pytest.raises(Exception, match=r"invalid username-password|WRONGPASS|disabled"):
        tenant.run("return redis.call('set', 'color', 'red')")


async def test_a_verb_of_a_generation_that_is_over_is_refused(members: ReplicationSet) -> None:
    source = await members.source()
    members.generation = 5
    await members.tell(source, "configure_source")
    members.generation = 4
    for verb in ("fence_source", "unfence_source", "configure_source", "promote_replica", "detach_replica"):
        reply = await members.ask(source, verb)
        assert (reply.state, reply.transient) == (GuestState.FAILED, False)
        assert "generation_stale" in str(reply.error)
    assert can_write(await tenant_of(source))


async def test_a_source_that_was_away_for_too_long_waits_to_be_told(members: ReplicationSet) -> None:
    source = await members.source()
    await members.tell(source, "configure_source", absence_limit=LIMIT)

    source.beats.clear()
    source.database().kill()  # alone: its agent was there
    await source.until("CRASHED", lambda _: any(beat.status == "CRASHED" for beat in source.beats))
    await source.until_status("HEALTHY")
    (await tenant_of(source)).put("color", "blue")

    await kill_all(source)
    await pass_the_limit()
    source.start_agent()
    await source.until_status("HEALTHY")
    report = await source.report()
    assert (report["replication"]["fenced"], report["replication"]["absent"]) == (True, True)
    assert is_refused_to_all(source, report["port"])
    await members.tell(source, "unfence_source")
    assert can_write(await tenant_of(source))

    stopped = source.processes()
    for process in stopped:
        process.send_signal(signal.SIGSTOP)
    await pass_the_limit()
    for process in stopped:
        process.send_signal(signal.SIGCONT)
    await source.until("absence", lambda report: report["replication"]["absent"])
    await source.until_status("HEALTHY")
    assert is_refused_to_all(source, report["port"])


async def test_an_old_source_that_has_more_is_repaired_into_a_replica(members: ReplicationSet) -> None:
    source = await members.source()
    replica = await members.replica(source)
    (await tenant_of(source)).put("both", "have this")
    await members.catch_up(source, replica)
    await replica.do("stop", "stop-1")
    (await tenant_of(source)).put("only", "the old source")
    await kill_all(source)

    await replica.do("start", "start-1", ram=256, overrides={})
    members.generation = 2
    await members.tell(replica, "promote_replica")
    (await tenant_of(replica)).put("new", "source")
    source.start_agent()
    await members.tell(source, "fence_source")
    assert is_refused_to_all(source, (await source.report())["port"])

    await members.admit(replica, source)
    args = await members.follow_args(replica, source)
    reply = await source.ask("follow_source", "follow-none", **args)
    assert "diverged" in str(reply.error), reply
    repair = "rewind" if source.datastore == "postgresql" else "seed"
    done = await source.do("follow_source", "follow-repair", **{**args, "repair": repair})
    assert done["repaired"] == repair
    tenant = await tenant_of(source)
    await until_same(tenant, "new", "source")
    assert (tenant.get("both"), tenant.get("only")) == ("have this", None)
    assert not can_write(tenant)
    await members.switch(replica, source)  # and it can be the source again
    assert can_write(await tenant_of(source))
    assert not can_write(await tenant_of(replica))


async def test_whatever_is_killed_in_the_middle_of_a_verb_it_is_done_when_asked_again(members: ReplicationSet) -> None:
    source = await members.source()
    (await tenant_of(source)).put("color", "blue")
    replica = await members.replica(source)
    third = members.new_member()
    await third.open()
    await members.interrupted(source, "admit_replica", **members.admit_args(third))
    await members.interrupted(third, "seed_replica", **await members.seed_args(source, third))
    await until_same(await tenant_of(third), "color", "blue")

    last = (await members.interrupted(source, "fence_source", **members.common()))["position"]
    assert is_refused_to_all(source, (await source.report())["port"])
    members.generation += 1
    wait = {} if source.datastore == "redis" else {"position": last, "patience": 30}
    await members.interrupted(replica, "promote_replica", **members.common(), **wait)
    assert can_write(await tenant_of(replica))
    for other in (source, third):
        await members.interrupted(replica, "admit_replica", **members.admit_args(other))
        repair = "seed" if source.datastore == "redis" else "none"
        await members.interrupted(other, "follow_source", **await members.follow_args(replica, other, repair))
        (await tenant_of(replica)).put("now", str(other.id))
        await until_same(await tenant_of(other), "now", str(other.id))
        assert not can_write(await tenant_of(other))
    await members.interrupted(third, "detach_replica", **members.common())
    await members.interrupted(replica, "dismiss_replica", **members.common(), replica=str(third.id))
    assert can_write(await tenant_of(third))
    assert (await tenant_of(third)).get("color") == "blue"
