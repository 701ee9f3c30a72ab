"""Servers: directories on hosts, each with a guest agent that runs while the server is meant to be ACTIVE.

A server without a volume has nothing to run yet: its agent starts when the volume is attached. Every change is
recorded before it is carried out and `settle` carries out what is recorded, so that what a death interrupts is finished
by the next call or by the supervisor, whichever comes first.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from msgspec.structs import replace

from aggregates.effects import EnsureServer, MigrateServer, RebuildServer, ResizeServer, RevertServer, ServerAbsent
from engine.clouds.local import placement, processes, records
from engine.clouds.local.claims import Claim, Claims
from engine.clouds.local.drive import Drive
from engine.clouds.local.locks import Lock
from engine.clouds.local.ports import Ports
from engine.clouds.local.records import Pending, Power, Process, Server
from engine.clouds.local.volumes import Volumes
from engine.clouds.port import FinalError, check_may_change

Launcher = Callable[[Path, tuple[int, int] | None], Sequence[str]]


class Servers:
    """The servers of one local cloud. Every call that changes one is made under the lock of its name."""

    def __init__(
        self,
        directory: Path,
        *,
        hosts: Sequence[str],
        claims: Claims,
        ports: Ports,
        volumes: Volumes,
        owner: tuple[int, int] | None,
        nats_url: Callable[[], str],
        tls_ca: Path | None,
        launcher: Launcher,
        grace: float,
    ) -> None:
        self._directory = directory
        self._hosts = tuple(hosts)
        self._claims = claims
        self._ports = ports
        self._volumes = volumes
        self._owner = owner
        self._nats_url = nats_url
        self._tls_ca = tls_ca
        self._launcher = launcher
        self._grace = grace

    def prepare(self) -> None:
        """Make the hosts; guests pass through them."""
        for host in self._hosts:
            (self._directory / host / "servers").mkdir(parents=True, exist_ok=True)
            for passed in (self._directory, self._directory / host, self._directory / host / "servers"):
                passed.chmod(0o711)

    # --- looking --------------------------------------------------------------------------------------------------

    def drives(self) -> Iterator[Drive]:
        """The directory of every server, finished or not, also on hosts that are no longer given."""
        return (Drive(path, self._owner) for path in self._directory.glob("*/servers/[!.]*"))

    def find(self, server_id: str) -> Drive | None:
        """The directory of the server of this id."""
        return next((drive for drive in self.drives() if drive.directory.name == server_id), None)

    def get(self, server_id: str) -> tuple[Drive, Server]:
        """The server of this id. Raises `FinalError`."""
        drive = self.find(server_id)
        server = drive.server() if drive is not None else None
        if drive is None or server is None or server.power is Power.DELETED:
            raise FinalError("not_found", f"there is no server {server_id}")
        return drive, server

    def status(self, server: Server) -> str:
        """The server's state in Nova's words."""
        if server.power is Power.ACTIVE and server.pending is not None:
            return "VERIFY_RESIZE"
        return str(server.power)

    # --- changing -------------------------------------------------------------------------------------------------

    def ensure(self, wanted: EnsureServer, seed: bytes | None, lock: Lock) -> Drive:
        """The server of this name with that port, ACTIVE; made if there is none."""
        placement.check_flavor(wanted.flavor_id)
        port = self._ports.get(wanted.port_id)
        server_id = self._claims.take(Claim.SERVER, wanted.name, str(uuid4()))
        drive = self.find(server_id)
        server = drive.server() if drive is not None else None
        if server is not None and server.power is Power.DELETED:
            self._unmake(server_id)
            return self.ensure(wanted, seed, lock)
        holder = self._claims.take(Claim.NIC, port.id, server_id)
        if holder != server_id or (server is not None and server.port_id != port.id):
            self._give_up(server_id, server, port.id)
            raise FinalError(
                "conflict", f"server {wanted.name} cannot have port {port.id}: server {holder} or another port is bound"
            )
        if drive is None:
            drive = self._drive(self._choose(wanted.availability_zone), server_id)
        if server is None:
            drive.prepare(seed)
            server = Server(
                id=server_id,
                name=wanted.name,
                project=wanted.project,
                instance_id=wanted.instance_id,
                flavor_id=wanted.flavor_id,
                port_id=port.id,
                address=port.address,
                datastore=wanted.datastore,
                datastore_version=wanted.datastore_version,
            )
            drive.write(server)
        self._bring(drive, server, lock, power=Power.ACTIVE)
        return drive

    def attach(self, server_id: str, volume_id: str, lock: Lock) -> None:
        """The server has the volume."""
        volume = self._volumes.get(volume_id)
        drive, server = self.get(server_id)
        if server.volume_id not in (None, volume_id):
            raise FinalError("conflict", f"server {server_id} has volume {server.volume_id} already")
        if server.volume_id is None:
            check_may_change()
        holder = self._claims.take(Claim.ATTACHMENT, volume_id, server_id)
        if holder != server_id:
            raise FinalError("conflict", f"volume {volume_id} is attached to server {holder}")
        self._bring(drive, server, lock, volume_id=volume.id)

    def reboot(self, server_id: str, key: str, *, hard: bool, lock: Lock) -> None:
        """The server was rebooted under this key, and is ACTIVE."""
        drive, server = self.get(server_id)
        if server.rebooted_under != key:
            server = replace(server, rebooted_under=key, restart="hard" if hard else "soft")
        self._bring(drive, server, lock, power=Power.ACTIVE)

    def rebuild(self, wanted: RebuildServer, key: str, lock: Lock) -> None:
        """The server was made anew under this key, and is ACTIVE; its volume is as it was."""
        if wanted.image_id is not None:
            raise FinalError("unsupported", "servers of the local cloud are made from no image; leave image_id out")
        drive, server = self.get(wanted.server_id)
        if server.rebuilt_under != key:
            server = replace(server, rebuilt_under=key, remake=True)
        self._bring(drive, server, lock, power=Power.ACTIVE)

    def turn(self, server_id: str, power: Power, lock: Lock) -> None:
        """The server is ACTIVE or SHUTOFF."""
        drive, server = self.get(server_id)
        self._bring(drive, server, lock, power=power)

    def resize(self, wanted: ResizeServer, lock: Lock) -> str:
        """The server has the flavor and awaits confirmation. Returns its host."""
        placement.check_flavor(wanted.flavor_id)
        drive, server = self.get(wanted.server_id)
        if server.pending is None or server.flavor_id != wanted.flavor_id:
            before = server.pending or Pending(flavor_id=server.flavor_id, host=drive.host)
            server = replace(server, flavor_id=wanted.flavor_id, pending=before, restart="soft")
        self._bring(drive, server, lock, power=Power.ACTIVE)
        return drive.host

    def migrate(self, wanted: MigrateServer, lock: Lock) -> str:
        """The server is on another host than `from_host` and awaits confirmation. Returns that host."""
        drive, server = self.get(wanted.server_id)
        if wanted.host is not None or drive.host == wanted.from_host:
            target = placement.elsewhere(self._hosts, self._load(), wanted.from_host, wanted.host)
        else:
            target = drive.host
        if server.pending is None:
            server = replace(server, pending=Pending(flavor_id=server.flavor_id, host=wanted.from_host))
        drive, server = self._move(drive, server, target)
        self._bring(drive, server, lock, power=Power.ACTIVE)
        return target

    def confirm(self, server_id: str, lock: Lock) -> None:
        """No resize or migration awaits confirmation."""
        drive, server = self.get(server_id)
        self._bring(drive, server, lock, pending=None)

    def revert(self, wanted: RevertServer, lock: Lock) -> None:
        """The server has this flavor, is on this host, and nothing awaits confirmation."""
        placement.check_flavor(wanted.flavor_id)
        placement.check_host(wanted.host, self._hosts)
        drive, server = self.get(wanted.server_id)
        if server.flavor_id != wanted.flavor_id:
            server = replace(server, flavor_id=wanted.flavor_id, restart="soft")
        drive, server = self._move(drive, server, wanted.host)
        self._bring(drive, server, lock, power=Power.ACTIVE, pending=None)

    def remove(self, unwanted: ServerAbsent) -> None:
        """No server of this name or id is left, nor any process of it."""
        ids = {unwanted.server_id, self._claims.holder(Claim.SERVER, unwanted.name)} - {None, ""}
        for server_id in map(str, ids):
            if self._claims.name(Claim.SERVER, server_id) is not None:
                check_may_change()
            self._unmake(server_id)

    def settle(self, drive: Drive, server: Server, lock: Lock) -> None:
        """Carry out what the record says."""
        if server.power is Power.SHUTOFF:
            self._end(drive, server)
        if server.power is not Power.ACTIVE:
            return
        if server.restart is not None or server.remake:
            self._end(drive, server)
            if server.remake:
                drive.clear()
            server = drive.write(replace(server, restart=None, remake=False))
        if server.volume_id is not None and not self._serves(drive.process()):
            self._start(drive, server, server.volume_id, lock)

    def is_settled(self, drive: Drive, server: Server) -> bool:
        """Whether nothing is left for `settle` to do, as far as a glance shows."""
        if server.power is Power.DELETED:
            return True
        if server.power is Power.SHUTOFF:
            return not processes.alive(drive.process())
        return (
            server.restart is None and not server.remake and (server.volume_id is None or self._serves(drive.process()))
        )

    # --- underneath -----------------------------------------------------------------------------------------------

    def _serves(self, process: Process | None) -> bool:
        """Whether the agent runs and knows where the broker is."""
        return process is not None and process.nats_url == self._nats_url() and processes.alive(process)

    def _drive(self, host: str, server_id: str) -> Drive:
        return Drive(self._directory / host / "servers" / server_id, self._owner)

    def _load(self) -> Counter[str]:
        return Counter(drive.host for drive in self.drives())

    def _choose(self, zone: str | None) -> str:
        return placement.choose(self._hosts, self._load(), zone)

    def _bring(self, drive: Drive, server: Server, lock: Lock, **changes: Any) -> None:
        """Record the changes, and carry out what is recorded."""
        changed = replace(server, **changes)
        if changed != drive.server():
            check_may_change()
            drive.write(changed)
        self.settle(drive, changed, lock)

    def _move(self, drive: Drive, server: Server, target: str) -> tuple[Drive, Server]:
        """The server's directory is on the target, its processes ended; it runs again when it is settled."""
        if drive.host == target:
            return drive, server
        check_may_change()
        drive.write(server)
        self._end(drive, server)
        moved = self._drive(target, server.id)
        drive.directory.rename(moved.directory)
        records.sync_directory(moved.directory.parent)
        records.sync_directory(drive.directory.parent)
        return moved, server

    def _start(self, drive: Drive, server: Server, volume_id: str, lock: Lock) -> None:
        """Agents ended here are one of an old broker address, and one whose starter died before he recorded it."""
        for stray in processes.agents(server.id, drive.config):
            processes.kill(stray)
        self._volumes.bring_up(self._volumes.get(volume_id), lock)
        nats_url = self._nats_url()
        drive.tell(server, self._volumes.file_system(volume_id), nats_url, self._tls_ca)
        pid, created = processes.spawn(self._launcher(drive.config, self._owner), server.id, drive.log)
        drive.write_process(Process(pid=pid, created=created, nats_url=nats_url))

    def _end(self, drive: Drive, server: Server) -> None:
        places = [drive.directory]
        if server.volume_id is not None:
            places.append(self._volumes.file_system(server.volume_id))
        processes.end(server.id, places, grace=0.0 if server.restart == "hard" else self._grace)

    def _give_up(self, server_id: str, server: Server | None, port_id: str) -> None:
        """Keep no claims for a server that is not made, nor for a port that it does not get."""
        if server is None:
            self._unmake(server_id)
        elif server.port_id != port_id:
            self._claims.release(Claim.NIC, server_id, but=server.port_id)

    def _unmake(self, server_id: str) -> None:
        """The name is released last: until then an interrupted removal is found again by it."""
        drive = self.find(server_id)
        server = drive.server() if drive is not None else None
        if drive is not None and server is not None:
            self._end(drive, drive.write(replace(server, power=Power.DELETED)))
        self._claims.release(Claim.NIC, server_id)
        self._claims.release(Claim.ATTACHMENT, server_id)
        if drive is not None:
            shutil.rmtree(drive.directory)
            records.sync_directory(drive.directory.parent)
        self._claims.release(Claim.SERVER, server_id)
