"""A volume is formatted once, mounted, kept and grown: with real disks, which only root can have."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from engine.guest import disk


class Loop:
    """A file as a disk, and an image that names it."""

    def __init__(self, root: Path) -> None:
        self.file, self.mount, self.image = root / "disk", root / "mount", root / "image.json"
        self.file.touch()
        os.truncate(self.file, 64 << 20)
        self.device = subprocess.run(
            ["losetup", "--find", "--show", self.file], check=True, capture_output=True, text=True
        ).stdout.strip()
        self.requests = root / "requests"
        self.requests.mkdir()
        told = {
            "mount": str(self.mount),
            "device": self.device,
            "user": "nobody",
            "requests": str(self.requests),
        }
        self.image.write_bytes(msgspec.json.encode(told))

    def bring_up(self) -> int:
        """Run the program."""
        return disk.main(["--image", str(self.image)])

    def release(self) -> int:
        """Run it as the agent has it run."""
        (self.requests / "release").touch()
        return disk.main(["--image", str(self.image), "--release"])

    def unmount(self) -> None:
        """As at a shutdown."""
        subprocess.run(["umount", self.mount], check=True)

    def attach_anew(self) -> None:
        """It is taken from the machine, and given to it again under the same name."""
        subprocess.run(["losetup", "--detach", self.device], check=True)
        subprocess.run(["losetup", self.device, self.file], check=True)

    def close(self) -> None:
        """Let go of it."""
        if self.mount.is_mount():
            self.unmount()
        subprocess.run(["losetup", "--detach", self.device], check=True)


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    made = Loop(tmp_path)
    yield made
    made.close()


def test_a_blank_volume_is_formatted_once_and_kept(loop: Loop) -> None:
    assert loop.bring_up() == 0
    assert loop.mount.is_mount()
    assert loop.mount.owner() == (loop.mount / "agent").owner() == "nobody"
    (loop.mount / "kept").write_text("yes")
    assert loop.bring_up() == 0  # a disk came or grew somewhere
    loop.unmount()
    assert loop.bring_up() == 0
    assert (loop.mount / "kept").read_text() == "yes"


def test_a_volume_that_has_grown_is_used_whole(loop: Loop) -> None:
    loop.bring_up()
    before = os.statvfs(loop.mount).f_blocks
    loop.unmount()
    os.truncate(loop.file, 128 << 20)
    subprocess.run(["losetup", "--set-capacity", loop.device], check=True)
    assert loop.bring_up() == 0
    assert os.statvfs(loop.mount).f_blocks > before * 1.8


def test_what_was_let_go_of_stays_so_until_it_is_attached_anew(loop: Loop) -> None:
    loop.bring_up()
    (loop.mount / "kept").write_text("yes")
    assert loop.release() == 0
    assert not loop.mount.is_mount()
    assert not (loop.requests / "release").exists()
    assert loop.release() == 0  # asked for twice
    assert loop.bring_up() == 0  # some disk has changed
    assert not loop.mount.is_mount()
    loop.attach_anew()
    assert loop.bring_up() == 0
    assert (loop.mount / "kept").read_text() == "yes"


def test_it_is_mounted_again_when_the_agent_asks(loop: Loop) -> None:
    loop.bring_up()
    loop.release()
    (loop.requests / "mount").touch()
    assert loop.bring_up() == 0
    assert loop.mount.is_mount()
    assert not (loop.requests / "mount").exists()
    loop.release()
    assert loop.bring_up() == 0
    assert not loop.mount.is_mount()


def test_one_that_is_in_use_is_not_taken_away_and_its_holder_named(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(disk, "_BUSY", 0.5)
    loop.bring_up()
    with (loop.mount / "open").open("w"):
        assert loop.release() == 1
        assert loop.mount.is_mount()
        assert f"(process {os.getpid()})" in (loop.requests.with_name("requests-volume") / "held").read_text()
        assert "cannot be let go of" in capfd.readouterr().err
        assert not (loop.requests / "release").exists()
    assert loop.release() == 0
    assert not (loop.requests.with_name("requests-volume") / "held").exists()
