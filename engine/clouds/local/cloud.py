"""A cloud on one machine: servers are directories with a guest agent process, volumes directories with a limit.

What it makes outlives the engine: agents go on when it dies, and it takes them up again. It separates users from
each other no better than the processes of one user are separated.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import structlog

from aggregates import effects
from aggregates.catalogue import Catalogue, Datastore, Quota
from aggregates.effects import CloudEffect
from aggregates.resources import ResourceKind
from engine.clouds.local import access, inventory, loopback, placement, processes
from engine.clouds.local.claims import Claim, Claims
from engine.clouds.local.credentials import GuestCredentials
from engine.clouds.local.locks import Lock, Locks
from engine.clouds.local.ports import Ports
from engine.clouds.local.records import Power
from engine.clouds.local.servers import Launcher, Servers
from engine.clouds.local.supervisor import Supervisor
from engine.clouds.local.volumes import Volumes
from engine.clouds.port import (
    Facts,
    FinalError,
    Inventory,
    PayError,
    TransientError,
    check_may_change,
    check_permit,
    refuse_stranger,
)
from engine.clouds.traffic import NOBODYS

_LOCK_TIMEOUT = 60.0
_GRACE = 10.0  # seconds that processes have to end by themselves
_THREADS = 16

log = structlog.get_logger()
Result = TypeVar("Result")


def launch_agent(config: Path, run_as: tuple[int, int] | None) -> Sequence[str]:
    """How the guest agent is started. It gives up root by itself, having read what only root can."""
    argv = [sys.executable, "-P", "-m", "engine.guest", str(config)]
    return argv if run_as is None else [*argv, "--run-as", f"{run_as[0]}:{run_as[1]}"]


class LocalCloud:
    """The cloud in `directory`. Several processes may use one directory: their calls take turns by locks in it.

    `nats_url` and `tls_ca` are what agents are told; `run_as` the user and group of guests, under root nobody's by
    default; `grace` how long processes have to end. `mount`: volumes get file systems of their own where these can be
    mounted and grown (auto), or must be mountable (always), or do not (never) and guest agents alone keep them within
    their size.
    """

    traffic = NOBODYS
    latest_effect = timedelta(0)  # its calls are this process's own work, and end with it

    def __init__(
        self,
        directory: Path,
        *,
        nats_url: str | Callable[[], str],
        tls_ca: Path | None = None,
        credentials: GuestCredentials,
        datastores: tuple[Datastore, ...],
        hosts: tuple[str, ...] = ("host-1", "host-2", "host-3"),
        run_as: tuple[int, int] | None = None,
        mount: Literal["auto", "always", "never"] = "auto",
        launcher: Launcher = launch_agent,
        quota: Quota | None = None,
        grace: float = _GRACE,
        in_flight: int = 64,
    ) -> None:
        self._directory = directory.absolute()
        self._credentials = credentials
        self._datastores = datastores
        self._hosts = hosts
        self._run_as = run_as if run_as is not None else access.unprivileged()
        self._mount = mount
        self._quota = quota if quota is not None else Quota(instances=100, ram=256 * 1024, volumes=10 * 1024)
        self._locks = Locks(self._directory / "locks")
        self._claims = Claims(self._directory / "claims")
        self._ports = Ports(self._directory / "ports", self._claims)
        self._volumes = Volumes(self._directory / "volumes", self._claims, self._run_as)
        self._servers = Servers(
            self._directory / "hosts",
            hosts=hosts,
            claims=self._claims,
            ports=self._ports,
            volumes=self._volumes,
            owner=self._run_as,
            nats_url=(lambda: nats_url) if isinstance(nats_url, str) else nats_url,
            tls_ca=tls_ca,
            launcher=launcher,
            grace=grace,
        )
        self._slots = asyncio.Semaphore(in_flight)
        self._threads: ThreadPoolExecutor | None = None
        self._supervision: asyncio.Task[None] | None = None

    # --- the port -------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Mount what should be mounted, start what should run, keep it so. Raises `FinalError`: what to do."""
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="local-cloud")
        try:
            await self._apart(self._locks.prepare)
            await self._under("", self._prepare)
            for volume in await self._apart(self._volumes.all):
                await self._bring_up(volume.id, volume.name)
        except OSError as error:
            await self.close()
            raise FinalError("cloud_error", f"the local cloud in {self._directory} cannot start: {error}") from error
        except BaseException:
            await self.close()
            raise
        self._supervision = asyncio.create_task(
            Supervisor(lambda: self._apart(self._unsettled), self._settle).run(), name="local-cloud-supervisor"
        )

    async def close(self) -> None:
        """Let calls that run come to their end. Servers go on running."""
        if self._supervision is not None:
            self._supervision.cancel()
            await asyncio.gather(self._supervision, return_exceptions=True)
            self._supervision = None
        if self._threads is not None:
            threads, self._threads = self._threads, None
            await asyncio.to_thread(threads.shutdown)

    async def catalogue(self) -> Catalogue:
        """What this cloud offers."""
        return Catalogue(
            flavors=placement.FLAVORS,
            datastores=self._datastores,
            availability_zones=tuple(placement.zones(self._hosts)),
            volume_types=("local",),
            hosts=self._hosts,
            honours=frozenset(),
            max_volume_size=1024,
            quota=self._quota,
        )

    async def inventory(self) -> Inventory:
        """All that it holds; what is unfinished is found again, and finished, by whoever ensures it."""
        try:
            found = await self._apart(lambda: inventory.resources(self._servers, self._ports, self._volumes))
        except (OSError, msgspec.MsgspecError) as error:
            raise TransientError("cloud_error", f"the inventory of the local cloud: {error}") from error
        return Inventory(resources=found)

    async def pay(self, effect: CloudEffect, key: str) -> Facts:
        """Make the effect true. Raises `TransientError` or `FinalError`. A cancelled call that has begun goes on."""
        try:
            async with self._slots:
                return await self._pay(effect, key)
        except PayError:
            raise
        except (OSError, msgspec.MsgspecError) as error:
            raise TransientError(
                "cloud_error", f"{effect.type_name} for instance {effect.instance_id}: {error}"
            ) from error

    # --- beside the port ------------------------------------------------------------------------------------------

    async def contents(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Everything there is, by kind and id, unfinished things included; empty when nothing is left: for tests."""
        return await self._apart(self._contents)

    # --- underneath -----------------------------------------------------------------------------------------------

    async def _pay(self, effect: CloudEffect, key: str) -> Facts:
        match effect:
            case effects.EnsureCredentials():
                await self._credentials.ensure(effect.instance_id)
                return {}
            case effects.CredentialsAbsent():
                check_may_change()  # whether they are accepted is not told
                await self._credentials.revoke(effect.instance_id)
                return {}
            case effects.EnsureServer():
                seed = await self._credentials.ensure(effect.instance_id)
                return await self._under(effect.name, lambda lock: self._ensure_server(effect, seed, lock))
        return await self._under(
            await self._apart(lambda: self._name(effect)), lambda lock: self._act(effect, key, lock)
        )

    def _name(self, effect: CloudEffect) -> str:
        """The name under whose lock the effect is paid: all that bears one name changes in turn."""
        match effect:
            case (
                effects.EnsurePort(name=name)
                | effects.PortAbsent(name=name)
                | effects.EnsureVolume(name=name)
                | effects.VolumeAbsent(name=name)
                | effects.SurplusAbsent(name=name)
                | effects.ServerAbsent(name=name)
                | effects.ResourceAbsent(name=name)
            ):
                return name
            case effects.ExtendVolume():
                return self._claimed(Claim.VOLUME, effect.volume_id)
            case (
                effects.EnsureAttachment()
                | effects.RebootServer()
                | effects.RebuildServer()
                | effects.ResizeServer()
                | effects.MigrateServer()
                | effects.ConfirmServer()
                | effects.RevertServer()
                | effects.StopServer()
                | effects.StartServer()
            ):
                return self._claimed(Claim.SERVER, effect.server_id)
        raise FinalError("unsupported", f"the local cloud does not know {effect.type_name}")

    def _claimed(self, kind: Claim, owner: str) -> str:
        """Its name, from its claim: that lies still while a server moves from host to host."""
        name = self._claims.name(kind, owner)
        if name is None:
            raise FinalError("not_found", f"there is no {kind} {owner}")
        return name

    def _act(self, effect: CloudEffect, key: str, lock: Lock) -> Facts:
        match effect:
            case effects.EnsurePort():
                port = self._ports.ensure(effect)
                return {"port_id": port.id, "address": port.address}
            case effects.EnsureVolume():
                return {"volume_id": self._volumes.ensure(effect, lock).id}
            case effects.ExtendVolume():
                self._volumes.extend(effect, lock)
            case effects.PortAbsent():
                self._ports.remove(effect)
            case effects.VolumeAbsent():
                self._volumes.remove(effect, lock)
            case effects.ServerAbsent():
                self._servers.remove(effect)
            case effects.ResourceAbsent():
                self._remove(effect, lock)
            case effects.SurplusAbsent():
                return {"removed": ()}  # a name is claimed by one volume at a time, so there is never another
            case _:
                return self._act_on_server(effect, key, lock)
        return {}

    def _act_on_server(self, effect: CloudEffect, key: str, lock: Lock) -> Facts:
        match effect:
            case effects.EnsureAttachment():
                self._servers.attach(effect.server_id, effect.volume_id, lock)
            case effects.RebootServer():
                self._servers.reboot(effect.server_id, key, hard=effect.hard, lock=lock)
            case effects.RebuildServer():
                self._servers.rebuild(effect, key, lock)
            case effects.ResizeServer():
                return {"new_host": self._servers.resize(effect, lock)}
            case effects.MigrateServer():
                return {"new_host": self._servers.migrate(effect, lock)}
            case effects.ConfirmServer():
                self._servers.confirm(effect.server_id, lock)
            case effects.RevertServer():
                self._servers.revert(effect, lock)
            case effects.StopServer():
                self._servers.turn(effect.server_id, Power.SHUTOFF, lock)
            case effects.StartServer():
                self._servers.turn(effect.server_id, Power.ACTIVE, lock)
        return {}

    def _ensure_server(self, effect: effects.EnsureServer, seed: Path | None, lock: Lock) -> Facts:
        drive = self._servers.ensure(effect, seed.read_bytes() if seed is not None else None, lock)
        return {"server_id": drive.directory.name, "host": drive.host}

    async def _apart(self, work: Callable[[], Result]) -> Result:
        """Do blocking work in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._running(), work)

    async def _under(self, name: str, work: Callable[[Lock], Result]) -> Result:
        """Do blocking work in a thread under a lock, which is held until the work ends, waited for or not."""
        threads = self._running()
        lock = await self._locks.take(name, _LOCK_TIMEOUT)
        return await self._with(lock, work, threads)

    async def _with(self, lock: Lock, work: Callable[[Lock], Result], threads: ThreadPoolExecutor) -> Result:
        try:
            check_permit()
            future = threads.submit(copy_context().run, work, lock)
        except BaseException:
            lock.release()
            raise
        future.add_done_callback(lambda _: lock.release())
        return await asyncio.wrap_future(future)

    def _running(self) -> ThreadPoolExecutor:
        if self._threads is None:
            raise TransientError("cloud_error", "the local cloud is not started, or is closed")
        return self._threads

    def _prepare(self, lock: Lock) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._directory.chmod(0o711)
        access.check(self._directory, self._run_as)
        self._claims.prepare()
        self._ports.prepare()
        self._volumes.prepare()
        self._servers.prepare()
        if self._mount == "never":
            return
        able = loopback.probe(self._directory, lock)
        if self._mount == "always" and able.mounts is not None:
            raise FinalError("cannot_mount", f"volumes are to be mounted, which does not work here: {able.mounts}")
        self._volumes.mounting = able.grows is None or self._mount == "always"
        if not self._volumes.mounting:
            log.warning("volumes_are_plain_directories", reason=able.grows, limit="kept by guest agents alone")
        elif able.grows is not None:
            log.warning("volumes_cannot_grow", reason=able.grows)

    async def _bring_up(self, volume_id: str, name: str) -> None:
        def bring_up(lock: Lock) -> None:
            volume = self._volumes.find(volume_id)
            if volume is not None:
                self._volumes.bring_up(volume, lock)

        try:
            await self._under(name, bring_up)
        except (PayError, OSError) as error:
            log.warning("volume_not_brought_up", volume_id=volume_id, error=str(error))

    def _unsettled(self) -> list[str]:
        processes.reap()
        found = []
        for drive in self._servers.drives():
            server = drive.server()
            if server is not None and not self._servers.is_settled(drive, server):
                found.append(server.id)
        return found

    async def _settle(self, server_id: str) -> bool:
        """Bring the server to what it should be. Returns whether it was done, for a call on it goes first."""
        drive = await self._apart(lambda: self._servers.find(server_id))
        server = drive.server() if drive is not None else None
        if server is None:
            return False
        lock = self._locks.attempt(server.name)
        if lock is None:
            return False
        return await self._with(lock, lambda held: self._settle_held(server_id, held), self._running())

    def _settle_held(self, server_id: str, lock: Lock) -> bool:
        drive = self._servers.find(server_id)
        server = drive.server() if drive is not None else None
        if drive is None or server is None:
            return False
        self._servers.settle(drive, server, lock)
        return True

    def _remove(self, effect: effects.ResourceAbsent, lock: Lock) -> None:
        """A name is claimed by one resource of a kind at a time, so what goes by this id goes by its name."""
        kind, unwanted = Claim(effect.kind), effect.resource_id
        name = self._claims.name(kind, unwanted)
        if name is None:
            return
        refuse_stranger(effect, name)
        match effect.kind:
            case ResourceKind.SERVER:
                self._servers.remove(
                    effects.ServerAbsent(instance_id=effect.instance_id, name=name, server_id=unwanted)
                )
            case ResourceKind.PORT:
                self._ports.remove(effects.PortAbsent(instance_id=effect.instance_id, name=name, port_id=unwanted))
            case ResourceKind.VOLUME:
                self._volumes.remove(
                    effects.VolumeAbsent(instance_id=effect.instance_id, name=name, volume_id=unwanted), lock
                )

    def _contents(self) -> dict[str, dict[str, dict[str, Any]]]:
        servers: dict[str, dict[str, Any]] = {}
        for drive in self._servers.drives():
            server = drive.server()
            about = {"name": None, "host": drive.host, "status": "UNFINISHED"}
            if server is not None:
                about = msgspec.to_builtins(server)
                about |= {"host": drive.host, "status": self._servers.status(server)}
                about["directory"] = str(drive.directory)
            servers[drive.directory.name] = about
        volumes: dict[str, dict[str, Any]] = {
            volume_id: {"name": None, "size": None} for volume_id in self._volumes.unfinished()
        }
        volumes |= {
            volume.id: msgspec.to_builtins(volume) | {"path": str(self._volumes.file_system(volume.id))}
            for volume in self._volumes.all()
        }
        return {
            "ports": {port.id: msgspec.to_builtins(port) for port in self._ports.all()},
            "volumes": volumes,
            "servers": servers,
        }
