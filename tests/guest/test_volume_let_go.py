"""A guest lets go of its volume when told to, and has it again: with real disks, which only root can have."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from engine.guest.datastores.base import DatastoreError
from engine.guest.mount import Mount
from engine.messages import GuestState
from tests.guest.conftest import NewServer
from tests.guest.server import PROJECT, GuestServer
from tests.support.eventually import eventually


class RootsPart:
    """What an image's units do: a disk for the server's volume, and root's program, run when the agent asks."""

    def __init__(self, server: GuestServer, requests: Path) -> None:
        self.requests, self._image, self._volume = requests, server.root / "image.json", server.volume
        self._file = server.root / "disk"
        self._file.touch()
        os.truncate(self._file, 256 << 20)
        found = subprocess.run(["losetup", "--find", "--show", self._file], check=True, capture_output=True, text=True)
        self._device = found.stdout.strip()
        told = {"mount": str(server.volume), "device": self._device, "user": "nobody", "requests": str(requests)}
        self._image.write_text(json.dumps(told))
        self.listens = True
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._listen)
        self.run()
        self._thread.start()

    def run(self, *options: str) -> None:
        """As its units run it."""
        program = [sys.executable, "-m", "engine.guest.disk", "--image", str(self._image), *options]
        subprocess.run(program, cwd=PROJECT, check=False, timeout=60)

    def attach_anew(self) -> None:
        """The disk is taken from the machine, and comes again under the same name."""
        subprocess.run(["losetup", "--detach", self._device], check=True)
        subprocess.run(["losetup", self._device, self._file], check=True)
        self.run()  # as udev has it run

    def _listen(self) -> None:
        while not self._over.wait(0.02):
            for name, options in (("release", ["--release"]), ("mount", [])):
                if self.listens and (self.requests / name).exists():
                    self.run(*options)

    def close(self) -> None:
        """There is no disk any more."""
        self._over.set()
        self._thread.join()
        if self._volume.is_mount():
            subprocess.run(["umount", self._volume], check=True)
        subprocess.run(["losetup", "--detach", self._device], check=True)


def _requests(run: Path) -> Path:
    """The agent's own directory in it: the agent is another user."""
    run.chmod(0o711)
    made = run / "holdfast"
    made.mkdir()
    os.chown(made, 65534, 65534)
    return made


@pytest.fixture
async def machine(new_server: NewServer) -> AsyncIterator[tuple[GuestServer, RootsPart]]:
    """A server with a database on a disk of its own."""
    with tempfile.TemporaryDirectory(prefix="holdfast-run-") as run:
        requests = _requests(Path(run))
        server = new_server(requests=requests, gibibyte=256 << 20)
        root = RootsPart(server, requests)
        try:
            await server.open()
            await server.prepare()
            yield server, root
        finally:
            server.kill_agent()
            for process in server.processes():
                process.kill()
                process.wait(20)
            root.close()


async def test_the_volume_is_let_go_of_and_mounted_again_before_the_database_starts(
    machine: tuple[GuestServer, RootsPart],
) -> None:
    server, _ = machine
    before = (await server.report())["port"]
    assert await server.do("stop", "stop-1", release_volume=True) == {"volume_released": True}
    assert not server.volume.is_mount()
    assert (await server.report())["status"] == "SHUTDOWN"
    assert await server.do("stop", "stop-2", release_volume=True) == {"volume_released": True}
    await server.do("start", "start-1", ram=256, overrides={})
    assert server.volume.is_mount()
    assert (await server.report())["port"] == before


async def test_a_disk_attached_anew_is_mounted_by_itself(machine: tuple[GuestServer, RootsPart]) -> None:
    server, root = machine
    await server.do("stop", "stop-1", release_volume=True)
    await asyncio.to_thread(root.run)  # some other disk has changed
    assert not server.volume.is_mount()
    await asyncio.to_thread(root.attach_anew)
    assert server.volume.is_mount()
    await server.do("start", "start-1", ram=256, overrides={})


async def test_an_agent_that_dies_on_the_way_lets_go_of_it_when_asked_again(
    machine: tuple[GuestServer, RootsPart],
) -> None:
    server, root = machine
    root.listens = False
    reply = await server.post("stop", "stop-1", release_volume=True)
    assert reply.state is GuestState.RUNNING

    async def asked() -> bool:
        return (root.requests / "release").exists()

    await eventually(asked)
    server.kill_agent()
    root.listens = True

    async def gone() -> bool:
        return not server.volume.is_mount()

    await eventually(gone)
    server.start_agent()  # which has no volume
    assert (await server.report())["status"] == "SHUTDOWN"
    assert await server.do("stop", "stop-1", release_volume=True) == {"volume_released": True}
    await server.do("start", "start-1", ram=256, overrides={})


async def test_who_holds_it_is_named_and_it_goes_when_they_have_gone(machine: tuple[GuestServer, RootsPart]) -> None:
    server, _ = machine
    with (server.volume / "open").open("w"):
        reply = await server.ask("stop", "stop-1", release_volume=True)
        assert (reply.state, reply.transient) == (GuestState.FAILED, True)
        assert f"(process {os.getpid()})" in str(reply.error)
        assert str(reply.error).startswith("volume_held: ")
    await server.do("stop", "stop-1", release_volume=True)
    assert not server.volume.is_mount()


async def test_nothing_is_begun_without_the_volume(machine: tuple[GuestServer, RootsPart], tmp_path: Path) -> None:
    server, root = machine
    await server.do("stop", "stop-1", release_volume=True)
    root.listens = False
    away = Mount(volume=server.volume, requests=root.requests)
    with pytest.raises(DatastoreError, match="volume_away: ") as refused:
        await asyncio.to_thread(away.take, 0.2)
    assert refused.value.transient
    assert list(server.volume.iterdir()) == []


async def test_without_roots_part_it_is_said_that_nothing_was_done(machine: tuple[GuestServer, RootsPart]) -> None:
    server, root = machine
    root.listens = False
    held = Mount(volume=server.volume, requests=root.requests)
    with pytest.raises(DatastoreError, match=r"volume_held: .*did nothing"):
        await asyncio.to_thread(held.let_go, 0.2)
    assert not (root.requests / "release").exists()
