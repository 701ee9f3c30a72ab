# ruff: noqa: ASYNC240 -- nothing else runs in the loop while these tests look at files
"""What only the local cloud can show: the processes of its servers."""

from __future__ import annotations

import asyncio
import os
import stat
import tempfile
from pathlib import Path
from uuid import UUID

import psutil
import pytest

from aggregates import effects
from engine.clouds.local import LocalCloud
from engine.clouds.local.locks import Locks
from engine.clouds.port import FinalError
from engine.guest import config as configuration
from tests.clouds.local_setup import DATASTORES, NoCredentials, launch, local_cloud, marked, until
from tests.clouds.wishes import Wishes

# Starts a process that works in the volume's directory and says nothing of its server, as Redis does, then idles.
HIDING = """
import json, signal, subprocess, sys
volume = json.load(open(sys.argv[1]))["volume"]
subprocess.Popen(["tail", "-f", "/dev/null"], env={}, cwd=volume, start_new_session=True)
while True: signal.pause()
"""
STUBBORN = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
while True: signal.pause()
"""


@pytest.fixture
async def built(local: LocalCloud) -> Wishes:
    """An instance with server, port and volume."""
    wishes = Wishes(local)
    await wishes.build()
    return wishes


def agents(wishes: Wishes) -> list[int]:
    """The processes that bear the server's mark."""
    return [process.pid for process in marked(wishes.facts["server_id"])]


async def config_of(wishes: Wishes) -> configuration.AgentConfig:
    """What the agent was told."""
    return configuration.read(Path((await wishes.shown())["directory"]) / "config-drive" / "agent.json")


async def test_an_agent_runs_apart_from_the_engine(built: Wishes) -> None:
    (pid,) = agents(built)
    assert os.getsid(pid) == pid
    process = psutil.Process(pid)
    assert set(process.environ()) == {"PATH", "LANG", "HOLDFAST_SERVER"}
    log = Path((await built.shown())["directory"]) / "agent" / "agent.log"
    files = [Path(f"/proc/{pid}/fd/{number}").readlink() for number in range(3)]
    assert files == [Path("/dev/null"), log, log]


async def test_an_agent_is_told_all_it_needs(built: Wishes) -> None:
    told = await config_of(built)
    inventory = await built.cloud.contents()
    assert told.instance_id == built.id
    assert told.address == built.facts["address"]
    assert str(told.volume) == inventory["volumes"][built.facts["volume_id"]]["path"]
    assert told.volume.is_dir()
    assert told.directory.is_dir()
    assert not told.directory.is_symlink()
    assert not told.volume.is_symlink()


async def test_a_seed_is_copied_for_its_reader_alone(directory: Path) -> None:
    class OneSeed(NoCredentials):
        async def ensure(self, instance_id: UUID) -> Path | None:
            await super().ensure(instance_id)
            return directory / "seed"

    (directory / "seed").write_text("SUA")
    cloud = LocalCloud(
        directory / "cloud",
        nats_url="nats://127.0.0.1:4222",
        credentials=OneSeed(),
        datastores=DATASTORES,
        launcher=launch("import signal\nsignal.pause()"),
    )
    await cloud.start()
    wishes = Wishes(cloud)
    await wishes.build()
    seed = (await config_of(wishes)).seed_file
    assert seed is not None
    assert seed.read_text() == "SUA"
    assert stat.S_IMODE(seed.stat().st_mode) == 0o600
    await cloud.close()


async def test_agents_outlive_the_engine_and_are_taken_up(built: Wishes, directory: Path) -> None:
    before = agents(built)
    await built.cloud.close()
    assert agents(built) == before
    built.cloud = local_cloud(directory / "cloud")
    await built.cloud.start()
    await built.pay(built.start())
    assert agents(built) == before
    await built.cloud.close()


async def test_an_agent_that_dies_is_started_again(built: Wishes) -> None:
    before = agents(built)
    psutil.Process(before[0]).kill()
    await until(lambda: agents(built) not in (before, []), "a new agent")
    assert len(agents(built)) == 1


async def test_an_agent_that_keeps_dying_is_started_ever_more_rarely(directory: Path) -> None:
    (directory / "starts").touch()
    cloud = local_cloud(directory / "cloud", launcher=launch(f"open({str(directory / 'starts')!r}, 'a').write('x')"))
    await cloud.start()
    await Wishes(cloud).build()
    await asyncio.sleep(5)
    assert 2 <= (directory / "starts").stat().st_size <= 4
    await cloud.close()


async def test_an_unrecorded_agent_is_not_doubled(built: Wishes) -> None:
    """As when the engine dies between the start of the agent and the record of it."""
    before = agents(built)
    (Path((await built.shown())["directory"]) / "process.json").unlink()
    await until(lambda: agents(built) not in (before, []), "a new agent")
    assert len(agents(built)) == 1


async def test_agents_follow_the_broker_to_another_address(built: Wishes, directory: Path) -> None:
    before = agents(built)
    await built.cloud.close()
    built.cloud = local_cloud(directory / "cloud", nats_url=lambda: "nats://127.0.0.1:5222")
    await built.cloud.start()
    await until(lambda: agents(built) not in (before, []), "a new agent")
    assert (await config_of(built)).nats_url == "nats://127.0.0.1:5222"
    await built.cloud.close()


async def test_nothing_runs_after_the_server_is_gone(built: Wishes) -> None:
    await built.pay(built.no_server())
    assert agents(built) == []


