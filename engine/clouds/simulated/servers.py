"""Paying for what the compute service holds, and for what is done with a server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from aggregates import effects
from aggregates.catalogue import Catalogue
from aggregates.effects import CloudEffect
from engine.clouds.port import Facts, FinalError, TransientError, UnknownOutcomeError, knows
from engine.clouds.simulated.calls import Calls, unrecorded
from engine.clouds.simulated.resources import Action, Port, Server, ServerGroup


class Servers:
    """Ensures. `offered`: what the cloud offers, for what its calls would not refuse."""

    def __init__(self, calls: Calls, offered: Callable[[], Awaitable[Catalogue]]) -> None:
        self._calls = calls
        self._offered = offered

    async def pay(self, effect: CloudEffect, key: str) -> Facts:  # noqa: PLR0911 - a table
        """Make the effect true. Raises `TransientError` or `FinalError`."""
        match effect:
            case effects.EnsureServerGroup():
                return await self._ensure_group(effect, key)
            case effects.ServerGroupAbsent():
                return await self._group_absent(effect, key)
            case effects.EnsureServer():
                return await self._ensure(effect, key)
            case effects.ServerAbsent():
                return await self._absent(effect, key)
            case effects.ResizeServer():
                server = await self._calls.idle_server(effect.server_id)
                if server.flavor_id != effect.flavor_id:
                    server = await self._act(key, "resize_server", server.id, flavor_id=effect.flavor_id)
                return {"new_host": server.host}
            case effects.MigrateServer():
                return await self._migrate(effect, key)
            case _:
                await self._do(effect, key)
        return {}

    async def _do(self, effect: CloudEffect, key: str) -> None:
        match effect:
            case effects.RebootServer():
                await self._once(key, "reboot", effect.server_id, hard=effect.hard)
            case effects.RebuildServer():
                await self._once(key, "rebuild", effect.server_id, image_id=effect.image_id)
            case effects.ConfirmServer():
                if (await self._calls.idle_server(effect.server_id)).status == "VERIFY_RESIZE":
                    await self._act(key, "confirm_server", effect.server_id)
            case effects.RevertServer():
                await self._revert(effect, key)
            case effects.StartServer():
                if (await self._calls.idle_server(effect.server_id)).status != "ACTIVE":
                    await self._act(key, "start_server", effect.server_id)
            case effects.StopServer():
                if (await self._calls.idle_server(effect.server_id)).status != "SHUTOFF":
                    await self._act(key, "stop_server", effect.server_id)
            case _:
                raise FinalError("unsupported", f"the simulated cloud does not know {effect.type_name}")

    # --- server groups --------------------------------------------------------------------------------------------

    async def _ensure_group(self, effect: effects.EnsureServerGroup, key: str) -> Facts:
        async with self._calls.turn("server group", effect.name):
            found: list[ServerGroup] = await self._calls.look("list_server_groups", name=effect.name)
            group = (
                found[0]
                if found
                else await self._calls.change(key, "create_server_group", name=effect.name, policy=effect.policy)
            )
        if group.policy != effect.policy:
            raise FinalError("conflict", f"server group {effect.name} has policy {group.policy}, not {effect.policy}")
        return {"server_group_id": group.id}

    async def _group_absent(self, effect: effects.ServerGroupAbsent, key: str) -> Facts:
        for group_id in await self._calls.ids("list_server_groups", effect.name, effect.server_group_id):
            group: ServerGroup | None = await self._calls.present("get_server_group", group_id)
            if group is not None and not group.members:
                await self._calls.remove(key, "delete_server_group", group_id)
        return {}

    # --- servers --------------------------------------------------------------------------------------------------

    async def _ensure(self, effect: effects.EnsureServer, key: str) -> Facts:
        found: list[Server] = await self._calls.look("list_servers", name=effect.name)
        server = found[0] if found else None
        made = server is None
        if server is None:
            try:
                server = await self._calls.change(
                    key,
                    "create_server",
                    name=effect.name,
                    flavor_id=effect.flavor_id,
                    port_id=effect.port_id,
                    management_port_id=effect.management_port_id,
                    server_group_id=effect.server_group_id,
                    image_id=effect.image_id,
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
        with unrecorded(made):
            ready = await self._calls.until(
                "server", self._calls.servers, server, server.id, lambda each: each.status == "ACTIVE"
            )
        return {"server_id": ready.id, "host": ready.host}

    async def _holder(self, effect: effects.EnsureServer) -> Server | None:
        """The server that has the port, when it is ours: a call before has made it."""
        port: Port | None = await self._calls.present("get_port", effect.port_id)
        if port is None or port.server_id is None:
            return None
        server: Server | None = await self._calls.present("get_server", port.server_id)
        if server is not None and server.name != effect.name:
            raise FinalError("conflict", f"server {effect.name} cannot have port {port.id}: {server.name} has it")
        return server

    async def _absent(self, effect: effects.ServerAbsent, key: str) -> Facts:
        for server_id in await self._calls.ids("list_servers", effect.name, effect.server_id):
            await self.remove(server_id, key)
        return {}

    async def remove(self, server_id: str, key: str) -> None:
        """The server is gone."""
        server: Server | None = await self._calls.present("get_server", server_id)
        if server is None:
            return
        if server.task != "deleting":
            await self._calls.remove(key, "delete_server", server_id)
        await self._calls.until_gone("server", self._calls.servers, server_id)

    # --- what is done with a server -------------------------------------------------------------------------------

    async def _act(self, key: str, name: str, server_id: str, **args: Any) -> Server:
        """The server once the cloud has done what it was told."""
        await self._calls.change_alone(key, name, id=server_id, **args)
        try:
            return await self._calls.idle_server(server_id)
        except TransientError as error:
            # It was told, and may be doing it still.
            raise UnknownOutcomeError(error.code, error.message, retry_after=error.retry_after) from error

    async def _once(self, key: str, action: str, server_id: str, **args: Any) -> None:
        """What can be seen only in the list of what was done is done once under the key."""
        server: Server = await self._calls.look("get_server", id=server_id)
        if server.task is not None:
            server = await self._calls.idle_server(server_id, server)
        done: list[Action] = await self._calls.look("list_actions", server_id=server.id)
        if not any(each.action == action and each.request_id == key for each in done):
            server = await self._act(key, f"{action}_server", server.id, **args)
        if server.status != "ACTIVE":
            raise TransientError("cloud_error", f"server {server.id} is {server.status} after its {action}")

    async def _migrate(self, effect: effects.MigrateServer, key: str) -> Facts:
        if effect.host == effect.from_host:
            raise FinalError("invalid_argument", f"the server is on host {effect.from_host} already")
        server = await self._calls.idle_server(effect.server_id)
        if server.host == effect.from_host:
            server = await self._act(key, "migrate_server", server.id, host=effect.host)
        if effect.host not in (None, server.host):
            raise FinalError("conflict", f"server {server.id} is on host {server.host}, not {effect.host}")
        return {"new_host": server.host}

    async def _revert(self, effect: effects.RevertServer, key: str) -> None:
        if effect.host not in (await self._offered()).hosts:
            raise FinalError("invalid_argument", f"there is no host {effect.host}")
        server = await self._calls.idle_server(effect.server_id)
        if server.status == "VERIFY_RESIZE":
            server = await self._act(key, "revert_server", server.id)
        if (server.flavor_id, server.host) != (effect.flavor_id, effect.host):
            raise FinalError(
                "conflict",
                f"server {server.id} has flavor {server.flavor_id} on {server.host}: confirmed already",
            )
