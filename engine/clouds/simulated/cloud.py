"""The adapter of the simulated cloud: it looks, changes only what is missing, and waits, as adapters of real clouds do.

At most one mutating call goes out for each resource and payment, each call has a deadline, and no more than `in_flight`
are open at once. What a lost answer hides is seen by the next payment's look, or by a fence's 409.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from datetime import timedelta
from typing import Any, TypeVar
from uuid import UUID, uuid4

from aggregates import effects
from aggregates.catalogue import Catalogue
from aggregates.effects import CloudEffect
from engine import crash_points
from engine.clock import monotonic
from engine.clouds.errors import sort_error
from engine.clouds.fences import port_mac
from engine.clouds.poller import Poller
from engine.clouds.port import (
    Facts,
    FinalError,
    PayError,
    TransientError,
    UnknownOutcomeError,
    check_alone,
    check_may_change,
    check_permit,
    knows,
)
from engine.clouds.simulated.api import CATALOGUE, CloudApi
from engine.clouds.simulated.failures import Failures
from engine.clouds.simulated.faults import LATEST, STALEST, Call
from engine.clouds.simulated.resources import Action, Api, Entry, Port, Server, Volume
from engine.clouds.turns import Turns

DEADLINE = 30.0  # seconds that a call may take
BUILT_WITHIN = 600.0  # seconds that the cloud may work on a server or a volume
IN_FLIGHT = 64
# A call may act so late, and lists may not show it for so long.
LATEST_EFFECT = timedelta(seconds=LATEST + STALEST)

Waited = TypeVar("Waited", Server, Volume)


class SimulatedCloud:
    """A cloud behind `api`; without one, a cloud of its own in memory, made with what `CloudApi` takes.

    `caller`: who asks, as the far side's ledger shows it.
    """

    def __init__(
        self,
        *,
        api: Api | None = None,
        catalogue: Catalogue = CATALOGUE,
        latency: float = 0.0,
        on_call: Callable[[Entry], None] | None = None,
        new_id: Callable[[], UUID] = uuid4,
        latest_effect: timedelta = LATEST_EFFECT,
        deadline: float = DEADLINE,
        built_within: float = BUILT_WITHIN,
        in_flight: int = IN_FLIGHT,
        caller: str = "",
    ) -> None:
        self.api: Api = api or CloudApi(catalogue=catalogue, latency=latency, on_call=on_call, new_id=new_id)
        self.latest_effect = latest_effect
        self._deadline = deadline
        self._built_within = built_within
        self._caller = caller
        self._slots = asyncio.Semaphore(in_flight)
        self._failures = Failures()
        self._offered: Catalogue | None = None
        self._making: Turns[str] = Turns()
        self._servers: Poller[Server] = Poller(self._look_at_servers)
        self._volumes: Poller[Volume] = Poller(self._look_at_volumes)

    async def start(self) -> None:
        """Nothing is to be taken up."""

    async def close(self) -> None:
        """Stop waiting, and let go of the API."""
        self._servers.close()
        self._volumes.close()
        await self.api.close()

    async def catalogue(self) -> Catalogue:
        """What the cloud offers now."""
        offered: Catalogue = await self._call("get_catalogue")
        self._offered = offered
        return offered

    async def inventory(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Everything there is, by kind and id."""
        return await self.api.inventory()

    @property
    def ledger(self) -> list[Entry]:
        """What a cloud in this process carried out."""
        if not isinstance(self.api, CloudApi):
            raise TypeError("the ledger is in another process: ask its API")
        return self.api.ledger

    def fail(self, effect_name: str, error: PayError, times: int = 1) -> None:
        """The next so many payments of the effect raise the error and make no call."""
        self._failures.plan(effect_name, error, times)

    async def pay(self, effect: CloudEffect, key: str) -> Facts:  # noqa: PLR0911 - a table
        """Make the effect true. Raises `TransientError` or `FinalError`."""
        self._failures.raise_next(effect.type_name)
        match effect:
            case effects.EnsureCredentials() | effects.CredentialsAbsent():
                return await self._pay_credentials(effect, key)
            case effects.EnsurePort():
                return await self._ensure_port(effect, key)
            case effects.PortAbsent():
                return await self._port_absent(effect, key)
            case effects.EnsureVolume():
                async with self._turn(effect.name):
                    return await self._ensure_volume(effect, key)
            case effects.ExtendVolume() | effects.EnsureAttachment() | effects.VolumeAbsent():
                return await self._change_volume(effect, key)
            case effects.SurplusAbsent():
                return await self._surplus_absent(effect, key)
            case effects.EnsureServer():
                return await self._ensure_server(effect, key)
            case effects.ServerAbsent():
                return await self._server_absent(effect, key)
        return await self._change_server(effect, key)

    # --- calls ----------------------------------------------------------------------------------------------------

    async def _call(self, call: str, /, **args: Any) -> Any:
        """A call that only looks."""
        return await self._send(Call(name=call, args=args, caller=self._caller), changes=False)

    async def _change(self, key: str, call: str, /, **args: Any) -> Any:
        """A call that makes or changes something."""
        check_may_change()
        return await self._send(Call(name=call, args=args, request_id=key, caller=self._caller), changes=True)

    async def _send(self, call: Call, *, changes: bool) -> Any:
        async with self._slots:
            check_permit()
            crash_points.reach("call", call.name)
            try:
                async with asyncio.timeout(self._deadline):
                    answer = await self.api.call(call)
            except Exception as error:
                crash_points.reach("answer", call.name)
                raise sort_error(call.name, error, changes=changes) from error
            crash_points.reach("answer", call.name)
            return answer

    def _turn(self, name: str) -> AbstractAsyncContextManager[None]:
        """Nothing at the cloud keeps two of one name from being made, so within a process they take turns."""
        return self._making.take(name)

    # --- waiting --------------------------------------------------------------------------------------------------

    async def _look_at_servers(self) -> Mapping[str, Server]:
        return {server.id: server for server in await self._call("list_servers")}

    async def _look_at_volumes(self) -> Mapping[str, Volume]:
        return {volume.id: volume for volume in await self._call("list_volumes")}

    async def _until(
        self, what: str, poller: Poller[Waited], now: Waited, resource_id: str, reached: Callable[[Waited], bool]
    ) -> Waited:
        """The resource once it is so; at once when it is so now. Raises when it is gone, broken, or late.

        A list, which may be old, only says when to look; what counts is the resource itself.
        """

        def over(found: Waited | None) -> bool:
            return found is None or found.status.lower() == "error" or reached(found)

        found: Waited | None = now
        async with self._patience(f"{what} {resource_id} was not ready"):
            while not over(found):
                await poller.wait(resource_id, over)
                found = await self._present(f"get_{what}", resource_id)
        if found is None:
            raise TransientError("not_found", f"{what} {resource_id} has gone while it was waited for")
        if found.status.lower() == "error":
            raise FinalError("cloud_error", f"{what} {resource_id} is in status {found.status}")
        return found

    async def _until_gone(self, what: str, poller: Poller[Waited], resource_id: str) -> None:
        async with self._patience(f"{what} {resource_id} was not gone"):
            while await self._present(f"get_{what}", resource_id) is not None:
                await poller.wait(resource_id, lambda found: found is None)

    @asynccontextmanager
    async def _patience(self, otherwise: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._built_within):
                yield
        except TimeoutError:
            raise TransientError("cloud_timeout", f"{otherwise} within {self._built_within:.0f} s") from None

    async def _idle_server(self, server_id: str, now: Server | None = None) -> Server:
        """The server once the cloud does nothing with it."""
        server = now or await self._call("get_server", id=server_id)
        return await self._until("server", self._servers, server, server_id, lambda found: found.task is None)

    # --- ports and credentials ------------------------------------------------------------------------------------

    async def _ensure_port(self, effect: effects.EnsurePort, key: str) -> Facts:
        port = await self._port(effect.name)
        if port is None:
            try:
                port = await self._change(key, "create_port", name=effect.name, mac=port_mac(effect.instance_id))
            except TransientError as error:
                if error.code != "conflict":
                    raise
                # Its MAC address is taken: by the port that a call before has made, which a list may show only later.
                port = await self._port(effect.name)
                if port is None:
                    raise
        return {"port_id": port.id, "address": port.address}

    async def _port(self, name: str) -> Port | None:
        found: list[Port] = await self._call("list_ports", name=name)
        return found[0] if found else None

    async def _port_absent(self, effect: effects.PortAbsent, key: str) -> Facts:
        for port_id in await self._ids("list_ports", effect.name, effect.port_id):
            port = await self._present("get_port", port_id)
            if port is not None:
                _refuse_in_use("port", port_id, port.server_id)
                await self._remove(key, "delete_port", port_id)
        return {}

    async def _pay_credentials(self, effect: effects.EnsureCredentials | effects.CredentialsAbsent, key: str) -> Facts:
        name = str(effect.instance_id)
        there = await self._present("get_credential", name) is not None
        if there and isinstance(effect, effects.CredentialsAbsent):
            await self._remove(key, "delete_credential", name)
        elif not there and isinstance(effect, effects.EnsureCredentials):
            await self._change(key, "create_credential", name=name)
        return {}

    # --- volumes --------------------------------------------------------------------------------------------------

    async def _ensure_volume(self, effect: effects.EnsureVolume, key: str) -> Facts:
        found: list[Volume] = await self._call("list_volumes", name=effect.name)
        volume = next((each for each in found if each.status != "deleting"), None)
        made = volume is None
        if volume is None:
            volume = await self._change(
                key,
                "create_volume",
                name=effect.name,
                size=effect.size,
                volume_type=effect.volume_type,
                availability_zone=effect.availability_zone,
            )
        elif volume.size < effect.size:
            raise FinalError("conflict", f"volume {effect.name} has {volume.size} GiB already, not {effect.size}")
        knows(volume_id=volume.id)
        with _unrecorded(made):
            ready = await self._until(
                "volume", self._volumes, volume, volume.id, lambda each: each.status in ("available", "in-use")
            )
        return {"volume_id": ready.id}

    async def _change_volume(
        self, effect: effects.ExtendVolume | effects.EnsureAttachment | effects.VolumeAbsent, key: str
    ) -> Facts:
        if isinstance(effect, effects.VolumeAbsent):
            for volume_id in await self._ids("list_volumes", effect.name, effect.volume_id):
                await self._remove_volume(volume_id, key)
            return {}
        volume: Volume = await self._call("get_volume", id=effect.volume_id)
        if isinstance(effect, effects.ExtendVolume):
            if volume.size < effect.size:
                await self._change(key, "extend_volume", id=volume.id, size=effect.size)
            return {}
        if volume.server_id not in (None, effect.server_id):
            raise FinalError("conflict", f"volume {volume.id} is attached to server {volume.server_id}")
        if volume.server_id is None:
            await self._change(key, "attach_volume", server_id=effect.server_id, volume_id=volume.id)
        return {}

    async def _surplus_absent(self, effect: effects.SurplusAbsent, key: str) -> Facts:
        surplus = [each for each in await self._ids("list_volumes", effect.name, None) if each != effect.keep]
        for volume_id in surplus:
            await self._remove_volume(volume_id, key)
        return {"removed": surplus}

    async def _remove_volume(self, volume_id: str, key: str) -> None:
        volume: Volume | None = await self._present("get_volume", volume_id)
        if volume is None:
            return
        _refuse_in_use("volume", volume_id, volume.server_id)
        if volume.status != "deleting":
            await self._remove(key, "delete_volume", volume_id)
        await self._until_gone("volume", self._volumes, volume_id)

    # --- servers --------------------------------------------------------------------------------------------------

    async def _ensure_server(self, effect: effects.EnsureServer, key: str) -> Facts:
        found: list[Server] = await self._call("list_servers", name=effect.name)
        server = found[0] if found else None
        made = server is None
        if server is None:
            try:
                server = await self._change(
                    key,
                    "create_server",
                    name=effect.name,
                    flavor_id=effect.flavor_id,
                    port_id=effect.port_id,
                    availability_zone=effect.availability_zone,
                )
            except TransientError as error:
                if error.code != "conflict":
                    raise
                server = await self._holder(effect)
                if server is None:
                    raise
        if server.port_id != effect.port_id:
            raise FinalError("conflict", f"server {effect.name} has port {server.port_id}, not {effect.port_id}")
        knows(server_id=server.id)
        with _unrecorded(made):
            ready = await self._until("server", self._servers, server, server.id, lambda each: each.status == "ACTIVE")
        return {"server_id": ready.id, "host": ready.host}

    async def _holder(self, effect: effects.EnsureServer) -> Server | None:
        """The server that has the port, when it is ours: a call before has made it."""
        port: Port | None = await self._present("get_port", effect.port_id)
        if port is None or port.server_id is None:
            return None
        server: Server | None = await self._present("get_server", port.server_id)
        if server is not None and server.name != effect.name:
            raise FinalError("conflict", f"server {effect.name} cannot have port {port.id}: {server.name} has it")
        return server

    async def _server_absent(self, effect: effects.ServerAbsent, key: str) -> Facts:
        for server_id in await self._ids("list_servers", effect.name, effect.server_id):
            server: Server | None = await self._present("get_server", server_id)
            if server is None:
                continue
            if server.task != "deleting":
                await self._remove(key, "delete_server", server_id)
            await self._until_gone("server", self._servers, server_id)
        return {}

    async def _change_server(self, effect: CloudEffect, key: str) -> Facts:
        match effect:
            case effects.RebootServer():
                await self._reboot(effect, key)
            case effects.ResizeServer():
                await self._resize(effect, key)
            case effects.MigrateServer():
                return await self._migrate(effect, key)
            case effects.ConfirmServer():
                if (await self._idle_server(effect.server_id)).status == "VERIFY_RESIZE":
                    await self._act(key, "confirm_server", effect.server_id)
            case effects.RevertServer():
                await self._revert(effect, key)
            case effects.StartServer():
                if (await self._idle_server(effect.server_id)).status != "ACTIVE":
                    await self._act(key, "start_server", effect.server_id)
            case effects.StopServer():
                if (await self._idle_server(effect.server_id)).status != "SHUTOFF":
                    await self._act(key, "stop_server", effect.server_id)
            case _:
                raise FinalError("unsupported", f"the simulated cloud does not know {effect.type_name}")
        return {}

    async def _act(self, key: str, name: str, server_id: str, **args: Any) -> Server:
        """The server once the cloud has done what it was told.

        Nothing fences these calls: one that is carried out late would undo what came after it. So a call whose answer
        is missing is not followed by another before it can act no more.
        """
        check_alone()
        begun = monotonic()
        try:
            await self._change(key, name, id=server_id, **args)
        except UnknownOutcomeError as error:
            passed = monotonic() - begun
            error.retry_after = max(error.retry_after, self.latest_effect.total_seconds() - passed)
            raise
        try:
            return await self._idle_server(server_id)
        except TransientError as error:
            # It was told, and may be doing it still.
            raise UnknownOutcomeError(error.code, error.message, retry_after=error.retry_after) from error

    async def _reboot(self, effect: effects.RebootServer, key: str) -> None:
        server = await self._idle_server(effect.server_id)
        done: list[Action] = await self._call("list_actions", server_id=server.id)
        if not any(each.action == "reboot" and each.request_id == key for each in done):
            server = await self._act(key, "reboot_server", server.id, hard=effect.hard)
        if server.status != "ACTIVE":
            raise TransientError("cloud_error", f"server {server.id} is {server.status} after its reboot")

    async def _resize(self, effect: effects.ResizeServer, key: str) -> None:
        server = await self._idle_server(effect.server_id)
        if server.flavor_id != effect.flavor_id:
            await self._act(key, "resize_server", server.id, flavor_id=effect.flavor_id)

    async def _migrate(self, effect: effects.MigrateServer, key: str) -> Facts:
        if effect.host == effect.from_host:
            raise FinalError("invalid_argument", f"the server is on host {effect.from_host} already")
        server = await self._idle_server(effect.server_id)
        if server.host == effect.from_host:
            server = await self._act(key, "migrate_server", server.id, host=effect.host)
        if effect.host not in (None, server.host):
            raise FinalError("conflict", f"server {server.id} is on host {server.host}, not {effect.host}")
        return {"new_host": server.host}

    async def _revert(self, effect: effects.RevertServer, key: str) -> None:
        if effect.host not in (self._offered or await self.catalogue()).hosts:
            raise FinalError("invalid_argument", f"there is no host {effect.host}")
        server = await self._idle_server(effect.server_id)
        if server.status == "VERIFY_RESIZE":
            server = await self._act(key, "revert_server", server.id)
        if (server.flavor_id, server.host) != (effect.flavor_id, effect.host):
            raise FinalError(
                "conflict",
                f"server {server.id} has flavor {server.flavor_id} on {server.host}: confirmed already",
            )

    # --- absence --------------------------------------------------------------------------------------------------

    async def _ids(self, listing: str, name: str, recorded: str | None) -> Iterable[str]:
        """What is to be gone: all of the name, and what is recorded, which a list may not show."""
        found = {each.id: None for each in await self._call(listing, name=name)}
        return found if recorded is None else found | {recorded: None}

    async def _present(self, getting: str, resource_id: str) -> Any | None:
        try:
            return await self._call(getting, id=resource_id)
        except FinalError as error:
            if error.code == "not_found":
                return None
            raise

    async def _remove(self, key: str, name: str, resource_id: str) -> None:
        try:
            await self._change(key, name, id=resource_id)
        except FinalError as error:
            if error.code != "not_found":
                raise


@contextmanager
def _unrecorded(made: bool) -> Iterator[None]:
    """What this payment has made is on nobody's record until it is paid, and a list may not show it yet: an error in
    between leaves the outcome unknown. If it is final, the next payment, which finds what was made, says so.
    """
    try:
        yield
    except PayError as error:
        if not made:
            raise
        raise UnknownOutcomeError(error.code, error.message, retry_after=error.retry_after) from error


def _refuse_in_use(kind: str, resource_id: str, holder: str | None) -> None:
    if holder is not None:
        raise TransientError("in_use", f"server {holder} has {kind} {resource_id}; delete the server first")
