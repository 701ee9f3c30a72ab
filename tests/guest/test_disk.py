"""A machine finds its volume by what it is, formats it once, never another's, and uses all of it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec
import pytest

from engine.guest import disk
from engine.guest.datastores.base import DatastoreError
from engine.guest.disk import Disk, choose

MOUNT = Path("/var/lib/holdfast")
SERIAL = "685c46e2-e252-490f-8"
ROOT = Disk(path="/dev/vda", type="disk", serial="11111111-2222-3333-4", children=[{"path": "/dev/vda1"}])
VOLUME = Disk(path="/dev/vdb", type="disk", serial=SERIAL)
DRIVE = Disk(path="/dev/sr0", type="rom", serial="QM00001", label="config-2")
SCRATCH = Disk(path="/dev/vdc", type="disk", serial=None)


@pytest.mark.parametrize("order", [[ROOT, DRIVE, SCRATCH, VOLUME], [VOLUME, SCRATCH, DRIVE, ROOT]])
def test_the_volume_is_known_by_its_serial_whatever_the_order(order: list[Disk]) -> None:
    assert choose(order, MOUNT) == "/dev/vdb"


def test_without_a_volume_it_waits() -> None:
    assert choose([ROOT, DRIVE, SCRATCH], MOUNT) is None


def test_one_that_was_formatted_here_goes_first() -> None:
    known = Disk(path="/dev/vdd", type="disk", serial=None, fstype="ext4", label="holdfast")
    assert choose([VOLUME, known], MOUNT) == "/dev/vdd"


def test_of_two_none_is_guessed() -> None:
    other = msgspec.structs.replace(VOLUME, path="/dev/vdc", serial="99999999-e252-490f-8")
    with pytest.raises(DatastoreError, match=r"volume_ambiguous: .*/dev/vdb.*/dev/vdc"):
        choose([VOLUME, other], MOUNT)


def test_one_that_is_mounted_elsewhere_is_not_taken() -> None:
    assert choose([msgspec.structs.replace(VOLUME, mountpoints=["/mnt"])], MOUNT) is None
    assert choose([msgspec.structs.replace(VOLUME, mountpoints=[str(MOUNT)])], MOUNT) == "/dev/vdb"


@pytest.mark.parametrize("content", ["ext4", "raw"])
def test_what_was_not_made_here_is_not_touched(tmp_path: Path, content: str, capfd: pytest.CaptureFixture[str]) -> None:
    volume = tmp_path / "volume"
    volume.write_bytes(b"\0" * 5000 + (b"a database of somebody" if content == "raw" else b"") + b"\0" * (32 << 20))
    if content == "ext4":
        subprocess.run(["mkfs.ext4", "-q", "-L", "theirs", volume], check=True)
    told = {"mount": str(tmp_path / "mount"), "device": str(volume)}
    (tmp_path / "image.json").write_bytes(msgspec.json.encode(told))
    before = volume.read_bytes()
    assert disk.main(["--image", str(tmp_path / "image.json")]) == 1
    assert "volume_foreign" in capfd.readouterr().err
    assert volume.read_bytes() == before
    assert not (tmp_path / "mount").exists()
