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
        told = {"mount": str(self.mount), "device": self.device, "user": "nobody"}
        self.image.write_bytes(msgspec.json.encode(told))

    def bring_up(self) -> int:
        """Run the program."""
        return disk.main(["--image", str(self.image)])

    def unmount(self) -> None:
        """As at a shutdown."""
        subprocess.run(["umount", self.mount], check=True)

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
