"""What every datastore does behind the agent, whatever software it is."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import psutil
import pytest

from engine.messages import GuestState, GuestStatus
from tests.guest.conftest import NewServer
from tests.guest.server import PASSWORD, ROOT_PASSWORD, GuestServer
from tests.guest.tenants import REFUSED, Tenant

MIB = 1 << 20


def is_refused(tenant: Tenant) -> bool:
    try:
        tenant.put("color", "red")
    except REFUSED:
        return True
    return False


async def test_users_reach_their_own_database_by_password_and_nothing_else(guest: GuestServer) -> None:
    port = await guest.prepare()

    guest.tenant(port).put("color", "blue")
    assert guest.tenant(port).get("color") == "blue"
    guest.tenant(port, "other", PASSWORD + "2", "s_op").put("size", "small")
    assert is_refused(guest.tenant(port, password="wrong"))
    assert is_refused(guest.tenant(port, password=""))
    assert is_refused(guest.tenant(port, user="nobody_at_all"))
    guest.tenant(port, "loner", PASSWORD + "3", "").memory()
    if guest.datastore != "redis":  # which has no databases to keep apart
        assert is_refused(guest.tenant(port, database="s_op"))
        # `s_op` as a pattern would match `shop`.
        assert is_refused(guest.tenant(port, "other", PASSWORD + "2", "shop"))
        assert is_refused(guest.tenant(port, "loner", PASSWORD + "3", "shop"))
        assert is_refused(guest.tenant(port, "loner", PASSWORD + "3", ""))
    root = {"postgresql": "postgres", "mariadb": "root", "redis": "default"}[guest.datastore]
    assert guest.tenant(port, root, ROOT_PASSWORD, "shop").get("color") == "blue"


async def test_without_a_root_password_nobody_is_root(guest: GuestServer) -> None:
    port = await guest.prepare(root_password=None)

    root = {"postgresql": "postgres", "mariadb": "root", "redis": "default"}[guest.datastore]
    for password in ("", ROOT_PASSWORD):
        assert is_refused(guest.tenant(port, root, password, "shop"))


async def test_a_user_comes_only_from_its_host(guest: GuestServer) -> None:
    arguments = guest.prepare_args()
    for user, host in zip(arguments["users"], ("127.%", "10.0.0.%", "%"), strict=True):
        user["host"] = host
    reply = await guest.ask("prepare", "prepare-1", **arguments)

    if guest.datastore == "redis":
        assert (reply.state, reply.transient) == (GuestState.FAILED, False)
        assert "host_unsupported" in str(reply.error)
        return
    port = reply.facts["port"]
    guest.tenant(port).put("color", "blue")
    assert is_refused(guest.tenant(port, "other", PASSWORD + "2", "s_op"))
    guest.tenant(port, "loner", PASSWORD + "3", "").memory()


async def test_on_a_server_made_anew_users_and_data_are_there_again_at_the_same_port(guest: GuestServer) -> None:
    port = await guest.prepare()
    guest.tenant(port).put("color", "blue")
    await guest.ask("stop", "stop-1")
    await guest.renew()

    again = {"ram": 256, "volume_size": 1, "port": port, "overrides": {}}
    for _ in range(2):
        reply = await guest.ask("rebuild", "rebuild-1", **again)
        assert reply.state is GuestState.DONE, reply
        assert guest.tenant(port).get("color") == "blue"
    await guest.ask("restart", "restart-1")
    assert guest.tenant(port).get("color") == "blue"


async def test_where_no_data_lie_nothing_is_made_in_their_place(guest: GuestServer) -> None:
    reply = await guest.ask("rebuild", "rebuild-1", ram=256, volume_size=1, port=0, overrides={})
    assert (reply.state, reply.transient) == (GuestState.FAILED, True)
    assert "data_missing" in str(reply.error)


async def test_preparing_again_under_another_key_leaves_the_same(guest: GuestServer) -> None:
    port = await guest.prepare("one")
    guest.tenant(port).put("color", "blue")
    process = guest.database().pid

    assert await guest.prepare("two") == port
    assert guest.database().pid == process
    assert guest.tenant(port).get("color") == "blue"


async def test_a_stopped_database_stays_so_until_it_is_started(guest: GuestServer) -> None:
    port = await guest.prepare()
    guest.tenant(port).put("color", "blue")

    await guest.do("stop", "stop-1")
    assert (await guest.report())["status"] == "SHUTDOWN"
    guest.kill_agent()
    guest.start_agent()
    assert (await guest.report())["status"] == "SHUTDOWN"
    assert is_refused(guest.tenant(port))

    await guest.do("start", "start-1", ram=256, overrides={})
    assert (await guest.report())["status"] == "HEALTHY"
    assert guest.tenant(port).get("color") == "blue"


async def test_one_key_restarts_once(guest: GuestServer) -> None:
    port = await guest.prepare()
    before = guest.database().pid

    await guest.do("restart", "restart-1")
    after = guest.database().pid
    assert after != before
    await guest.do("restart", "restart-1")
    guest.kill_agent()
    guest.start_agent()
    await guest.do("restart", "restart-1")
    assert guest.database().pid == after
    guest.tenant(port).put("color", "blue")


async def test_a_killed_database_is_said_to_have_crashed_and_comes_back(guest: GuestServer) -> None:
    port = await guest.prepare()
    guest.tenant(port).put("color", "blue")
    if guest.datastore == "redis":
        await on_disk(guest)
    guest.beats.clear()

    guest.database().kill()
    await guest.until("CRASHED", lambda _: any(beat.status is GuestStatus.CRASHED for beat in guest.beats))
    await guest.until_status("HEALTHY")
    assert guest.tenant(port).get("color") == "blue"


async def on_disk(guest: GuestServer) -> None:
    """Redis writes its file after it has answered: wait until the file says what was written."""
    deadline = time.monotonic() + 30
    while b"blue" not in (guest.volume / "data" / "appendonly.aof").read_bytes():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_the_database_outlives_its_agent_and_is_adopted(guest: GuestServer) -> None:
    port = await guest.prepare()
    process = guest.database().pid

    guest.kill_agent()
    guest.tenant(port).put("color", "blue")
    guest.start_agent()
    await guest.until_status("HEALTHY")
    assert guest.database().pid == process
    await guest.do("stop", "stop-1")
    assert not psutil.pid_exists(process) or psutil.Process(process).status() == psutil.STATUS_ZOMBIE


async def test_an_agent_started_anew_starts_a_database_that_should_run(guest: GuestServer) -> None:
    port = await guest.prepare()

    guest.kill_agent()
    database = guest.database()
    database.kill()
    psutil.wait_procs([database], timeout=30)
    guest.start_agent()
    await guest.until_status("HEALTHY")
    guest.tenant(port).put("color", "blue")


@pytest.mark.parametrize("made", ["installing-*", "data"])
async def test_an_agent_killed_while_it_prepares_is_taken_over_by_the_next(guest: GuestServer, made: str) -> None:
    await guest.post("prepare", "prepare-1", **guest.prepare_args())
    deadline = time.monotonic() + 60
    while not any(guest.volume.glob(made)) and time.monotonic() < deadline:
        if any(line.get("reply") for line in guest.journal()):
            break  # too quick for this point
        await asyncio.sleep(0.001)

    guest.kill_agent()
    guest.start_agent()
    port = await guest.prepare("prepare-1")
    guest.tenant(port).put("color", "blue")
    assert not list(guest.volume.glob("installing-*"))
    await guest.do("restart", "restart-1")
    assert guest.tenant(port).get("color") == "blue" or guest.datastore == "redis"


async def test_memory_follows_the_flavor_and_overrides_go_before(guest: GuestServer) -> None:
    port = await guest.prepare()
    small = guest.tenant(port).memory()

    await guest.do("stop", "stop-1")
    await guest.do("start", "start-1", ram=512, overrides={})
    larger = guest.tenant(port).memory()
    name, value = {
        "postgresql": ("shared_buffers", "48MB"),
        "mariadb": ("innodb_buffer_pool_size", "50331648"),
        "redis": ("maxmemory", "50331648"),
    }[guest.datastore]
    await guest.do("start", "start-2", ram=512, overrides={name: value})
    assert [small, larger, guest.tenant(port).memory()] == {
        "postgresql": ["64MB", "128MB", "48MB"],
        "mariadb": [str(128 * MIB), str(256 * MIB), str(48 * MIB)],
        "redis": [str(192 * MIB), str(384 * MIB), str(48 * MIB)],
    }[guest.datastore]


async def test_parameters_outside_the_closed_list_are_refused_for_good(guest: GuestServer) -> None:
    reply = await guest.ask("prepare", "prepare-1", **{**guest.prepare_args(), "overrides": {"port": "1"}})

    assert (reply.state, reply.transient) == (GuestState.FAILED, False)
    assert "parameter_unknown" in str(reply.error)


async def test_a_setting_that_the_database_does_not_take_fails_with_its_words(guest: GuestServer) -> None:
    name = {"postgresql": "shared_buffers", "mariadb": "innodb_buffer_pool_size", "redis": "maxmemory-policy"}
    overrides = {name[guest.datastore]: "nonsense"}
    reply = await guest.ask("prepare", "prepare-1", **{**guest.prepare_args(), "overrides": overrides})

    assert (reply.state, reply.transient) == (GuestState.FAILED, False)
    assert "nonsense" in str(reply.error)
    assert (await guest.report())["status"] == "FAILED"


# Bytes for a GiB of volume: small, and well over what an empty database takes.
UNITS = {"postgresql": 160 * MIB, "mariadb": 192 * MIB, "redis": 24 * MIB}


async def test_a_full_volume_is_read_only_until_it_has_grown(datastore: tuple[str, str], new_server: NewServer) -> None:
    guest = new_server(datastore, gibibyte=UNITS[datastore[0]], beat_interval=0.2)
    await guest.open()
    port = await guest.prepare()
    guest.tenant(port).put("color", "blue")
    report = await guest.until("volume measured", lambda report: report["volume"] is not None)
    assert report["volume"]["read_only"] is False

    take(guest.volume / "ballast", report["volume"]["size"] - report["volume"]["used"] - 12 * MIB)
    await asyncio.to_thread(fill, guest, port)
    take(guest.volume / "more", guest.config.gibibyte // 2)  # or a database that gives back its log has room again
    report = await guest.until("read-only", lambda report: report["volume"]["read_only"])
    assert report["volume"]["warning"]
    assert guest.tenant(port).get("color") == "blue"
    await guest.do("restart", "restart-1")
    assert is_refused(guest.tenant(port)), "a database that starts while full is read-only"

    await guest.do("grow", "grow-1", volume_size=4)
    guest.tenant(port).put("color", "green")
    assert (await guest.report())["volume"]["read_only"] is False
    assert any(beat.volume and beat.volume.warning and beat.volume.read_only for beat in guest.beats)


def take(file: Path, size: int) -> None:
    """Use up this much of the volume."""
    with file.open("wb") as opened:
        os.posix_fallocate(opened.fileno(), 0, size)


def fill(guest: GuestServer, port: int) -> None:
    """Write as a tenant until that is refused, slowly: the agent looks once a second, and grown is only fourfold."""
    for number in range(2000):
        try:
            guest.tenant(port).put(f"block-{number}", os.urandom(MIB // 16).hex())
        except REFUSED:
            return
        time.sleep(0.02)
    raise AssertionError("the volume's limit was never enforced")


async def test_no_password_and_no_argument_lies_anywhere(guest: GuestServer) -> None:
    arguments = guest.prepare_args()
    for user in arguments["users"]:
        user["password"] = f"MARKER-{user['name']}-{'x' * 20}"
    await guest.do("prepare", "prepare-1", **{**arguments, "root_password": "MARKER-root-password"})
    await guest.do("prepare", "prepare-2", **{**arguments, "root_password": "MARKER-root-password-2"})
    guest.tenant(await guest.prepare("prepare-1"), password=arguments["users"][0]["password"]).put("a", "b")
    await guest.do("restart", "restart-1")

    assert [str(f) for f in files_under(guest.root) if b"MARKER" in f.read_bytes()] == []
    for process in guest.processes():
        assert "MARKER" not in " ".join(process.cmdline())
        assert "MARKER" not in str(process.environ())
    journal = (guest.directory / "journal.jsonl").read_text()
    assert not [word for word in ("shop", "loner", "app", "overrides", "ram") if word in journal]
    assert all(f.stat().st_mode & 0o077 == 0 for f in guest.directory.iterdir() if f.suffix == ".password")


def files_under(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
