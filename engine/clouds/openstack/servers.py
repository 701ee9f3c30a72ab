"""Nova: the server of an instance. Its port keeps it from being made twice: Nova gives a port to one server."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

from openstack.compute.v2._proxy import Proxy as Nova
from openstack.compute.v2.server import Server

from aggregates import effects
from engine.clouds import port
from engine.clouds.openstack import marks
from engine.clouds.openstack.calls import Service
from engine.clouds.openstack.config import Servers as Config
from engine.clouds.openstack.waiting import Watch
from engine.clouds.port import Facts, FinalError, TransientError

# The last version whose servers show the id of their flavor; later ones show what it was when the server was made.
READ = "2.46"
USER_DATA = 65535  # bytes, encoded
GONE = frozenset({"DELETED", "SOFT_DELETED"})


class Servers:
    """The servers, made and removed; what is done with one that is there is in `actions`."""

    def __init__(self, nova: Service[Nova], config: Config, *, patience: float) -> None:
        self._nova = nova
        self._config = config
        self.watch: Watch[Server] = Watch("server", self.get, self._changed, patience=patience)

    def close(self) -> None:
        """Stop waiting."""
        self.watch.close()

    async def get(self, server_id: str) -> Server | None:
        """The server, if it is there."""
        found = await self._nova.present("get_server", lambda nova: read(nova, server_id))
        return None if found is None or found.status == "DELETED" else found

    async def there(self, server_id: str) -> Server:
        """The server. Raises `FinalError` when it is not there."""
        return await self._nova.look("get_server", lambda nova: read(nova, server_id))

    async def ensure(
        self,
        effect: effects.EnsureServer,
        *,
        image: Callable[[], Awaitable[str]],
        user_data: Callable[[], Awaitable[bytes]],
        port_holder: Callable[[], Awaitable[str | None]],
    ) -> Facts:
        """There is the server, and it is ACTIVE. What making it needs is asked for when it is made."""
        server = await self._found(effect, port_holder)
        if server is None:
            server = await self._make(effect, await image(), await user_data(), port_holder)
        # From its answer on Nova lists the server by its name, so whatever goes wrong now, it is found.
        port.knows(server_id=server.id)
        ready = await self.watch.until(server, lambda each: each.status in ("ACTIVE", "ERROR"))
        if ready.status != "ACTIVE":
            raise await self.fault(ready)
        return {"server_id": ready.id, "host": host_of(ready)}

    async def absent(self, effect: effects.ServerAbsent) -> Facts:
        """There is no such server: none of ours of this name, nor the recorded one."""
        named = await self._named(effect.name)
        ids = [each.id for each in named if marks.in_metadata(effect.instance_id, each.metadata)]
        if effect.server_id is not None and effect.server_id not in ids:
            ids.append(effect.server_id)
        for server_id in ids:
            await self.remove(server_id)
        return {}

    async def surplus_absent(self, effect: effects.SurplusAbsent, holders: Collection[str]) -> list[str]:
        """The servers of the name that had none of the instance's ports, and are gone now."""
        named = await self._named(effect.name)
        surplus = [
            each.id
            for each in named
            if marks.in_metadata(effect.instance_id, each.metadata)
            and each.id not in holders
            and each.id not in effect.keep
        ]
        for server_id in surplus:
            await self.remove(server_id)
        return surplus

    async def remove(self, server_id: str) -> None:
        """There is no such server any more."""
        server = await self.get(server_id)
        if server is None:
            return
        if server.status == "SOFT_DELETED":  # some clouds keep for a while what was deleted, ports included
            await self._nova.remove("force_delete_server", lambda nova: nova.delete_server(server_id, force=True))
        elif server.task_state != "deleting":
            await self._nova.remove("delete_server", lambda nova: nova.delete_server(server_id))
        left = await self.watch.until_gone(server_id, lambda each: each.status == "ERROR" and each.task_state is None)
        if left is not None:
            raise await self.fault(left, "delete")

    async def fault(self, server: Server, action: str | None = None) -> FinalError:
        """Why the server is broken, or why an action has failed, in the cloud's words."""
        words = (server.fault or {}).get("message") if server.status == "ERROR" else None
        latest = await self._latest_action(server.id, action)
        if latest is not None:
            words = words or latest.get("details") or latest.get("message")
        said = f"server {server.id} is in status {server.status}: {words or 'Nova gives no reason'}"
        if latest is not None:
            said += f" ({latest['request_id']})"
        return FinalError("no_valid_host" if "No valid host" in said else "cloud_error", said)

    async def _latest_action(self, server_id: str, action: str | None) -> dict[str, Any] | None:
        found = await self._nova.present(
            "list_server_actions", lambda nova: [each.to_dict() for each in nova.server_actions(server_id)]
        )
        latest = next((each for each in found or () if action in (None, each["action"])), None)
        if latest is None:
            return None
        request_id = latest["request_id"]
        shown = await self._nova.present(
            "get_server_action", lambda nova: nova.get_server_action(request_id, server_id).to_dict()
        )
        told = [event.get("details") for event in (shown or {}).get("events") or () if event.get("details")]
        return latest | {"details": told[0] if told else None}

    # --- underneath -----------------------------------------------------------------------------------------------

    async def _found(
        self, effect: effects.EnsureServer, port_holder: Callable[[], Awaitable[str | None]]
    ) -> Server | None:
        named = await self._named(effect.name)
        mine = marks.ours(
            "server", effect.name, named, lambda each: marks.in_metadata(effect.instance_id, each.metadata)
        )
        if len(mine) > 1:
            holder = await port_holder()
            mine.sort(key=lambda each: (each.id != holder, each.status == "ERROR", each.created_at))
        return mine[0] if mine else None

    async def _make(
        self,
        effect: effects.EnsureServer,
        image_id: str,
        user_data: bytes,
        port_holder: Callable[[], Awaitable[str | None]],
    ) -> Server:
        wanted = self._wanted(effect, image_id, user_data)
        try:
            return await self._nova.change("create_server", lambda nova: nova.create_server(**wanted))
        except TransientError as error:
            if error.code != "conflict":
                raise
            # The port is taken: by the server that a call before has made, which a list may show only later.
            holder = await port_holder()
            server = None if holder is None else await self.get(holder)
            if server is None:
                raise
            if not marks.in_metadata(effect.instance_id, server.metadata):
                raise FinalError(
                    "conflict", f"server {effect.name} cannot have port {effect.port_id}: {server.name} has it"
                ) from error
            return server

    def _wanted(self, effect: effects.EnsureServer, image_id: str, user_data: bytes) -> dict[str, Any]:
        networks = [{"port": each} for each in (effect.port_id, effect.management_port_id) if each is not None]
        wanted: dict[str, Any] = {
            "name": effect.name,
            "flavor_id": effect.flavor_id,
            "networks": networks,
            "metadata": marks.metadata(effect.instance_id, effect.project),
            "tags": [marks.TAG],
            "config_drive": True,
            "user_data": encoded(user_data),
        }
        if effect.availability_zone is not None:
            wanted["availability_zone"] = effect.availability_zone
        if self._config.key_name is not None:
            wanted["key_name"] = self._config.key_name
        if effect.server_group_id is not None:
            wanted["scheduler_hints"] = {"group": effect.server_group_id}
        if self._config.boot_volume_size:
            wanted["block_device_mapping"] = [
                {
                    "boot_index": 0,
                    "uuid": image_id,
                    "source_type": "image",
                    "destination_type": "volume",
                    "volume_size": self._config.boot_volume_size,
                    "delete_on_termination": True,
                }
            ]
        else:
            wanted["image_id"] = image_id
        return wanted

    async def _named(self, name: str) -> list[Server]:
        # The filter is a regular expression, and what a name holds here means itself.
        return await self._nova.look("list_servers", lambda nova: listed(nova, name=f"^{name}$"))

    async def _changed(self, since: str | None, seen: Mapping[str, Server]) -> Mapping[str, Server]:
        if since is None:
            everything = await self._nova.look("list_servers", listed)
            return {each.id: each for each in everything}
        changed = await self._nova.look("list_servers", lambda nova: listed(nova, changes_since=since))
        now = dict(seen) | {each.id: each for each in changed}
        return {key: each for key, each in now.items() if each.status != "DELETED"}


def encoded(user_data: bytes) -> str:
    """User data as Nova takes them. What it refuses it repeats in its error, and they hold a token."""
    text = base64.b64encode(user_data).decode()
    if len(text) > USER_DATA:
        raise FinalError("invalid_argument", f"user data of {len(text)} bytes, encoded, exceed Nova's {USER_DATA}")
    return text


def read(nova: Nova, server_id: str) -> Server:
    """The server as the version shows it that we read."""
    return Server.new(id=server_id).fetch(nova, microversion=READ)


def listed(nova: Nova, **query: Any) -> list[Server]:
    """The project's servers with their details."""
    return list(Server.list(nova, base_path="/servers/detail", microversion=READ, **query))


def host_of(server: Server) -> str:
    """Its host, or, for those who may not see hosts, what Nova shows them in its place."""
    return str(server.compute_host or server.host_id or "")
