"""A password that a tenant chose is found nowhere: no file, no stream, no argument, no environment."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from uuid import uuid4

import psutil

from tests.support.databases import USER, Database, create_arguments
from tests.support.installation import Installation, Tenant

MARKER = "Zq7-marker-password-9vX"


async def test_a_marker_password_is_found_nowhere(made: Installation, tenant: Tenant) -> None:
    catalogue = await tenant.query("catalogue.get")
    reference = await tenant.secret(MARKER)
    created = []
    for datastore in catalogue["datastores"]:
        instance_id = str(uuid4())
        args = create_arguments(datastore["manager"], datastore["manager"], None, reference)
        created.append(
            (instance_id, await tenant.send("create_instance", instance_id, {**args, "root_password_ref": reference}))
        )
    for instance_id, decision in created:
        assert (await tenant.outcome(decision["command_id"]))["outcome"] == "done"
        instance = await tenant.query("instances.get", instance_id=instance_id)
        database = Database(instance, MARKER)
        await asyncio.to_thread(database.write, "key", "value")
        restart = await tenant.send("restart", instance_id)
        assert (await tenant.outcome(restart["command_id"]))["outcome"] == "done"
        assert await asyncio.to_thread(database.read, "key") == "value"
    await send_it_in_clear(tenant)
    assert search_files(made.state) == []
    assert search_files(made.log.parent) == []
    assert search_processes() == []
    for instance_id, _ in created:
        await tenant.send("delete_instance", instance_id)


async def send_it_in_clear(tenant: Tenant) -> None:
    """Commands that break the rule: refused, and overwritten where they lay."""
    args = create_arguments("clear", "postgresql", None, "vault:none")
    in_clear = {**args, "users": [{"name": USER, "password": MARKER}]}
    assert (await tenant.send("create_instance", uuid4(), in_clear))["code"] == "secret_in_clear"
    assert (await tenant.send("create_instance", uuid4(), {**args, "root_password": MARKER}))[
        "code"
    ] == "secret_in_clear"
    broken = f'{{"command_id": "{uuid4()}", "password": "{MARKER}", '.encode()
    assert (await tenant.send_body("create_instance", uuid4(), broken))["code"] == "malformed"
    strange = json.dumps({"command_id": str(uuid4()), "password": MARKER}).encode()
    assert (await tenant.send_body("create_instance", uuid4(), strange))["code"] == "malformed"
    # The erasing follows the answer; a command decided later says that it is done.
    assert (await tenant.send("restart", uuid4()))["code"] == "not_found"


def search_files(directory: Path) -> list[str]:
    needle = MARKER.encode()
    return [
        str(path)
        for path in directory.rglob("*")
        if path.is_file()
        and not path.is_symlink()
        and path.stat().st_size < 256 * 1024 * 1024
        and needle in path.read_bytes()
    ]


def search_processes() -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            if MARKER in json.dumps([process.cmdline(), process.environ()]):
                found.append(str(process))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found
