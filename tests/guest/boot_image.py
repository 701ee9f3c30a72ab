"""Boot an image that `engine/guest/debian/build.sh` built: `python -m tests.guest.boot_image DISK DATASTORE VERSION`.

A virtual machine gets the disk, a config drive, and a volume that is plugged in while it runs and grows later; its
agent enrols and makes a database. Needs qemu-system-x86_64 and xorriso. In software it takes some minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import nats.errors
from nats.aio.client import Client

from engine.broker import connect, ensure_streams
from engine.clouds.fences import port_mac
from engine.credentials import GuestCredentials, inbox_prefix
from engine.embedded import EmbeddedBroker
from engine.enrolment import Access, Enrolment
from engine.messages import GuestReply, GuestRequest, GuestState, guest_subject
from engine.state import StateDirectory
from engine.tasks import end
from tests.support.eventually import eventually

ID = uuid4()
VOLUME = str(uuid4())
GIB = 1 << 30
HOST = "10.0.2.2"  # this machine, as QEMU's user network shows it to the guest
PATIENCE = 900.0  # seconds; in software everything is slow


class VirtualMachine:
    """QEMU, its console in a file, and its monitor."""

    def __init__(self, root: Path, disk: Path, user_data: bytes, accelerator: str) -> None:
        self._root = root
        latest = root / "drive" / "openstack" / "latest"
        latest.mkdir(parents=True)
        (latest / "user_data").write_bytes(user_data)
        (latest / "meta_data.json").write_text(json.dumps({"uuid": str(uuid4()), "hostname": "db", "name": "db"}))
        links = [{"id": "tap0", "type": "phy", "ethernet_mac_address": port_mac(ID), "mtu": 1500}]
        networks = [{"id": "network0", "type": "ipv4_dhcp", "link": "tap0", "network_id": "n"}]
        (latest / "network_data.json").write_text(json.dumps({"links": links, "networks": networks, "services": []}))
        drive = ["-V", "config-2", "-J", "-r", "-o", str(root / "drive.iso"), str(root / "drive")]
        subprocess.run(["xorriso", "-as", "mkisofs", "-quiet", *drive], check=True)
        self.volume = root / "volume.raw"
        with self.volume.open("wb") as file:
            file.truncate(2 * GIB)
        self._process = subprocess.Popen(
            [
                "qemu-system-x86_64", "-accel", accelerator, "-m", "768", "-smp", "2", "-display", "none",
                "-serial", f"file:{self.console}", "-monitor", "stdio", "-snapshot",
                "-drive", f"file={disk},if=virtio,format={'qcow2' if disk.suffix == '.qcow2' else 'raw'}",
                "-drive", f"file={root / 'drive.iso'},if=virtio,format=raw,readonly=on",
                "-netdev", "user,id=net", "-device", f"virtio-net-pci,netdev=net,mac={port_mac(ID)}",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip

    @property
    def console(self) -> Path:
        """What the machine says."""
        return self._root / "console"

    def order(self, *lines: str) -> None:
        """Tell the monitor."""
        assert self._process.stdin is not None
        self._process.stdin.write("".join(f"{line}\n" for line in lines).encode())
        self._process.stdin.flush()

    def plug(self) -> None:
        """The volume comes."""
        self.order(
            f"drive_add 0 if=none,file={self.volume},id=volume,format=raw,snapshot=off",
            f"device_add virtio-blk-pci,drive=volume,serial={VOLUME[:20]},id=disk",
        )

    async def booted(self) -> bool:
        """Whether cloud-init is through."""
        if self._process.poll() is not None:
            raise RuntimeError(f"QEMU ended with {self._process.returncode}")
        said = self.console.read_bytes() if self.console.exists() else b""
        return b"Cloud-init" in said and b"finished at" in said

    def end(self) -> None:
        """Pull the plug."""
        self._process.kill()
        self._process.wait(30)


async def boot(disk: Path, datastore: str, version: str, accelerator: str) -> None:
    """From the boot to a database on a volume that has grown. Raises `TimeoutError` where it gets stuck."""
    began = time.monotonic()

    def tell(what: object) -> None:
        print(f"{time.monotonic() - began:5.0f} s  {what}", flush=True)

    async with AsyncExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-boot-")))
        state = StateDirectory(root / "state")
        state.prepare()
        broker = EmbeddedBroker(state, None)
        await broker.start()
        stack.push_async_callback(broker.stop)
        worker = await connect(broker.settings("worker"), name="worker", inbox_prefix=inbox_prefix("worker"))
        stack.push_async_callback(worker.close)
        await ensure_streams(worker.jetstream())
        seed = broker.users.seed("enrol").read_text().strip()
        access = Access(url=f"nats://{HOST}:{broker.url.rpartition(':')[2]}", seed=seed)
        enrolment = Enrolment(worker, GuestCredentials(broker), lambda: access)
        stack.push_async_callback(end, asyncio.create_task(enrolment.run()))
        await enrolment.ensure(ID)
        machine = VirtualMachine(root, disk, await enrolment.user_data(ID, datastore, version), accelerator)
        stack.callback(machine.end)
        try:
            await _live(machine, worker, datastore, tell)
        except TimeoutError:
            print(machine.console.read_text(errors="replace")[-4000:], file=sys.stderr)
            raise


async def _live(machine: VirtualMachine, worker: Client, datastore: str, tell: Callable[[object], None]) -> None:
    async def soon(look: Callable[[], Awaitable[Any]]) -> Any:
        return await eventually(look, within=PATIENCE, every=1.0)

    await soon(machine.booted)
    tell("cloud-init is through")
    machine.plug()
    tell(await soon(lambda: _ask(worker, "report", "look")))
    databases = [] if datastore == "redis" else ["app"]
    user = {"name": "app", "password": "correct-horse", "host": "%", "databases": databases}
    wanted = {
        "ram": 256,
        "volume_size": 2,
        "databases": [{"name": name} for name in databases],
        "users": [user],
        "root_password": None,
        "overrides": {},
    }
    tell(await soon(lambda: _ask(worker, "prepare", "prepare-1", **wanted)))
    machine.order("block_resize volume 3G")
    await soon(lambda: _ask(worker, "grow", "grow-1", volume_size=3))

    async def grown() -> dict[str, Any]:
        report = await _ask(worker, "report", "look")
        return report if (report.get("volume") or {}).get("size", 0) > 2.5 * GIB else {}

    tell(await soon(grown))
    tell(await soon(lambda: _ask(worker, "stop", "stop-1", release_volume=True)))
    await soon(lambda: _ask(worker, "start", "start-1", ram=256, overrides={}))
    tell("the volume was let go of, mounted again, and the database is started")


async def _ask(worker: Client, verb: str, key: str, **args: Any) -> dict[str, Any]:
    """The facts of a verb that is done; empty while it is not, or nobody answers."""
    asked = msgspec.json.encode(GuestRequest(key=key, args=args, wait=5))
    try:
        answer = await worker.request(guest_subject(ID, verb), asked, timeout=15)
    except (nats.errors.NoRespondersError, nats.errors.TimeoutError):
        return {}
    reply = msgspec.json.decode(answer.data, type=GuestReply)
    if reply.state is GuestState.FAILED and not reply.transient:
        raise RuntimeError(reply.error)
    return {"done": True, **reply.facts} if reply.state is GuestState.DONE else {}


def main() -> None:
    """Boot it, and say how far it came."""
    parser = argparse.ArgumentParser(prog="boot_image", description="Boot an image of a database server.")
    parser.add_argument("disk", type=Path)
    parser.add_argument("datastore")
    parser.add_argument("version")
    parser.add_argument("--accelerator", default="tcg,thread=multi", help="kvm, where this machine can")
    options = parser.parse_args()
    if missing := [tool for tool in ("qemu-system-x86_64", "xorriso") if shutil.which(tool) is None]:
        parser.error(f"install {', '.join(missing)}")
    asyncio.run(boot(options.disk.absolute(), options.datastore, options.version, options.accelerator))


if __name__ == "__main__":
    main()
