"""Neutron: the ports of an instance. A MAC address, which follows from the instance, lets no second one be made."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any
from uuid import UUID, uuid5

from openstack.network.v2.port import Port

from aggregates import effects
from engine.clouds.fences import port_mac
from engine.clouds.openstack import marks
from engine.clouds.openstack.config import Networks
from engine.clouds.openstack.neutron import Network
from engine.clouds.port import Facts, FinalError, TransientError


class Ports:
    """The ports. `holds(server_id)`: whether there is that server."""

    def __init__(self, network: Network, config: Networks, holds: Callable[[str], Awaitable[bool]]) -> None:
        self._network = network
        self._neutron = network.service
        self._config = config
        self._holds = holds

    async def ensure(self, effect: effects.EnsurePort) -> Facts:
        """There is the port by which tenants reach the database."""
        groups = () if effect.security_group_id is None else (effect.security_group_id,)
        network = effect.network or self._config.tenant
        named = {"dns_name": effect.name} if self._config.dns else {}
        port = await self._ensured(effect, network, port_mac(effect.instance_id), groups, **named)
        if not port.fixed_ips:
            raise FinalError("no_address", f"port {port.id} got no address: network {network} has no subnet for it")
        return {"port_id": port.id, "address": port.fixed_ips[0]["ip_address"]}

    async def ensure_management(self, effect: effects.EnsureManagementPort) -> Facts:
        """There is the port by which the agent reaches the broker."""
        # A server with one MAC address on two networks could not tell its own interfaces apart.
        mac = port_mac(uuid5(effect.instance_id, "management"))
        port = await self._ensured(effect, effect.network, mac, ())
        return {"management_port_id": port.id}

    async def absent(self, effect: effects.PortAbsent) -> Facts:
        """There is no such port."""
        named = await self._named(effect.name)
        ids = {port.id for port in named if marks.in_description(effect.instance_id, port.description)}
        for port_id in sorted(ids | ({effect.port_id} if effect.port_id else set())):
            await self.remove(port_id)
        return {}

    async def ensure_group(self, effect: effects.EnsurePortGroup) -> Facts:
        """The port has the security group."""
        port = await self._neutron.look("get_port", lambda neutron: neutron.get_port(effect.port_id))
        if effect.security_group_id not in port.security_group_ids:
            await self._set_groups(port, [*port.security_group_ids, effect.security_group_id])
        return {}

    async def group_absent(self, effect: effects.PortGroupAbsent) -> Facts:
        """The port, if there is one, has not the security group."""
        port = await self.get(effect.port_id)
        if port is not None and effect.security_group_id in port.security_group_ids:
            await self._set_groups(port, [each for each in port.security_group_ids if each != effect.security_group_id])
        return {}

    async def get(self, port_id: str) -> Port | None:
        """The port, if it is there."""
        return await self._neutron.present("get_port", lambda neutron: neutron.get_port(port_id))

    async def holder(self, port_id: str) -> str | None:
        """The id of the server that has the port."""
        port = await self.get(port_id)
        return None if port is None else port.device_id or None

    async def holders(self, name: str, instance_id: UUID) -> set[str]:
        """The ids of the servers that have ports of ours of this name."""
        named = await self._named(name)
        return {
            port.device_id for port in named if port.device_id and marks.in_description(instance_id, port.description)
        }

    # --- underneath -----------------------------------------------------------------------------------------------

    async def _ensured(
        self,
        effect: effects.EnsurePort | effects.EnsureManagementPort,
        network: str,
        mac: str,
        groups: Iterable[str],
        **more: str,
    ) -> Port:
        port = await self._found(effect.instance_id, effect.name)
        if port is not None:
            return port
        network_id = await self._network.network_id(network)
        besides = [await self._network.security_group_id(name) for name in self._config.security_groups]
        wanted: dict[str, Any] = {
            "name": effect.name,
            "description": marks.description(effect.instance_id),
            "mac_address": mac,
            "network_id": network_id,
            **await self._network.tagged(effect.instance_id, effect.project),
            **more,
        }
        if security_groups := [*groups, *besides]:
            wanted["security_group_ids"] = security_groups
        try:
            return await self._neutron.change("create_port", lambda neutron: neutron.create_port(**wanted))
        except TransientError as error:
            if error.code != "conflict":
                raise
            # Its MAC address is taken: by the port that a call before has made, or by somebody else's.
            port = await self._holder_of(mac, network_id, effect.instance_id)
            if port is None:
                raise
            return port

    async def _found(self, instance_id: UUID, name: str) -> Port | None:
        named = await self._named(name)
        mine = marks.ours("port", name, named, lambda it: marks.in_description(instance_id, it.description))
        return mine[0] if mine else None

    async def _named(self, name: str) -> list[Port]:
        return await self._neutron.look("list_ports", lambda neutron: list(neutron.ports(name=name)))

    async def _holder_of(self, mac: str, network_id: str, instance_id: UUID) -> Port | None:
        found = await self._neutron.look(
            "list_ports", lambda neutron: list(neutron.ports(mac_address=mac, network_id=network_id))
        )
        if not found:
            return None
        if not marks.in_description(instance_id, found[0].description):
            raise FinalError(
                "name_taken", f"port {found[0].id}, which Holdfast has not made, has the MAC address {mac}: remove it"
            )
        return found[0]

    async def _set_groups(self, port: Port, groups: list[str]) -> None:
        revision = port.revision_number  # refused when somebody has changed the port meanwhile
        await self._neutron.change(
            "update_port",
            lambda neutron: neutron.update_port(port.id, if_revision=revision, security_group_ids=groups),
        )

    async def remove(self, port_id: str) -> None:
        """There is no such port any more. Raises `TransientError` while a server has it."""
        port = await self.get(port_id)
        if port is None:
            return
        if port.device_id and await self._holds(port.device_id):
            raise TransientError("in_use", f"server {port.device_id} has port {port_id}; delete the server first")
        await self._neutron.remove("delete_port", lambda neutron: neutron.delete_port(port_id))
