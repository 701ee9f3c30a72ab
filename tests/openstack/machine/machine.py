"""What a machine does at each act of its hypervisor, by directories and processes of this one.

The agent starts once the volume is there, as an image's units would have it, and is started again when it dies. A
server that moves is on two hosts until the move is confirmed or reverted; the machine is gone when the last has
destroyed it. It holds nothing in memory, so nova-compute may be restarted at any time.

The volume is a directory and not the file that Cinder made for it: its size is enforced by the agent alone, as on the
local cloud without mounts. It outlives the machine, and goes when its volume has gone.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from engine.clouds.local import processes
from engine.guest.address import own_address
from engine.guest.datastores.base import DatastoreError
from engine.guest.user_data import UserDataError, read_drive

_PROJECT = Path(__file__).parents[3]
_OWNER = "65534:65534"  # databases do not run as root
_ROOT_DISK = "/dev/vda"
_GRACE = 15.0  # seconds that a machine has to shut down
# As init does, for ever: the arguments are the agent's command.
_INIT = ("/bin/sh", "-c", 'while :; do "$@"; sleep 1; done', "init")


class Disk(msgspec.Struct, frozen=True, kw_only=True):
    """A disk that the server is given."""

    mount_device: str | None = None
    path: str | None = None


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What the hypervisor says with an action; `dir` has the config drive."""

    uuid: str
    host: str
    dir: Path
    disks: list[Disk] = []
    mount_device: str | None = None
    path: str | None = None
    type: str | None = None


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What the machine is: the hosts that have it, the last of which runs it, and the file of its volume."""

    hosts: tuple[str, ...] = ()
    on: bool = False
    address: str = ""
    volume: str | None = None


class Machine:
    """The machine of one server. Taken by one act at a time."""

    def __init__(self, directory: Path, uuid: str) -> None:
        self._uuid = uuid
        self._root = directory
        self._directory = directory / uuid
        self._lock = -1

    @classmethod
    def of(cls, directory: Path, uuid: str) -> Self:
        """The machine of this server; there is nothing of it before it is spawned."""
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o711)
        return cls(directory, uuid)

    def __enter__(self) -> Self:
        self._lock = os.open(self._root / f"{self._uuid}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._lock)

    # --- acts -----------------------------------------------------------------------------------------------------

    def act(self, action: str, told: Told, broker: str | None) -> None:
        """Do it. Called again, it leaves what one call leaves."""
        record = self._record()
        if action == "spawn" and self._is_ours(told.dir / "config-drive", broker):
            self._spawn(record, told)
        if record is None:
            return
        match action:
            case "power_on":
                self._bring(msgspec.structs.replace(record, on=True))
            case "power_off":
                self._bring(msgspec.structs.replace(record, on=False))
            case "reboot":
                self._end(record, grace=0.0 if told.type == "HARD" else _GRACE)
                self._bring(msgspec.structs.replace(record, on=True))
            case "attach_volume" if told.mount_device != _ROOT_DISK:
                self._bring(msgspec.structs.replace(record, volume=told.path))
            case "detach_volume" if told.path == record.volume:
                self._end(record)
                self._bring(msgspec.structs.replace(record, volume=None))
            case "destroy":
                self._destroy(record, told.host)

    def _spawn(self, record: Record | None, told: Told) -> None:
        """On a host that it moves to, it is spawned with what it has."""
        self._sweep()
        before = record or Record()
        self._end(before)
        drive = self._directory / "config-drive"
        shutil.rmtree(drive, ignore_errors=True)
        self._directory.mkdir(exist_ok=True, mode=0o711)
        shutil.copytree(told.dir / "config-drive", drive)
        volume = next((d.path for d in told.disks if d.mount_device != _ROOT_DISK), None)
        hosts = (*(host for host in before.hosts if host != told.host), told.host)
        address = reachable(own_address(read_drive(drive).instance_id, drive))
        _have_address(address)
        self._bring(Record(hosts=hosts, on=True, address=address, volume=volume or before.volume))

    def _destroy(self, record: Record, host: str) -> None:
        if host == (record.hosts or (host,))[-1]:
            self._end(record)
        left = tuple(each for each in record.hosts if each != host)
        if left:
            self._write(msgspec.structs.replace(record, hosts=left, on=record.on and host != record.hosts[-1]))
            return
        _drop_address(record.address)
        shutil.rmtree(self._directory)
        with suppress(FileNotFoundError):
            (self._root / f"{self._uuid}.lock").unlink()
        self._sweep()

    def _bring(self, record: Record) -> None:
        """Write down what the machine is, and have its processes be so."""
        self._write(record)
        if not record.on or record.volume is None:
            self._end(record)
        elif not processes.belonging(self._uuid, []):
            self._start(self._volume(record.volume), record.address)

    def clear(self) -> None:
        """No process is left, nor its address."""
        record = self._record()
        if record is not None:
            self._end(record, grace=0.0)
            _drop_address(record.address)
            shutil.rmtree(self._directory)

    # --- processes ------------------------------------------------------------------------------------------------

    def _start(self, volume: Path, address: str) -> None:
        volume.mkdir(parents=True, exist_ok=True)
        for passed in (volume.parent, self._directory):
            passed.chmod(0o711)
        image = self._directory / "image.json"
        told = {"mount": str(volume), "home": str(self._directory / "agent"), "requests": None, "address": address}
        image.write_bytes(msgspec.json.encode(told))
        drive = self._directory / "config-drive"
        agent = [sys.executable, "-m", "engine.guest", "--config-drive", str(drive), "--image", str(image)]
        if os.geteuid() == 0:
            agent += ["--run-as", _OWNER]
        processes.spawn([*_INIT, *agent], self._uuid, self._directory / "console.log")

    def _end(self, record: Record, grace: float = _GRACE) -> None:
        places = [] if record.volume is None else [self._volume(record.volume)]
        init = [each for each in processes.belonging(self._uuid, []) if "init" in each.cmdline()[3:4]]
        for each in init:
            processes.kill(each)  # else it would start the agent again
        processes.end(self._uuid, places, grace=grace)

    # --- files ----------------------------------------------------------------------------------------------------

    def _record(self) -> Record | None:
        try:
            return msgspec.json.decode((self._directory / "record.json").read_bytes(), type=Record)
        except FileNotFoundError:
            return None

    def _write(self, record: Record) -> None:
        fresh = self._directory / "record.new"
        fresh.write_bytes(msgspec.json.encode(record))
        fresh.replace(self._directory / "record.json")

    def _volume(self, file: str) -> Path:
        return self._root / "volumes" / file.strip("/").replace("/", "+")

    def _sweep(self) -> None:
        """Volumes are deleted without a word to their machines."""
        for kept in (self._root / "volumes").glob("*"):
            if not Path("/" + kept.name.replace("+", "/")).exists():
                shutil.rmtree(kept, ignore_errors=True)

    def _is_ours(self, drive: Path, broker: str | None) -> bool:
        try:
            return broker in (None, read_drive(drive).nats_url)
        except UserDataError:
            return False


def clear(directory: Path) -> None:
    """Nothing is left of any machine that is kept there, whatever has become of its server."""
    for found in directory.glob("*/record.json"):
        with Machine.of(directory, found.parent.name) as machine:
            machine.clear()
    processes.end("none", [directory], grace=0.0)


def reachable(address: str) -> str:
    """Where this machine reaches the server of that address: as root the very same, else one of its loopback."""
    return address if os.geteuid() == 0 else f"127.{address.partition('.')[2]}"


def _have_address(address: str) -> None:
    """The server's address leads to this machine."""
    if os.geteuid() == 0:
        _ip("replace", address)


def _drop_address(address: str) -> None:
    if os.geteuid() == 0:
        with suppress(DatastoreError):
            _ip("del", address)


def _ip(verb: str, address: str) -> None:
    command: list[Any] = ["ip", "address", verb, f"{address}/32", "dev", "lo"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    if done.returncode != 0:
        raise DatastoreError("address_unusable", f"{' '.join(command)}: {done.stderr.strip()}")
