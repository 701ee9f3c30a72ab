"""The machine of the lab's servers does what a machine does, told as nova-compute tells it; Redis stands for all."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import nats.errors
import psutil
import pytest
import redis.asyncio

from engine.clouds.local import processes
from engine.messages import GuestReply, GuestRequest, GuestState, guest_subject
from tests.enrolment.conftest import Site
from tests.enrolment.conftest import site as site  # noqa: PLC0414 - the fixture
from tests.guest.server import PASSWORD
from tests.openstack.machine.hook import write_hook
from tests.openstack.machine.machine import clear, reachable
from tests.support.config_drive import write_config_drive
from tests.support.eventually import eventually

ONE = uuid.UUID(int=41)
SERVER = str(uuid.UUID(int=42))
ADDRESS = "10.20.14.41"
PREPARE = {
    "ram": 256,
    "volume_size": 1,
    "databases": [],
    "users": [{"name": "app", "password": PASSWORD, "host": "%", "databases": []}],
    "root_password": None,
    "overrides": {},
}


class Hypervisor:
    """Two compute hosts and a volume, as far as a machine sees of them."""

    def __init__(self, site: Site, root: Path) -> None:
        self.site = site
        self.machines = root / "machines"
        self.volume = root / "volume"
        self.volume.touch()
        self._root = root
        self._user_data = b""
        self._hook = root / "hook"
        write_hook(self._hook, self.machines, site.broker.url)

    async def boot(self, host: str = "one", **more: Any) -> None:
        """A server on the host, with the user data that it was made with."""
        if not self._user_data:
            await self.site.enrolment.ensure(ONE)
            self._user_data = await self.site.enrolment.user_data(ONE, "redis", "6.2")
        write_config_drive(self._root / host / "config-drive", ONE, self._user_data, ADDRESS)
        await self("spawn", host, **more)

    def forget_user_data(self) -> None:
        """The next server is given user data of its own."""
        self._user_data = b""
        shutil.rmtree(self._root / "one")

    async def __call__(self, action: str, host: str = "one", **more: Any) -> None:
        """Run the hook as nova-compute does."""
        told = {"uuid": SERVER, "name": "s", "host": host, "dir": str(self._root / host), "vcpus": 1, **more}
        hook = await asyncio.create_subprocess_exec(self._hook, action, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        _, words = await asyncio.wait_for(hook.communicate(json.dumps(told).encode()), 60)
        assert hook.returncode == 0, words.decode()

    async def attach(self, host: str = "one") -> None:
        """The volume."""
        await self("attach_volume", host, mount_device="/dev/vdb", path=str(self.volume))

    async def ask(self, verb: str, key: str, **args: Any) -> dict[str, Any]:
        """What the agent answers; empty while there is none."""
        asked = msgspec.json.encode(GuestRequest(key=key, args=args, wait=5))
        try:
            answer = await self.site.worker.request(guest_subject(ONE, verb), asked, timeout=10)
        except (nats.errors.NoRespondersError, nats.errors.TimeoutError):
            return {}
        reply = msgspec.json.decode(answer.data, type=GuestReply)
        return {"done": True, **reply.facts} if reply.state is GuestState.DONE else {}

    async def healthy(self) -> dict[str, Any]:
        """The agent's report once the database answers."""

        async def look() -> dict[str, Any]:
            report = await self.ask("report", "look")
            return report if report.get("status") == "HEALTHY" else {}

        return await eventually(look, within=60)

    def running(self) -> list[psutil.Process]:
        """The machine's processes."""
        return processes.belonging(SERVER, [self.machines / "volumes"])

    def tenant(self) -> redis.asyncio.Redis:
        """A connection to the server's own address and the datastore's own port."""
        return redis.asyncio.Redis(host=reachable(ADDRESS), port=6379, username="app", password=PASSWORD)


@pytest.fixture
def root() -> Iterator[Path]:
    # Not below pytest's own directory, which is closed to other users.
    made = Path(tempfile.mkdtemp(prefix="holdfast-machine-"))
    made.chmod(0o711)
    yield made
    shutil.rmtree(made)


@pytest.fixture
async def hypervisor(site: Site, root: Path) -> AsyncIterator[Hypervisor]:
    made = Hypervisor(site, root)
    yield made
    for host in ("one", "two"):
        await made("destroy", host)


