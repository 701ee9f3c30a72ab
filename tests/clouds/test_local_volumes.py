# ruff: noqa: ASYNC221, ASYNC240 -- nothing else runs in the loop while these tests look at files
"""What only the local cloud can show: volumes with a hard limit, where the system lets file systems be mounted."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from engine.clouds.local import LocalCloud, loopback
from engine.clouds.local.locks import Locks
from engine.clouds.port import FinalError
from tests.clouds.local_setup import local_cloud
from tests.clouds.wishes import Wishes

GIB = 1024**3


def abilities(directory: Path) -> loopback.Abilities:
    """What this machine lets us do."""
    locks = Locks(directory / "probe-locks")
    locks.prepare()
    lock = locks.attempt("probe")
    assert lock is not None
    try:
        return loopback.probe(directory, lock)
    finally:
        lock.release()


async def mounting(directory: Path) -> LocalCloud | None:
    """A cloud whose volumes are mounted; None where it says that this does not work, as it must."""
    cloud = local_cloud(directory / "cloud", mount="always")
    if abilities(directory).mounts is None:
        await cloud.start()
        return cloud
    with pytest.raises(FinalError) as raised:
        await cloud.start()
    assert raised.value.code == "cannot_mount"
    return None


async def volume_of(wishes: Wishes) -> dict[str, Any]:
    """The volume as the inventory has it."""
    return (await wishes.cloud.contents())["volumes"][wishes.facts["volume_id"]]


def fill(path: Path) -> int:
    """Take all the room there is; returns how much that was."""
    taken, step = 0, 64 * 1024 * 1024
    with (path / "filling").open("wb") as file:
        while step >= 4096:
            try:
                os.posix_fallocate(file.fileno(), taken, step)
            except OSError:
                step //= 2
            else:
                taken += step
    return taken


def loop_devices(path: Path) -> str:
    """The loop devices that have an image under this path."""
    return "\n".join(
        line
        for line in subprocess.run(["losetup", "--all"], capture_output=True, text=True, check=True).stdout.splitlines()
        if str(path) in line
    )


async def test_a_mounted_volume_has_a_hard_limit(directory: Path) -> None:
    cloud = await mounting(directory)
    if cloud is None:
        return
    wishes = Wishes(cloud)
    await wishes.pay(wishes.volume(1))
    path = Path((await volume_of(wishes))["path"])
    assert os.listdir(path) == []  # noqa: PTH208 - what a database's installer sees
    taken = fill(path)
    assert GIB <= taken <= GIB * 1.06
    with pytest.raises(OSError, match="No space left"):
        (path / "more").write_bytes(bytes(64 * 1024))
    await wishes.pay(wishes.no_volume())
    assert not path.exists()
    assert loop_devices(directory) == ""
    await cloud.close()


async def test_a_mounted_volume_grows_where_the_system_lets_it(directory: Path) -> None:
    cloud = await mounting(directory)
    if cloud is None:
        return
    wishes = Wishes(cloud)
    await wishes.pay(wishes.volume(1))
    path = Path((await volume_of(wishes))["path"])
    (path / "kept").write_text("kept")
    if abilities(directory).grows is None:
        await wishes.pay(wishes.extend(2))
        assert 2 * GIB <= fill(path) <= 2 * GIB * 1.06
    else:
        with pytest.raises(FinalError) as raised:
            await wishes.pay(wishes.extend(2))
        assert "CAP_SYS_RESOURCE" in raised.value.message
        assert (await volume_of(wishes))["size"] == 1
    assert (path / "kept").read_text() == "kept"
    await cloud.close()


async def test_volumes_are_mounted_again_after_a_reboot_of_the_machine(directory: Path) -> None:
    cloud = await mounting(directory)
    if cloud is None:
        return
    wishes = Wishes(cloud)
    await wishes.pay(wishes.volume(1))
    path = Path((await volume_of(wishes))["path"])
    (path / "kept").write_text("kept")
    owner = (path.stat().st_uid, path.stat().st_gid)
    await cloud.close()
    subprocess.run(["umount", str(path)], check=True)
    assert not (path / "kept").exists()
    cloud = local_cloud(directory / "cloud", mount="never")
    await cloud.start()
    assert (path / "kept").read_text() == "kept"
    assert (path.stat().st_uid, path.stat().st_gid) == owner
    assert (path.stat().st_mode & 0o777) == 0o700
    await cloud.close()


async def test_a_volume_in_use_by_others_is_removed_all_the_same(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loopback, "_BUSY", 0.2)
    cloud = await mounting(directory)
    if cloud is None:
        return
    wishes = Wishes(cloud)
    await wishes.pay(wishes.volume(1))
    path = Path((await volume_of(wishes))["path"])
    with (path / "open").open("w"):
        await wishes.pay(wishes.no_volume())
        assert not path.exists()
    assert str(directory) not in Path("/proc/mounts").read_text()
    await cloud.close()


async def test_a_plain_volume_belongs_to_the_guests_user_alone(directory: Path) -> None:
    cloud = local_cloud(directory / "cloud", mount="never")
    await cloud.start()
    wishes = Wishes(cloud)
    await wishes.pay(wishes.volume(1))
    shown = await volume_of(wishes)
    found = Path(shown["path"]).stat()
    assert not shown["mounted"]
    assert (found.st_uid, found.st_gid) == tuple(shown["owner"] or (os.geteuid(), os.getegid()))
    assert found.st_mode & 0o777 == 0o700
    await cloud.close()
