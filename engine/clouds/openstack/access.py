"""Neutron: who reaches a database from where. Security groups, their rules, and floating addresses.

Nothing keeps two groups of one name from being made; the surplus is removed later. A rule is there once, and an address
of a network leads to a port once.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network
from uuid import UUID

from openstack.network.v2._proxy import Proxy as Neutron
from openstack.network.v2.floating_ip import FloatingIP
from openstack.network.v2.security_group import SecurityGroup
from openstack.network.v2.security_group_rule import SecurityGroupRule

from aggregates import effects
from engine.clouds.openstack import marks
from engine.clouds.openstack.calls import Service
from engine.clouds.openstack.neutron import Network
from engine.clouds.port import Facts, FinalError, TransientError

_EVERYWHERE = {"IPv4": "0.0.0.0/0", "IPv6": "::/0"}


class Groups:
    """Security groups and their rules."""

    def __init__(self, neutron: Service[Neutron]) -> None:
        self._neutron = neutron

    async def ensure(self, effect: effects.EnsureSecurityGroup) -> Facts:
        """There is the group."""
        named = await self._named(effect.name)
        mine = marks.ours(
            "security group", effect.name, named, lambda it: marks.in_description(effect.instance_id, it.description)
        )
        group = min(mine, key=lambda each: str(each.created_at), default=None)
        if group is None:
            wanted = {"name": effect.name, "description": marks.description(effect.instance_id)}
            group = await self._neutron.change(
                "create_security_group", lambda neutron: neutron.create_security_group(**wanted)
            )
        return {"security_group_id": group.id}

    async def absent(self, effect: effects.SecurityGroupAbsent) -> Facts:
        """There is no such group."""
        ids = set(await self._ids(effect.name, effect.instance_id))
        for group_id in sorted(ids | ({effect.security_group_id} if effect.security_group_id else set())):
            await self.remove(group_id)
        return {}

    async def surplus_absent(self, effect: effects.SurplusAbsent) -> list[str]:
        """The groups of the name that were not to be kept, and are gone now."""
        ids = await self._ids(effect.security_group_name, effect.instance_id)
        surplus = [each for each in ids if each not in effect.keep]
        for group_id in surplus:
            await self.remove(group_id)
        return surplus

    async def ensure_rules(self, effect: effects.EnsureAccessRules) -> Facts:
        """Each of the networks may reach the port."""
        there = {_source(rule) for rule in await self._rules(effect.security_group_id) if _is_for(rule, effect.port)}
        missing = [cidr for cidr in _normal(effect.cidrs) if cidr not in there]
        if missing:
            rules = [_rule(effect.security_group_id, effect.port, cidr) for cidr in missing]
            await self._neutron.change(
                "create_security_group_rules", lambda neutron: list(neutron.create_security_group_rules(rules))
            )
        return {}

    async def rules_absent(self, effect: effects.AccessRulesAbsent) -> Facts:
        """No rule lets in other networks than those to keep."""
        keep = set(_normal(effect.keep))
        for rule in await self._rules(effect.security_group_id):
            if _is_for(rule, effect.port) and _source(rule) in keep:
                continue
            await self._remove_rule(rule.id)
        return {}

    async def get(self, group_id: str) -> SecurityGroup | None:
        """The group, if it is there."""
        return await self._neutron.present("get_security_group", lambda neutron: neutron.get_security_group(group_id))

    async def remove(self, group_id: str) -> None:
        """There is no such group any more. Raises `TransientError` while a port has it."""
        if await self.get(group_id) is not None:
            await self._neutron.remove("delete_security_group", lambda neutron: neutron.delete_security_group(group_id))

    # --- underneath -----------------------------------------------------------------------------------------------

    async def _named(self, name: str) -> list[SecurityGroup]:
        return await self._neutron.look(
            "list_security_groups", lambda neutron: list(neutron.security_groups(name=name))
        )

    async def _ids(self, name: str, instance_id: UUID) -> list[str]:
        named = await self._named(name)
        return [each.id for each in named if marks.in_description(instance_id, each.description)]

    async def _rules(self, group_id: str) -> list[SecurityGroupRule]:
        """What lets something in."""
        return await self._neutron.look(
            "list_security_group_rules",
            lambda neutron: list(neutron.security_group_rules(security_group_id=group_id, direction="ingress")),
        )

    async def _remove_rule(self, rule_id: str) -> None:
        await self._neutron.remove(
            "delete_security_group_rule",
            lambda neutron: neutron.delete_security_group_rule(rule_id),
        )


class Addresses:
    """Floating addresses, from the network `external`."""

    def __init__(self, network: Network, external: str | None) -> None:
        self._network = network
        self._neutron = network.service
        self._external = external

    async def ensure(self, effect: effects.EnsureFloatingAddress) -> Facts:
        """The port is reached by one."""
        address = await self._of_port(effect)
        if address is None:
            address = await self._make(effect)
        return {"floating_address_id": address.id, "public_address": address.floating_ip_address}

    async def absent(self, effect: effects.FloatingAddressAbsent) -> Facts:
        """There is none of the instance's."""
        ids = set(await self._ids(effect.instance_id))
        for address_id in sorted(ids | ({effect.floating_address_id} if effect.floating_address_id else set())):
            await self.remove(address_id)
        return {}

    async def surplus_absent(self, effect: effects.SurplusAbsent) -> list[str]:
        """The instance's addresses that were not to be kept, and are gone now."""
        surplus = [each for each in await self._ids(effect.instance_id) if each not in effect.keep]
        for address_id in surplus:
            await self.remove(address_id)
        return surplus

    async def get(self, address_id: str) -> FloatingIP | None:
        """The address, if it is there."""
        return await self._neutron.present("get_ip", lambda neutron: neutron.get_ip(address_id))

    async def remove(self, address_id: str) -> None:
        """There is no such address any more."""
        if await self.get(address_id) is not None:
            await self._neutron.remove("delete_ip", lambda neutron: neutron.delete_ip(address_id))

    # --- underneath -----------------------------------------------------------------------------------------------

    async def _make(self, effect: effects.EnsureFloatingAddress) -> FloatingIP:
        if self._external is None:
            raise FinalError(
                "cloud_misconfigured", "no instance can be public: the cloud's configuration names no external network"
            )
        wanted = {
            "floating_network_id": await self._network.network_id(self._external),
            "port_id": effect.port_id,
            "description": marks.description(effect.instance_id),
        }
        try:
            return await self._neutron.change("create_ip", lambda neutron: neutron.create_ip(**wanted))
        except TransientError as error:
            if error.code != "conflict":
                raise
            # The port has one already: that which a call before has made, or somebody else's.
            address = await self._of_port(effect)
            if address is None:
                raise
            return address

    async def _of_port(self, effect: effects.EnsureFloatingAddress) -> FloatingIP | None:
        found = await self._neutron.look("list_ips", lambda neutron: list(neutron.ips(port_id=effect.port_id)))
        mine = marks.ours(
            "floating address of port",
            effect.port_id,
            found,
            lambda it: marks.in_description(effect.instance_id, it.description),
        )
        return mine[0] if mine else None

    async def _ids(self, instance_id: UUID) -> list[str]:
        mark = marks.description(instance_id)
        return await self._neutron.look("list_ips", lambda neutron: [each.id for each in neutron.ips(description=mark)])


def _normal(cidrs: Iterable[str]) -> list[str]:
    return [str(ip_network(cidr, strict=False)) for cidr in cidrs]


def _rule(group_id: str, port: int, cidr: str) -> dict[str, object]:
    return {
        "security_group_id": group_id,
        "direction": "ingress",
        "ethertype": f"IPv{ip_network(cidr).version}",
        "protocol": "tcp",
        "port_range_min": port,
        "port_range_max": port,
        "remote_ip_prefix": cidr,
    }


def _is_for(rule: SecurityGroupRule, port: int) -> bool:
    span = (rule.port_range_min, rule.port_range_max)
    return rule.protocol == "tcp" and span == (port, port) and rule.remote_group_id is None


def _source(rule: SecurityGroupRule) -> str:
    """The network that the rule lets in; Neutron may leave out one that is everything."""
    return str(ip_network(rule.remote_ip_prefix or _EVERYWHERE[rule.ether_type], strict=False))
