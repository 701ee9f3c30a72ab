"""The compute service, as Nova has it: servers, what is done with them, and the groups that bind where they lie.

A server is fenced by its port and an attachment by its volume. Nothing keeps two server groups from having one name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec

from engine.clouds.errors import CloudAnswerError
from engine.clouds.simulated.ground import SERVER_PORT, VOLUME_ATTACHMENT, Ground
from engine.clouds.simulated.network import Network
from engine.clouds.simulated.resources import Action, Server, ServerGroup, Shelf, Volume
from engine.clouds.simulated.storage import BlockStorage, check_zone

IMAGES = ("image-1", "image-2")
POLICIES = ("affinity", "anti-affinity")


class Compute:
    """The servers, with the ports and volumes that they have."""

    def __init__(self, ground: Ground, network: Network, storage: BlockStorage) -> None:
        self._ground = ground
        self._network = network
        self._storage = storage
        self.servers: Shelf[Server] = Shelf("server")
        self.groups: Shelf[ServerGroup] = Shelf("server group")
        self._load: Counter[str] = Counter()
        self._attached: dict[str, set[str]] = {}
        self._actions: dict[str, list[Action]] = {}

    # --- server groups --------------------------------------------------------------------------------------------

    def list_server_groups(self, name: str | None = None) -> list[ServerGroup]:
        """The groups of this name, or all, oldest first."""
        return self.groups.named(name, self._ground.age)

    def get_server_group(self, id: str) -> ServerGroup:  # noqa: A002 - the clouds' own word
        """The group."""
        return self.groups.found(id)

    def create_server_group(self, name: str, policy: str) -> ServerGroup:
        """Make a group."""
        if policy not in POLICIES:
            raise CloudAnswerError(400, f"there is no policy {policy}; there are: {', '.join(POLICIES)}")
        made = ServerGroup(id=self._ground.new_id(), name=name, policy=policy)
        self.groups.put(made)
        self._ground.note("create", "server_group", made)
        return made

    def delete_server_group(self, id: str) -> None:  # noqa: A002
        """Delete it, with servers in it or not."""
        group = self.groups.found(id)
        self.groups.drop(group)
        self._ground.note("delete", "server_group", group)

    # --- servers --------------------------------------------------------------------------------------------------

    def list_servers(self, name: str | None = None) -> list[Server]:
        """The servers of this name, or all, oldest first."""
        return self.servers.named(name, self._ground.age)

    def get_server(self, id: str) -> Server:  # noqa: A002
        """The server."""
        return self.servers.found(id)

    def list_actions(self, server_id: str) -> list[Action]:
        """What was done with the server."""
        self.servers.found(server_id)
        return list(self._actions.get(server_id, ()))

    def create_server(
        self,
        name: str,
        flavor_id: str,
        port_id: str,
        management_port_id: str | None = None,
        server_group_id: str | None = None,
        image_id: str | None = None,
        availability_zone: str | None = None,
    ) -> Server:
        """Make a server, which is ACTIVE after a while; ERROR where its group leaves it no host.

        409: another server has one of the ports.
        """
        self._check_flavor(flavor_id)
        self._check_image(image_id)
        check_zone(self._ground, availability_zone)
        group = None if server_group_id is None else self.groups.get(server_group_id)
        if server_group_id is not None and group is None:
            raise CloudAnswerError(400, f"there is no server group {server_group_id}")
        ports = [each for each in (port_id, management_port_id) if each is not None]
        for each in ports:
            self._check_port(each)
        allowed = self._hosts(group)
        made = Server(
            id=self._ground.new_id(),
            name=name,
            host=self._least_loaded(allowed or self._ground.catalogue.hosts),
            flavor_id=flavor_id,
            port_id=port_id,
            management_port_id=management_port_id,
            server_group_id=server_group_id,
            image_id=image_id,
            status="BUILD",
            task="spawning",
        )
        for each in ports:
            self._network.ports.put(msgspec.structs.replace(self._network.ports.found(each), server_id=made.id))
        if group is not None:
            self.groups.put(msgspec.structs.replace(group, members=(*group.members, made.id)))
        self._load[made.host] += 1
        self.servers.put(made)
        self._ground.note("create", "server", made)
        status = "ACTIVE" if allowed else "ERROR"
        self._ground.later(lambda: self._set(made.id, status=status, task=None))
        return self.servers.get(made.id) or made

    def delete_server(self, id: str) -> None:  # noqa: A002
        """Delete a server, whatever it is doing; it is gone after a while and lets go of its ports and volumes."""
        server = self.servers.found(id)
        if server.task == "deleting":
            return
        self._set(id, task="deleting")
        self._ground.note("delete", "server", server)
        self._ground.later(lambda: self._drop(id))

    def attach_volume(self, server_id: str, volume_id: str) -> None:
        """Give a server the volume. 409: another server has it."""
        server = self.servers.found(server_id)
        volume = self._storage.volumes.found(volume_id)
        self._ground.refuse(VOLUME_ATTACHMENT, volume.status != "available", f"volume {volume_id} is {volume.status}")
        self._storage.change(volume_id, server_id=server.id, status="in-use")
        self._attached.setdefault(server.id, set()).add(volume_id)
        self._ground.note("attach", "volume", volume)

    def detach_volume(self, server_id: str, volume_id: str) -> None:
        """Take the volume from the server, which has let go of it after a while. 404: it has not this volume."""
        server = self.servers.found(server_id)
        volume = self._storage.volumes.found(volume_id)
        if volume_id not in self._attached.get(server_id, ()):
            raise CloudAnswerError(404, f"server {server_id} has no volume {volume_id}")
        if server.task is not None:
            raise CloudAnswerError(409, f"cannot detach a volume of server {server_id} while it is {server.task}")
        if volume.status == "detaching":
            return
        self._storage.change(volume_id, status="detaching")
        self._ground.note("detach", "volume", volume)
        self._ground.later(lambda: self._let_go(server_id, volume_id))

    # --- what is done with a server -------------------------------------------------------------------------------

    def reboot_server(self, id: str, hard: bool) -> None:  # noqa: A002, ARG002
        """Reboot; it is ACTIVE again after a while."""
        self._begin("reboot", id, ("ACTIVE", "SHUTOFF"), "rebooting", status="ACTIVE")

    def rebuild_server(self, id: str, image_id: str | None = None) -> None:  # noqa: A002
        """Make it anew from an image; it is ACTIVE after a while, with its ports and volumes."""
        self._check_image(image_id)
        self._begin("rebuild", id, ("ACTIVE", "SHUTOFF", "ERROR"), "rebuilding", status="ACTIVE", image_id=image_id)

    def start_server(self, id: str) -> None:  # noqa: A002
        """Start a server that is SHUTOFF."""
        self._begin("start", id, ("SHUTOFF",), "powering-on", status="ACTIVE")

    def stop_server(self, id: str) -> None:  # noqa: A002
        """Stop a server that is ACTIVE."""
        self._begin("stop", id, ("ACTIVE",), "powering-off", status="SHUTOFF")

    def resize_server(self, id: str, flavor_id: str) -> None:  # noqa: A002
        """Give it another flavor, to be confirmed or reverted."""
        server = self.servers.found(id)
        self._check_flavor(flavor_id)
        if server.flavor_id == flavor_id:
            raise CloudAnswerError(400, f"server {id} has flavor {flavor_id} already")
        self._begin(
            "resize",
            id,
            ("ACTIVE", "SHUTOFF"),
            "resizing",
            status="VERIFY_RESIZE",
            flavor_id=flavor_id,
            old_flavor_id=server.flavor_id,
            old_host=server.host,
        )

    def migrate_server(self, id: str, host: str | None = None) -> None:  # noqa: A002
        """Move it to that host, or another than its own, to be confirmed or reverted."""
        server = self.servers.found(id)
        hosts = self._ground.catalogue.hosts
        if host is not None and host not in hosts:
            raise CloudAnswerError(400, f"there is no host {host}")
        group = None if server.server_group_id is None else self.groups.get(server.server_group_id)
        others = [each for each in self._hosts(group, but=server.id) if each != server.host]
        if host == server.host or not others or (host is not None and host not in others):
            raise CloudAnswerError(400, f"no valid host was found for server {id}")
        self._begin(
            "migrate",
            id,
            ("ACTIVE", "SHUTOFF"),
            "migrating",
            status="VERIFY_RESIZE",
            host=host or self._least_loaded(others),
            old_flavor_id=server.flavor_id,
            old_host=server.host,
        )

    def confirm_server(self, id: str) -> None:  # noqa: A002
        """What was resized or migrated stays so."""
        self._begin("confirm", id, ("VERIFY_RESIZE",), None, status="ACTIVE", old_host=None, old_flavor_id=None)

    def revert_server(self, id: str) -> None:  # noqa: A002
        """What was resized or migrated is again as it was."""
        server = self.servers.found(id)
        self._begin(
            "revert",
            id,
            ("VERIFY_RESIZE",),
            "reverting",
            status="ACTIVE",
            host=server.old_host or server.host,
            flavor_id=server.old_flavor_id or server.flavor_id,
            old_host=None,
            old_flavor_id=None,
        )

    # --- underneath -----------------------------------------------------------------------------------------------

    def _begin(self, action: str, server_id: str, allowed: tuple[str, ...], task: str | None, **changes: Any) -> None:
        server = self.servers.found(server_id)
        if server.task is not None:
            raise CloudAnswerError(409, f"cannot {action} server {server_id} while it is {server.task}")
        if server.status not in allowed:
            raise CloudAnswerError(409, f"cannot {action} server {server_id} in status {server.status}")
        self._ground.note(action, "server", server)
        self._actions.setdefault(server_id, []).append(Action(action=action, request_id=self._ground.call.request_id))
        if task is None:
            self._set(server_id, **changes)
            return
        self._set(server_id, task=task)
        self._ground.later(lambda: self._set(server_id, task=None, **changes))

    def _set(self, server_id: str, **changes: Any) -> None:
        server = self.servers.get(server_id)
        if server is None or (server.task == "deleting" and "task" in changes):
            return
        changed = msgspec.structs.replace(server, **changes)
        if changed.host != server.host:
            self._load[server.host] -= 1
            self._load[changed.host] += 1
        self.servers.put(changed)

    def _drop(self, server_id: str) -> None:
        server = self.servers.get(server_id)
        if server is None:
            return
        for volume_id in tuple(self._attached.get(server_id, ())):
            self._let_go(server_id, volume_id)
        self._attached.pop(server_id, None)
        for port_id in (server.port_id, server.management_port_id):
            port = None if port_id is None else self._network.ports.get(port_id)
            if port is not None and port.server_id == server_id:
                self._network.ports.put(msgspec.structs.replace(port, server_id=None))
        group = None if server.server_group_id is None else self.groups.get(server.server_group_id)
        if group is not None:
            members = tuple(each for each in group.members if each != server_id)
            self.groups.put(msgspec.structs.replace(group, members=members))
        self._load[server.host] -= 1
        self._actions.pop(server_id, None)
        self.servers.drop(server)

    def _let_go(self, server_id: str, volume_id: str) -> None:
        self._attached.get(server_id, set()).discard(volume_id)
        volume: Volume | None = self._storage.volumes.get(volume_id)
        if volume is not None and volume.server_id == server_id:
            self._storage.change(volume_id, server_id=None, status="available")

    def _hosts(self, group: ServerGroup | None, but: str = "") -> tuple[str, ...]:
        """Where the group lets another server of its lie."""
        members = () if group is None else (self.servers.get(each) for each in group.members if each != but)
        taken = {member.host for member in members if member is not None}
        if group is None or not taken:
            return self._ground.catalogue.hosts
        apart = group.policy == "anti-affinity"
        return tuple(host for host in self._ground.catalogue.hosts if (host in taken) is not apart)

    def _least_loaded(self, hosts: Iterable[str]) -> str:
        return min(hosts, key=lambda host: (self._load[host], self._ground.catalogue.hosts.index(host)))

    def _check_port(self, port_id: str) -> None:
        port = self._network.ports.get(port_id)
        if port is None:
            raise CloudAnswerError(400, f"there is no port {port_id}")
        held = port.server_id is not None
        self._ground.refuse(SERVER_PORT, held, f"port {port_id} is in use by server {port.server_id}")

    def _check_flavor(self, flavor_id: str) -> None:
        if flavor_id not in (flavor.id for flavor in self._ground.catalogue.flavors):
            raise CloudAnswerError(400, f"there is no flavor {flavor_id}")

    def _check_image(self, image_id: str | None) -> None:
        if image_id is not None and image_id not in IMAGES:
            raise CloudAnswerError(400, f"there is no image {image_id}; there are: {', '.join(IMAGES)}")