async def test_a_stopped_server_stays_stopped(built: Wishes) -> None:
    await built.pay(built.stop())
    assert agents(built) == []
    await asyncio.sleep(1.5)  # longer than the supervisor's round: that nothing happens is what is shown
    assert agents(built) == []
    await built.pay(built.start())
    assert len(agents(built)) == 1


async def test_a_reboot_happens_once_for_each_key(built: Wishes) -> None:
    seen = [agents(built)]
    for key in ("first", "first", "second", "second"):
        await built.pay(built.reboot(hard=key == "second"), key)
        seen.append(agents(built))
    assert seen[0] != seen[1] == seen[2] != seen[3] == seen[4]
    assert all(len(pids) == 1 for pids in seen)


@pytest.mark.parametrize("program", [HIDING, STUBBORN])
async def test_no_process_escapes(directory: Path, program: str) -> None:
    cloud = local_cloud(directory / "cloud", launcher=launch(program), grace=0.5)
    await cloud.start()
    wishes = Wishes(cloud)
    await wishes.build()
    place = (await cloud.contents())["volumes"][wishes.facts["volume_id"]]["path"]
    if program == HIDING:
        await until(lambda: working_in(place), "the hidden process")
        (agent,) = marked(wishes.facts["server_id"])
        agent.kill()
    await wishes.pay(wishes.no_server())
    assert agents(wishes) == []
    assert working_in(place) == []
    await cloud.close()


async def test_a_migration_takes_along_all_that_the_server_has(built: Wishes) -> None:
    (await config_of(built)).directory.joinpath("journal").write_text("kept")
    (await config_of(built)).volume.joinpath("data").write_text("kept")
    before = agents(built)
    await built.pay(built.migrate("host-3"))
    told = await config_of(built)
    assert "/host-3/" in str(told.directory)
    assert told.directory.joinpath("journal").read_text() == "kept"
    assert told.volume.joinpath("data").read_text() == "kept"
    assert len(agents(built)) == 1
    assert agents(built) != before


async def test_a_cancelled_call_that_waits_does_nothing_later(local: LocalCloud, directory: Path) -> None:
    wishes = Wishes(local)
    await wishes.pay(wishes.port())
    lock = Locks(directory / "cloud" / "locks").attempt(wishes.name)
    assert lock is not None
    waiting = asyncio.create_task(wishes.pay(wishes.server()))
    await asyncio.sleep(0.1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    lock.release()
    await wishes.pay(wishes.no_server())
    assert (await local.contents())["servers"] == {}


async def test_a_cancelled_call_that_has_begun_is_waited_for(built: Wishes) -> None:
    migrating = asyncio.create_task(built.pay(built.migrate()))
    await asyncio.sleep(0.05)
    migrating.cancel()
    await asyncio.gather(migrating, return_exceptions=True)
    await built.pay(built.revert())
    shown = await built.shown()
    assert (shown["host"], shown["status"]) == (built.facts["host"], "ACTIVE")
    assert len(agents(built)) == 1


async def test_two_engines_on_one_directory_make_one(directory: Path) -> None:
    clouds = [local_cloud(directory / "cloud") for _ in range(2)]
    for cloud in clouds:
        await cloud.start()
    first = Wishes(clouds[0])
    second = Wishes(clouds[1], first.id)
    await asyncio.gather(first.build(), second.build())
    assert first.facts == second.facts
    assert len(agents(first)) == 1
    for cloud in clouds:
        await cloud.close()


async def test_a_directory_that_guests_cannot_reach_is_named() -> None:
    with tempfile.TemporaryDirectory(prefix="holdfast-closed-") as closed:  # closed to all but its owner
        cloud = local_cloud(Path(closed) / "cloud")
        if os.geteuid() != 0:
            await cloud.start()
            await cloud.close()
            return
        with pytest.raises(FinalError) as raised:
            await cloud.start()
        assert raised.value.code == "state_directory_closed"
        assert f"chmod a+x {closed}" in raised.value.message


async def test_hosts_belong_to_zones_and_fill_evenly(local: LocalCloud) -> None:
    hosts = []
    for zone in ("az-2", "az-1", "az-1", None):
        wishes = Wishes(local)
        await wishes.pay(wishes.port())
        hosts.append((await wishes.pay(wishes.server(availability_zone=zone)))["host"])
    assert hosts == ["host-3", "host-1", "host-2", "host-1"]


async def test_addresses_are_loopback_addresses_that_can_be_listened_on(local: LocalCloud) -> None:
    wishes = Wishes(local)
    address = (await wishes.pay(wishes.port()))["address"]
    first, second, _, last = map(int, address.split("."))
    assert first == 127
    assert 1 <= second <= 254
    assert 1 <= last <= 254
    server = await asyncio.start_server(lambda _reader, _writer: None, address, 0)
    server.close()
    await server.wait_closed()


async def test_credentials_are_issued_and_revoked(local: LocalCloud) -> None:
    known = local._credentials
    assert isinstance(known, NoCredentials)
    wishes = Wishes(local)
    await wishes.pay(effects.EnsureCredentials(instance_id=wishes.id))
    assert known.known == {wishes.id}
    await wishes.pay(effects.CredentialsAbsent(instance_id=wishes.id))
    assert known.known == set()


def working_in(place: str) -> list[int]:
    """The processes that work in this directory."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == place:
                found.append(process.pid)
        except (psutil.Error, OSError):
            continue
    return found
