"""The real agent, started on a machine that has a config drive and an empty volume, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import nats.errors
import psutil
import pytest

from engine import nkey
from engine.enrolled import Guests
from engine.guest.user_data import UserDataError, read_drive, render
from engine.messages import GuestReply, GuestRequest, guest_subject
from tests.enrolment.conftest import Site, request
from tests.guest.server import NOBODY, PROJECT
from tests.support.config_drive import write_config_drive
from tests.support.eventually import eventually

ONE = uuid.UUID(int=31)


class PlainMachine:
    """A directory for the config drive, one for the volume, and the agent."""

    def __init__(self) -> None:
        # Not below pytest's own directory, which is closed to other users.
        self.root = Path(tempfile.mkdtemp(prefix="holdfast-machine-"))
        self.root.chmod(0o711)
        self.volume = self.root / "volume"
        self.volume.mkdir()
        self.home = self.root / "home"
        self.agent: subprocess.Popen[bytes] | None = None

    def give(self, user_data: bytes) -> None:
        """A config drive with this user data, in place of another."""
        shutil.rmtree(self.root / "drive", ignore_errors=True)
        write_config_drive(self.root / "drive", ONE, user_data, "127.0.0.1")
        told = {"mount": str(self.volume), "home": str(self.home), "requests": None}
        (self.root / "image.json").write_text(json.dumps(told))

    def start(self) -> None:
        """Boot."""
        drive, image = self.root / "drive", self.root / "image.json"
        argv = [sys.executable, "-m", "engine.guest", "--config-drive", str(drive), "--image", str(image)]
        if os.geteuid() == 0:
            argv += ["--run-as", NOBODY]
        with (self.root / "agent.log").open("ab") as log:
            self.agent = subprocess.Popen(argv, cwd=PROJECT, stdout=log, stderr=log)

    def stop(self) -> None:
        """End the agent."""
        if self.agent is not None:
            self.agent.terminate()
            self.agent.wait(20)
            self.agent = None

    def log(self) -> str:
        """What the agent said."""
        return (self.root / "agent.log").read_text()


@pytest.fixture
def machine() -> Iterator[PlainMachine]:
    made = PlainMachine()
    yield made
    made.stop()
    shutil.rmtree(made.root)


async def _report(site: Site) -> dict[str, Any]:
    """Empty while no agent answers."""
    asked = msgspec.json.encode(GuestRequest(key="look"))
    try:
        answer = await site.worker.request(guest_subject(ONE, "report"), asked, timeout=2)
    except (nats.errors.NoRespondersError, nats.errors.TimeoutError):
        return {}
    return msgspec.json.decode(answer.data, type=GuestReply).facts


async def test_it_comes_by_a_key_and_answers(site: Site, machine: PlainMachine) -> None:
    await site.enrolment.ensure(ONE)
    machine.give(await site.enrolment.user_data(ONE, "redis", "6.2"))
    machine.start()
    report = await eventually(lambda: _report(site))
    assert report["status"] == "NEW"
    guest = await Guests(site.worker).get(ONE)
    seed = (machine.home / "agent.nk").read_text()
    assert guest is not None
    assert guest.key == nkey.public_key(seed)


@pytest.mark.parametrize("anew", [False, True])
async def test_it_keeps_its_key_over_a_boot_and_on_a_server_made_anew(
    site: Site, machine: PlainMachine, anew: bool
) -> None:
    await site.enrolment.ensure(ONE)
    machine.give(await site.enrolment.user_data(ONE, "redis", "6.2"))
    machine.start()
    before = await eventually(lambda: _report(site))
    known = await Guests(site.worker).get(ONE)
    machine.stop()
    if anew:
        shutil.rmtree(machine.home)
    machine.start()

    async def other_boot() -> bool:
        report = await _report(site)
        return bool(report) and report["boot"] != before["boot"]

    await eventually(other_boot)
    assert await Guests(site.worker).get(ONE) == known
    assert machine.log().count('"enrolled"') == 1


async def test_it_asks_until_a_worker_answers(site: Site, machine: PlainMachine) -> None:
    await site.enrolment.ensure(ONE)
    machine.give(await site.enrolment.user_data(ONE, "redis", "6.2"))
    await site.broker.stop()
    machine.start()

    async def said() -> bool:
        return "not_enrolled" in machine.log()

    await eventually(said)
    await site.broker.start()
    assert await eventually(lambda: _report(site))


async def test_whose_token_was_stolen_says_so_and_is_not_let_in(site: Site, machine: PlainMachine) -> None:
    told = await site.machine(ONE)
    thief = nkey.make_seed()
    await site.ask(request(told, thief))
    machine.give(render(told))
    machine.start()

    async def said() -> bool:
        return "token_used" in machine.log()

    await eventually(said)
    assert await _report(site) == {}


async def test_no_secret_is_in_log_or_process_list(site: Site, machine: PlainMachine) -> None:
    await site.enrolment.ensure(ONE)
    user_data = await site.enrolment.user_data(ONE, "redis", "6.2")
    machine.give(user_data)
    told = read_drive(machine.root / "drive")
    machine.start()
    await eventually(lambda: _report(site))
    assert machine.agent is not None
    seed = (machine.home / "agent.nk").read_text()
    process = psutil.Process(machine.agent.pid)
    shown = f"{machine.log()} {process.cmdline()} {process.environ()}"
    assert told.token not in shown
    assert seed not in shown
    places = (machine.volume, machine.home)
    kept = [f for place in places for f in place.rglob("*") if f.is_file() and f.stat().st_mode & 0o077]
    assert kept == []


@pytest.mark.parametrize(
    "user_data", [b"", b"#!/bin/sh\nexit 0\n", b"#cloud-config\n{}", b'#cloud-config\n{"write_files": []']
)
def test_user_data_of_others_is_told_from_ours(tmp_path: Path, user_data: bytes) -> None:
    drive = write_config_drive(tmp_path / "drive", ONE, user_data, "127.0.0.1")
    with pytest.raises(UserDataError, match="user_data_unreadable"):
        read_drive(drive)
