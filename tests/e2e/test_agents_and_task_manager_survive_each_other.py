"""The database serves while the task manager is dead, the task manager while agents are, and both find back."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any
from uuid import uuid4

import psutil

from tests.support.databases import Database, create_arguments
from tests.support.installation import Installation, Tenant


async def created(tenant: Tenant, name: str) -> tuple[dict[str, Any], Database]:
    reference = await tenant.secret("a-long-password")
    instance_id = str(uuid4())
    decision = await tenant.send("create_instance", instance_id, create_arguments(name, "postgresql", None, reference))
    assert (await tenant.outcome(decision["command_id"]))["outcome"] == "done"
    instance = await tenant.query("instances.get", instance_id=instance_id)
    database = Database(instance, "a-long-password")
    await asyncio.to_thread(database.write, "key", name)
    return instance, database


def of_server(server_id: str, word: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("HOLDFAST_SERVER") == server_id and word in " ".join(process.cmdline()):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


async def health(tenant: Tenant, instance_id: str, wanted: str, within: float = 60) -> None:
    deadline = time.monotonic() + within
    while (found := (await tenant.query("instances.get", instance_id=instance_id))["health"]) != wanted:
        assert time.monotonic() < deadline, f"health is {found}, not {wanted}"
        await asyncio.sleep(0.2)


async def test_the_database_serves_while_the_task_manager_is_dead(made: Installation, tenant: Tenant) -> None:
    instance, database = await created(tenant, "outlives")
    made.kill()
    await asyncio.to_thread(database.write, "key", "written meanwhile")
    command_id = str(uuid4())
    body = {"command_id": command_id, "args": {}, "actor": "alice", "issued_at": "2026-01-31T12:00:00Z"}
    await tenant.publish("restart", instance["id"], json.dumps(body).encode())
    made.start()
    assert (await tenant.outcome(command_id))["outcome"] == "done"
    assert await asyncio.to_thread(database.read, "key") == "written meanwhile"
    await tenant.send("delete_instance", instance["id"])


async def test_a_killed_agent_is_started_again_and_keeps_its_database(made: Installation, tenant: Tenant) -> None:
    instance, database = await created(tenant, "agent-dies")
    await health(tenant, instance["id"], "HEALTHY")
    for agent in of_server(instance["server_id"], "engine.guest"):
        agent.kill()
    assert await asyncio.to_thread(database.read, "key") == "agent-dies"
    decision = await tenant.send("restart", instance["id"])
    assert (await tenant.outcome(decision["command_id"]))["outcome"] == "done"
    assert await asyncio.to_thread(database.read, "key") == "agent-dies"
    await tenant.send("delete_instance", instance["id"])


async def test_a_killed_database_is_seen_and_comes_back(made: Installation, tenant: Tenant) -> None:
    instance, database = await created(tenant, "db-dies")
    await health(tenant, instance["id"], "HEALTHY")
    for process in of_server(instance["server_id"], "postgres"):
        if "engine.guest" not in " ".join(process.cmdline()):
            process.kill()
    await asyncio.to_thread(database.write, "key", "after the crash")
    await health(tenant, instance["id"], "HEALTHY")
    assert (await tenant.query("instances.get", instance_id=instance["id"]))["status"] == "ACTIVE"
    await tenant.send("delete_instance", instance["id"])


async def test_silence_becomes_suspect_and_down_and_ends(made: Installation, tenant: Tenant) -> None:
    instance, _ = await created(tenant, "falls-silent")
    await health(tenant, instance["id"], "HEALTHY")
    agents = of_server(instance["server_id"], "engine.guest")
    for agent in agents:
        agent.suspend()
    await health(tenant, instance["id"], "SUSPECT")
    await health(tenant, instance["id"], "DOWN")
    for agent in agents:
        agent.resume()
    await health(tenant, instance["id"], "HEALTHY")
    await tenant.send("delete_instance", instance["id"])


async def test_ten_instances_live_side_by_side(made: Installation, tenant: Tenant) -> None:
    catalogue = await tenant.query("catalogue.get")
    offered = [(d["manager"], v) for d in catalogue["datastores"] for v in d["versions"]]
    reference = await tenant.secret("a-long-password")
    decisions = {}
    for ordinal in range(10):
        datastore, version = offered[ordinal % len(offered)]
        instance_id = str(uuid4())
        args = create_arguments(f"ten-{ordinal}", datastore, version, reference)
        decisions[instance_id] = await tenant.send("create_instance", instance_id, args)
    addresses = set()
    for ordinal, (instance_id, decision) in enumerate(decisions.items()):
        assert (await tenant.outcome(decision["command_id"]))["outcome"] == "done"
        instance = await tenant.query("instances.get", instance_id=instance_id)
        database = Database(instance, "a-long-password")
        await asyncio.to_thread(database.write, "key", str(ordinal))
        assert await asyncio.to_thread(database.read, "key") == str(ordinal)
        addresses.add(instance["address"])
    assert len(addresses) == 10
    for instance_id in decisions:
        decisions[instance_id] = await tenant.send("delete_instance", instance_id)
    for decision in decisions.values():
        assert (await tenant.outcome(decision["command_id"]))["outcome"] == "done"
