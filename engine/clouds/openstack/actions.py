"""Nova: what is done with a server that is there. Nothing fences that, so no call follows one that may come late."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from openstack.compute.v2._proxy import Proxy as Nova
from openstack.compute.v2.server import Server

from aggregates import effects
from engine.clock import monotonic
from engine.clouds.openstack.calls import Service
from engine.clouds.openstack.servers import Servers, encoded, host_of
from engine.clouds.openstack.waiting import told
from engine.clouds.port import Facts, FinalError, TransientError, UnknownOutcomeError, check_alone

REBOOT_KEY = "holdfast_reboot"
REBOOT_AFTER = "holdfast_reboot_after"
NEVER = "never"
REBUILD_KEY = "holdfast_rebuild"


class Actions:
    """The actions. `latest_effect`: seconds."""

    def __init__(self, nova: Service[Nova], servers: Servers, latest_effect: float) -> None:
        self._nova = nova
        self._servers = servers
        self._latest_effect = latest_effect

    async def reboot(self, effect: effects.RebootServer, key: str) -> Facts:
        """It was rebooted under this key, and is ACTIVE.

        Nova keeps no key of ours with what it did. So the server's metadata keep the key together with the last
        reboot that there was before it, in one call that may be repeated; a reboot after that one is ours.
        """
        # In this order: whoever sets the key, and reboots, between the two looks is seen by the second.
        last = await self._last_reboot(effect.server_id)
        server = await self._idle(effect.server_id)
        marked = server.metadata or {}
        if marked.get(REBOOT_KEY) != key:
            await self._mark_reboot(server.id, key, last)
            marked = {REBOOT_AFTER: last}
        elif last == marked.get(REBOOT_AFTER):
            last = await self._last_reboot(server.id)
        if last == marked[REBOOT_AFTER]:
            kind = "HARD" if effect.hard or server.status != "ACTIVE" else "SOFT"
            server = await self._act("reboot_server", server, lambda nova: nova.reboot_server(server.id, kind))
        if server.status == "ERROR":
            raise await self._servers.fault(server, "reboot")
        if server.status != "ACTIVE":
            raise TransientError("cloud_error", f"server {server.id} is {server.status} after its reboot")
        return {}

    async def rebuild(
        self,
        effect: effects.RebuildServer,
        key: str,
        *,
        image: Callable[[], Awaitable[str]],
        user_data: Callable[[], Awaitable[bytes]],
    ) -> Facts:
        """It was made anew under this key, and is ACTIVE. The call that does it sets the key in the metadata."""
        server = await self._idle(effect.server_id)
        if (server.metadata or {}).get(REBUILD_KEY) != key:
            wanted: dict[str, Any] = {
                "image": await image(),
                "metadata": {**(server.metadata or {}), REBUILD_KEY: key},
                "user_data": encoded(await user_data()),
            }
            server = await self._act("rebuild_server", server, lambda nova: nova.rebuild_server(server.id, **wanted))
        if server.status != "ACTIVE":
            raise await self._servers.fault(server, "rebuild")
        return {}

    async def resize(self, effect: effects.ResizeServer) -> Facts:
        """It has the flavor, to be confirmed."""
        server = await self._sound(effect.server_id)
        if server.flavor.id != effect.flavor_id:
            server = await self._act(
                "resize_server", server, lambda nova: nova.resize_server(server.id, effect.flavor_id)
            )
            if server.flavor.id != effect.flavor_id or server.status != "VERIFY_RESIZE":
                raise await self._servers.fault(server, "resize")
        return {"new_host": host_of(server)}

    async def migrate(self, effect: effects.MigrateServer) -> Facts:
        """It is on another host, to be confirmed."""
        if effect.host == effect.from_host:
            raise FinalError("invalid_argument", f"the server is on host {effect.from_host} already")
        server = await self._sound(effect.server_id)
        if host_of(server) == effect.from_host:
            server = await self._act(
                "migrate_server", server, lambda nova: nova.migrate_server(server.id, host=effect.host)
            )
            if host_of(server) == effect.from_host:
                raise await self._servers.fault(server, "migrate")
        if effect.host not in (None, host_of(server)):
            raise FinalError("conflict", f"server {server.id} is on host {host_of(server)}, not {effect.host}")
        return {"new_host": host_of(server)}

    async def confirm(self, effect: effects.ConfirmServer) -> Facts:
        """Nothing of it awaits confirmation."""
        server = await self._sound(effect.server_id)
        if server.status == "VERIFY_RESIZE":
            try:
                await self._tell("confirm_server", lambda nova: nova.confirm_server_resize(server.id))
            except FinalError as error:
                if error.code != "invalid_argument":
                    raise  # else Nova is at it already, by a call before
            with told():
                await self._servers.watch.until(server, lambda now: now.status != "VERIFY_RESIZE")
        return {}

    async def revert(self, effect: effects.RevertServer) -> Facts:
        """Nothing of it awaits confirmation, and flavor and host are the old ones."""
        server = await self._idle(effect.server_id)
        if server.status == "VERIFY_RESIZE":
            server = await self._act("revert_server", server, lambda nova: nova.revert_server_resize(server.id))
        if (server.flavor.id, host_of(server)) != (effect.flavor_id, effect.host):
            raise FinalError(
                "conflict", f"server {server.id} has flavor {server.flavor.id} on {host_of(server)}: confirmed already"
            )
        return {}

    async def start(self, effect: effects.StartServer) -> Facts:
        """It is ACTIVE."""
        await self._turn(effect.server_id, "ACTIVE", "start_server", lambda nova: nova.start_server(effect.server_id))
        return {}

    async def stop(self, effect: effects.StopServer) -> Facts:
        """It is SHUTOFF."""
        await self._turn(effect.server_id, "SHUTOFF", "stop_server", lambda nova: nova.stop_server(effect.server_id))
        return {}

    # --- underneath -----------------------------------------------------------------------------------------------

    async def _turn(self, server_id: str, wanted: str, name: str, call: Callable[[Nova], None]) -> None:
        server = await self._sound(server_id)
        if server.status != wanted:
            server = await self._act(name, server, call)
            if server.status != wanted:
                raise await self._servers.fault(server, name.removesuffix("_server"))

    async def _act(self, name: str, server: Server, call: Callable[[Nova], Any]) -> Server:
        """The server once the cloud has done what it was told, well or not."""
        await self._tell(name, call)
        with told():
            return await self._idle(server.id)

    async def _tell(self, name: str, call: Callable[[Nova], Any]) -> None:
        """Say it once. A call that is carried out late would undo what came after it: so one whose answer is missing is
        not followed by another before it can act no more.
        """
        check_alone()
        begun = monotonic()
        try:
            await self._nova.change(name, call)
        except UnknownOutcomeError as error:
            passed = monotonic() - begun
            error.retry_after = max(error.retry_after, self._latest_effect - passed)
            raise

    async def _idle(self, server_id: str) -> Server:
        """The server once the cloud does nothing with it."""
        server = await self._servers.there(server_id)
        return await self._servers.watch.until(server, lambda now: now.task_state is None)

    async def _sound(self, server_id: str) -> Server:
        """The server once the cloud does nothing with it. Raises `FinalError` when it is broken."""
        server = await self._idle(server_id)
        if server.status == "ERROR":
            raise await self._servers.fault(server)
        return server

    async def _last_reboot(self, server_id: str) -> str:
        actions = await self._nova.look("list_server_actions", lambda nova: list(nova.server_actions(server_id)))
        return next((str(each.request_id) for each in actions if each.action == "reboot"), NEVER)

    async def _mark_reboot(self, server_id: str, key: str, last: str) -> None:
        marks = {REBOOT_KEY: key, REBOOT_AFTER: last}
        await self._tell("set_server_metadata", lambda nova: nova.set_server_metadata(server_id, **marks))