async def test_a_server_lives_as_a_machine_would(hypervisor: Hypervisor) -> None:
    await hypervisor.boot()
    assert hypervisor.running() == []  # nothing to run yet: the agent waits for its volume
    await hypervisor.attach()
    await eventually(lambda: hypervisor.ask("prepare", "prepare-1", **PREPARE), within=60)
    before = await hypervisor.healthy()
    assert before["port"] == 6379
    async with hypervisor.tenant() as tenant:
        await tenant.set("kept", "yes")

    await hypervisor("reboot", type="SOFT")
    rebooted = await hypervisor.healthy()
    assert rebooted["boot"] != before["boot"]

    await hypervisor("power_off")
    assert hypervisor.running() == []
    await hypervisor("power_on")
    await hypervisor.healthy()

    await hypervisor("power_off")
    await hypervisor.boot("two", disks=[{"mount_device": "/dev/vdb", "path": str(hypervisor.volume)}])
    await hypervisor.healthy()
    await hypervisor("destroy", "one")
    await hypervisor.healthy()
    async with hypervisor.tenant() as tenant:
        assert await tenant.get("kept") == b"yes"

    await hypervisor("destroy", "two")
    assert hypervisor.running() == []
    assert not (hypervisor.machines / SERVER).exists()
    assert list((hypervisor.machines / "volumes").iterdir())
    addresses = [each.address for found in psutil.net_if_addrs().values() for each in found]
    assert ADDRESS not in addresses


async def test_a_move_that_is_reverted_leaves_it_where_it_was(hypervisor: Hypervisor) -> None:
    await hypervisor.boot()
    await hypervisor.attach()
    await eventually(lambda: hypervisor.ask("prepare", "prepare-1", **PREPARE), within=60)
    await hypervisor("power_off")
    await hypervisor.boot("two")
    await hypervisor.healthy()
    await hypervisor("destroy", "two")
    assert hypervisor.running() == []
    await hypervisor("power_on", "one")
    await hypervisor.healthy()


async def test_a_server_that_is_rebuilt_finds_its_database_on_the_volume(hypervisor: Hypervisor) -> None:
    disks = [{"mount_device": "/dev/vdb", "path": str(hypervisor.volume)}]
    await hypervisor.boot()
    await hypervisor.attach()
    await eventually(lambda: hypervisor.ask("prepare", "prepare-1", **PREPARE), within=60)
    async with hypervisor.tenant() as tenant:
        await tenant.set("kept", "yes")
    await hypervisor("detach_volume", **disks[0])
    assert hypervisor.running() == []
    await hypervisor("destroy")
    hypervisor.forget_user_data()  # a rebuild gives it anew, with another token
    await hypervisor.boot(disks=disks)
    await hypervisor.healthy()
    async with hypervisor.tenant() as tenant:
        assert await tenant.get("kept") == b"yes"


async def test_an_agent_that_dies_is_started_again(hypervisor: Hypervisor) -> None:
    await hypervisor.boot()
    await hypervisor.attach()
    before = await eventually(lambda: hypervisor.ask("report", "look"))
    for process in hypervisor.running():
        if "engine.guest" in process.cmdline() and "init" not in process.cmdline():
            process.kill()

    async def other_boot() -> bool:
        report = await hypervisor.ask("report", "look")
        return bool(report) and report["boot"] != before["boot"]

    await eventually(other_boot)


async def test_what_is_repeated_changes_nothing(hypervisor: Hypervisor) -> None:
    await hypervisor.boot()
    await hypervisor.attach()
    await eventually(lambda: hypervisor.ask("report", "look"))
    running = {process.pid for process in hypervisor.running()}
    await hypervisor.attach()
    await hypervisor("power_on")  # as nova-compute says when it starts
    assert {process.pid for process in hypervisor.running()} == running


async def test_the_volumes_content_goes_with_the_volume(hypervisor: Hypervisor) -> None:
    await hypervisor.boot()
    await hypervisor.attach()
    await eventually(lambda: hypervisor.ask("report", "look"))
    hypervisor.volume.unlink()
    await hypervisor("destroy")
    assert list((hypervisor.machines / "volumes").iterdir()) == []


async def test_nothing_is_left_of_machines_that_are_cleared(hypervisor: Hypervisor) -> None:
    await hypervisor.boot()
    await hypervisor.attach()
    await eventually(lambda: hypervisor.ask("report", "look"))
    await asyncio.to_thread(clear, hypervisor.machines)
    assert hypervisor.running() == []
    assert not (hypervisor.machines / SERVER).exists()
    assert ADDRESS not in [each.address for found in psutil.net_if_addrs().values() for each in found]


async def test_servers_of_others_are_left_alone(hypervisor: Hypervisor) -> None:
    write_config_drive(hypervisor._root / "one" / "config-drive", ONE, b"#!/bin/sh\n", ADDRESS)
    await hypervisor("spawn")
    await hypervisor.attach()
    assert not (hypervisor.machines / SERVER).exists()
