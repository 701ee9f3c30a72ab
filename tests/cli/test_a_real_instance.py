"""The program against everything as it is installed: a real engine, a real database, the database's own client."""

from __future__ import annotations

import json
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import psutil

from engine.client import Context, TaskManager
from engine.client.connection import Connection
from engine.client.sync import SyncTaskManager
from engine.state import StateDirectory
from tests.support.installation import HOLDFAST, PROJECT, Installation, installation

CREATE = (
    "create", "orders", "--datastore", "postgresql", "--flavor", "small", "--database", "shop", "--user", "app:shop",
    "--generate", "--json",
)  # fmt: skip


def test_an_instance_is_made_used_and_removed() -> None:
    with installation() as site:
        site.start()
        planned = site.holdfast(*CREATE, "--dry-run")
        assert [step["state"] for step in json.loads(planned.stdout)["plan"]][:2] == ["build_quota", "build_port"]

        created = site.holdfast(*CREATE)
        assert created.returncode == 0, created.stderr
        document = json.loads(created.stdout)
        assert (document["operation"]["outcome"], document["instance"]["status"]) == ("done", "ACTIVE")
        instance_id, operation_id = document["instance"]["id"], document["operation"]["id"]

        assert _sql(site, "SELECT 6 * 7", document["passwords"]["app"]) == "42"
        assert "orders" in _completed(site, "restart", "or")
        assert site.holdfast("operation", "watch", operation_id).stdout.startswith("create_instance done after")
        assert "The port " in site.holdfast("history", "orders").stdout
        assert _resized_by_a_script(site, instance_id) == 2
        assert f"\t{instance_id}\tACTIVE\t" in site.holdfast("list").stdout

        looked = site.holdfast("doctor")
        assert looked.returncode == 0, looked.stdout + looked.stderr
        _cancelled(site)

        again = site.holdfast("resize-volume", "orders", "1")
        assert (again.returncode, again.stdout) == (3, "")
        assert "invalid_argument" in again.stderr
        deleted = site.holdfast("delete", "orders")
        assert (deleted.returncode, "orders is DELETED" in deleted.stdout) == (0, True)
        assert site.holdfast("show", "orders").returncode == 4
        assert json.loads(site.holdfast("show", instance_id, "--json").stdout)["status"] == "DELETED"
        assert site.stop() == 0
        assert site.holdfast("list", "--timeout", "2").returncode == 6


def _cancelled(site: Installation) -> None:
    """A create that is not wanted any more is undone while it runs: its guest agent is held, so that it cannot end."""
    known = _agents(site)
    arguments = ("create", "mistake", "--datastore", "postgresql", "--flavor", "small", "--no-wait")
    with ThreadPoolExecutor(1) as beside:
        begun = beside.submit(site.holdfast, *arguments)
        deadline = time.monotonic() + 60
        while not (agents := _agents(site) - known):
            assert time.monotonic() < deadline, site.said()
        for agent in agents:
            agent.suspend()
        operation_id = begun.result().stdout.strip()
    cancelled = site.holdfast("operation", "cancel", operation_id, "--reason", "by mistake", "--json")
    assert cancelled.returncode == 0, cancelled.stdout + cancelled.stderr
    document = json.loads(cancelled.stdout)
    assert (document["operation"]["outcome"], document["instance"]["status"]) == ("cancelled", "FAILED")
    again = site.holdfast("operation", "cancel", operation_id)
    assert (again.returncode, "none runs" in again.stderr) == (4, True)


def _agents(site: Installation) -> set[psutil.Process]:
    found = set()
    for process in site.processes():
        with suppress(psutil.NoSuchProcess):  # the program's own processes come and go
            if "engine.guest" in process.cmdline():
                found.add(process)
    return found


def _sql(site: Installation, statement: str, password: str) -> str:
    done = subprocess.run(
        [HOLDFAST, "--state", site.state, "connect", "orders", "--user", "app", "--database", "shop"],
        input=f"\\pset tuples_only\n\\pset format unaligned\n{statement};\n",
        env={**os.environ, "HOLDFAST_PROJECT": PROJECT, "PGPASSWORD": password},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.splitlines()[-1]


def _completed(site: Installation, *words: str) -> list[str]:
    """What the shell is offered for the last word."""
    return site.holdfast(
        _HOLDFAST_COMPLETE="complete_bash",
        COMP_WORDS=f"holdfast --state {site.state} --project {PROJECT} {' '.join(words)}",
        COMP_CWORD=str(4 + len(words)),
    ).stdout.split()


def _resized_by_a_script(site: Installation, instance_id: str) -> int:
    """Another publisher, by the client for scripts."""
    connection = Connection.local(StateDirectory(site.state), timeout=60)
    with SyncTaskManager(Context(project=PROJECT, actor="script"), TaskManager, broker=connection) as manager:
        steps = [step.state for step in manager.resize_volume(instance_id, 2).progress(120)]
        assert steps[-1] is None
        return int(manager.get("instances", instance_id=instance_id)["volume_size"])
