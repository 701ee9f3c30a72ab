"""What guests do about replication: seed, follow, promote, detach; the same for each datastore, on the real ones."""

from __future__ import annotations

import asyncio
import time

import pytest

from engine.messages import GuestState
from tests.guest.conftest import NewServer
from tests.guest.replicas import ReplicationSet, Writer, can_write, tenant_of, until_same


@pytest.fixture
def members(new_server: NewServer, datastore: tuple[str, str]) -> ReplicationSet:
    """A set without members yet."""
    return ReplicationSet(new_server, datastore)


async def test_a_replica_seeded_under_load_has_all_and_takes_no_writes(members: ReplicationSet) -> None:
    source = await members.source()
    with Writer(await tenant_of(source)) as writer:
        await writer.until(20)
        replica = await members.replica(source)
        await writer.until(20)
    await members.catch_up(source, replica)

    tenant = await tenant_of(replica)
    assert writer.lost(tenant) == []
    assert not can_write(tenant)
    state = (await replica.until("link", lambda r: r["replication"]["link"]))["replication"]
    assert (state["role"], state["source"]) == ("replica", str(source.id))
    assert state["lag_bytes"] in (0, None), "Redis cannot say"
    await replica.do("restart", "restart-1")
    await source.do("restart", "restart-2")
    (await tenant_of(source)).put("after", "restart")
    await until_same(tenant, "after", "restart")
    assert not can_write(tenant)


async def test_a_planned_change_of_source_loses_nothing(members: ReplicationSet) -> None:
    source = await members.source()
    replica, third = await members.replica(source), await members.replica(source)
    with Writer(await tenant_of(source)) as writer:
        await writer.until(50)
        last = (await members.tell(source, "fence_source"))["position"]
        assert not can_write(await tenant_of(source))
        members.generation += 1
        await members.tell(replica, "promote_replica", position=last, patience=30)
        writer.turn_to(await tenant_of(replica))
        await writer.until(20)
        for other in (source, third):
            await members.admit(replica, other)
            assert (await members.follow(replica, other))["repaired"] == "none"
        await writer.until(20)
    await members.catch_up(replica, source, third)
    print(f"write gap {writer.gap:.3f} s")
    for server in (source, replica, third):
        assert writer.lost(await tenant_of(server)) == []
        assert can_write(await tenant_of(server)) is (server is replica)


async def test_a_detached_replica_stands_alone_and_leaves_nothing(members: ReplicationSet) -> None:
    source = await members.source()
    replica = await members.replica(source)
    await members.tell(replica, "detach_replica")
    await members.tell(source, "dismiss_replica", replica=str(replica.id))

    (await tenant_of(source)).put("color", "blue")
    (await tenant_of(replica)).put("color", "red")
    assert (await tenant_of(source)).get("color") == "blue"
    for server in (source, replica):
        await server.do("restart", "restart-1")
        assert can_write(await tenant_of(server))
        left = [
            str(file)
            for file in server.root.rglob("*")
            if file.is_file() and members.password(replica).encode() in file.read_bytes()
        ]
        assert left == []


async def test_a_synchronous_source_acknowledges_nothing_that_it_alone_has(members: ReplicationSet) -> None:
    source = await members.source()
    replica = await members.replica(source)
    if source.datastore == "redis":
        reply = await members.ask(source, "configure_source", synchronous=True)
        assert (reply.state, reply.transient) == (GuestState.FAILED, False)
        assert "unsupported" in str(reply.error)
        return
    await members.tell(source, "configure_source", synchronous=True)
    tenant = await tenant_of(source)
    await asyncio.to_thread(tenant.put, "color", "blue")
    await replica.do("stop", "stop-1")

    writing = asyncio.create_task(asyncio.to_thread(can_write, tenant))
    done, _ = await asyncio.wait({writing}, timeout=2.0)
    assert not done, "a write was acknowledged that no replica has"
    await replica.do("start", "start-1", ram=256, overrides={})
    assert await writing
    await until_same(await tenant_of(replica), "probe", "here")

    await replica.do("stop", "stop-2")
    writing = asyncio.create_task(
        asyncio.to_thread(can_write, tenant, "other")
    )  # what changes nothing waits for nobody
    await asyncio.wait({writing}, timeout=1.0)
    begun = time.monotonic()
    await members.tell(source, "fence_source")
    assert not await writing, "a write that waits for a replica when the source is fenced is not acknowledged"
    assert time.monotonic() - begun < 30


async def test_the_password_of_a_replica_lies_where_its_database_needs_it_and_nowhere_else(
    members: ReplicationSet,
) -> None:
    source = await members.source()
    replica = await members.replica(source)
    await members.switch(source, replica)
    await members.switch(replica, source)
    secrets = [members.password(member).encode() for member in (source, replica)]

    found = {}
    for server in (source, replica):
        for file in server.root.rglob("*"):
            if file.is_file() and any(secret in file.read_bytes() for secret in secrets):
                found[file.relative_to(server.root).as_posix()] = file
        for process in server.processes():
            words = " ".join(process.cmdline()) + str(process.environ())
            assert not any(secret.decode() in words for secret in secrets)
    expected = "volume/data/master.info" if source.datastore == "mariadb" else "volume/source.password"
    assert list(found) == [expected]
    assert found[expected].is_relative_to(replica.root)
    assert found[expected].stat().st_mode & 0o007 == 0


async def test_the_binary_log_of_mariadb_takes_a_part_of_the_volume_and_no_more(new_server: NewServer) -> None:
    members = ReplicationSet(new_server, ("mariadb", "10.11"))
    source = members.new_member(gibibyte=192 << 20)
    await source.open()
    await source.prepare()
    await members.admit(source, members.new_member())
    tenant = await tenant_of(source)
    for _ in range(40):
        await asyncio.to_thread(tenant.put, "large", "x" * (1 << 20))
    logs = source.volume / "data"
    deadline = time.monotonic() + 60
    while (taken := sum(file.stat().st_size for file in logs.glob("binlog.0*"))) > (28 << 20):
        assert time.monotonic() < deadline, taken
        await asyncio.sleep(0.1)
