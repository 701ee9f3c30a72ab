"""Neutron: the port of an instance. Its MAC address, which follows from the instance, lets no second one be made."""

from __future__ import annotations

from typing import Any

from openstack.network.v2._proxy import Proxy as Neutron
from openstack.network.v2.port import Port

from aggregates import effects
from engine.clouds.fences import port_mac
from engine.clouds.openstack import marks
from engine.clouds.openstack.calls import Service
from engine.clouds.openstack.config import Networks
from engine.clouds.port import Facts, FinalError, TransientError

TAGS_AT_ONCE = "tag-creation"


class Ports:
    """The ports."""

    def __init__(self, neutron: Service[Neutron], networks: Networks) -> None:
        self._neutron = neutron
        self._networks = networks
        self._ids: dict[tuple[str, str], str] = {}
        self._tags: bool | None = None

    async def ensure(self, effect: effects.EnsurePort) -> Facts:
        """There is the port."""
        port = await self._find(effect)
        if port is None:
            made = await self._wanted(effect)
            try:
                port = await self._neutron.change("create_port", lambda neutron: neutron.create_port(**made))
            except TransientError as error:
                if error.code != "conflict":
                    raise
                # Its MAC address is taken: by the port that a call before has made, or by somebody else's.
                port = await self._holder(effect, made["network_id"])
                if port is None:
                    raise
        return {"port_id": port.id, "address": port.fixed_ips[0]["ip_address"] if port.fixed_ips else ""}

    async def network_id(self, name: str) -> str:
        """The id of the network of this name or id. Raises `FinalError` when there is none."""
        return await self._id("network", name, lambda neutron: neutron.find_network(name))

    async def _wanted(self, effect: effects.EnsurePort) -> dict[str, Any]:
        groups = [await self._group_id(name) for name in self._networks.security_groups]
        wanted: dict[str, Any] = {
            "name": effect.name,
            "description": marks.description(effect.instance_id, effect.project),
            "mac_address": port_mac(effect.instance_id),
            "network_id": await self.network_id(self._networks.tenant),
        }
        if groups:
            wanted["security_group_ids"] = groups
        if await self._takes_tags():
            wanted["tags"] = marks.tags(effect.instance_id, effect.project)
        return wanted

    async def _find(self, effect: effects.EnsurePort | effects.PortAbsent) -> Port | None:
        found = await self._named(effect.name)
        mine = marks.ours(
            "port", effect.name, found, lambda port: marks.in_description(effect.instance_id, port.description)
        )
        return mine[0] if mine else None

    async def _named(self, name: str) -> list[Port]:
        return await self._neutron.look("list_ports", lambda neutron: list(neutron.ports(name=name)))

    async def _holder(self, effect: effects.EnsurePort, network_id: str) -> Port | None:
        mac = port_mac(effect.instance_id)
        found = await self._neutron.look(
            "list_ports", lambda neutron: list(neutron.ports(mac_address=mac, network_id=network_id))
        )
        if found and not marks.in_description(effect.instance_id, found[0].description):
            raise FinalError(
                "name_taken", f"port {found[0].id}, which Holdfast has not made, has the MAC address {mac}: remove it"
            )
        return found[0] if found else None

    async def absent(self, effect: effects.PortAbsent, holds: Any) -> Facts:
        """There is no such port. `holds(server_id)` tells whether that server exists."""
        named = await self._named(effect.name)
        ids = {port.id for port in named if marks.in_description(effect.instance_id, port.description)}
        for port_id in sorted(ids | ({effect.port_id} if effect.port_id else set())):
            await self._remove(port_id, holds)
        return {}

    async def _remove(self, port_id: str, holds: Any) -> None:
        port = await self._neutron.present("get_port", lambda neutron: neutron.get_port(port_id))
        if port is None:
            return
        if port.device_id and await holds(port.device_id):
            raise TransientError("in_use", f"server {port.device_id} has port {port_id}; delete the server first")
        await self._neutron.remove("delete_port", lambda neutron: neutron.delete_port(port_id))

    async def get(self, port_id: str) -> Port | None:
        """The port, if it is there."""
        return await self._neutron.present("get_port", lambda neutron: neutron.get_port(port_id))

    async def _takes_tags(self) -> bool:
        if self._tags is None:
            extension = await self._neutron.look("find_extension", lambda neutron: neutron.find_extension(TAGS_AT_ONCE))
            self._tags = extension is not None
        return self._tags

    async def _group_id(self, name: str) -> str:
        return await self._id("security group", name, lambda neutron: neutron.find_security_group(name))

    async def _id(self, kind: str, name: str, find: Any) -> str:
        if (kind, name) not in self._ids:
            found = await self._neutron.look(f"find_{kind.replace(' ', '_')}", find)
            if found is None:
                raise FinalError("cloud_misconfigured", f"there is no {kind} {name} in this cloud")
            self._ids[kind, name] = found.id
        return self._ids[kind, name]
