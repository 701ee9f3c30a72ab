"""Paying for what the network service holds: ports, security groups and their rules, floating addresses."""

from __future__ import annotations

from uuid import uuid5

from aggregates import effects
from aggregates.effects import CloudEffect
from engine.clouds.fences import port_mac
from engine.clouds.port import Facts, FinalError, TransientError
from engine.clouds.simulated.calls import Calls, refuse_in_use
from engine.clouds.simulated.resources import FloatingAddress, Port, SecurityGroup


class Networking:
    """Ensures. What is fenced is made and, at a 409, looked for once more; security groups are made in turn."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def pay(self, effect: CloudEffect, key: str) -> Facts:  # noqa: PLR0911 - a table
        """Make the effect true. Raises `TransientError` or `FinalError`."""
        match effect:
            case effects.EnsurePort():
                groups = () if effect.security_group_id is None else (effect.security_group_id,)
                mac = port_mac(effect.instance_id)
                port = await self._ensure_port(key, effect.name, mac, effect.network, groups)
                return {"port_id": port.id, "address": port.address}
            case effects.EnsureManagementPort():
                mac = port_mac(uuid5(effect.instance_id, "management"))
                port = await self._ensure_port(key, effect.name, mac, effect.network, ())
                return {"management_port_id": port.id}
            case effects.PortAbsent():
                return await self._port_absent(effect, key)
            case effects.EnsurePortGroup():
                await self._set_group(key, effect.port_id, effect.security_group_id, wanted=True)
                return {}
            case effects.PortGroupAbsent():
                await self._set_group(key, effect.port_id, effect.security_group_id, wanted=False)
                return {}
            case effects.EnsureFloatingAddress():
                return await self._ensure_address(effect, key)
            case effects.FloatingAddressAbsent():
                return await self._address_absent(effect, key)
        return await self._pay_group(effect, key)

    async def _pay_group(self, effect: CloudEffect, key: str) -> Facts:
        match effect:
            case effects.EnsureSecurityGroup():
                return await self._ensure_group(effect, key)
            case effects.SecurityGroupAbsent():
                for group_id in await self._calls.ids("list_security_groups", effect.name, effect.security_group_id):
                    await self._calls.remove_present(key, "security_group", group_id)
                return {}
            case effects.EnsureAccessRules():
                return await self._ensure_rules(effect, key)
            case effects.AccessRulesAbsent():
                return await self._rules_absent(effect, key)
        raise FinalError("unsupported", f"the network service does not know {effect.type_name}")

    # --- ports ----------------------------------------------------------------------------------------------------

    async def _ensure_port(self, key: str, name: str, mac: str, network: str | None, groups: tuple[str, ...]) -> Port:
        port = await self._port(name)
        if port is None:
            try:
                made: Port = await self._calls.change(
                    key, "create_port", name=name, mac=mac, network=network, security_groups=groups
                )
            except TransientError as error:
                if error.code != "conflict":
                    raise
                # Its MAC address is taken: by the port that a call before has made, which a list may show only later.
                port = await self._port(name)
                if port is None:
                    raise
            else:
                return made
        return port

    async def _port(self, name: str) -> Port | None:
        found: list[Port] = await self._calls.look("list_ports", name=name)
        return found[0] if found else None

    async def _port_absent(self, effect: effects.PortAbsent, key: str) -> Facts:
        for port_id in await self._calls.ids("list_ports", effect.name, effect.port_id):
            await self.remove_port(port_id, key)
        return {}

    async def remove_port(self, port_id: str, key: str) -> None:
        """The port is gone. Raises `TransientError` while a server has it."""
        port: Port | None = await self._calls.present("get_port", port_id)
        if port is not None:
            refuse_in_use("port", port_id, port.server_id)
            await self._calls.remove(key, "delete_port", port_id)

    async def _set_group(self, key: str, port_id: str, group_id: str, *, wanted: bool) -> None:
        port: Port | None = await self._calls.present("get_port", port_id)
        if port is None:
            if wanted:
                raise FinalError("not_found", f"there is no port {port_id}")
            return
        if (group_id in port.security_groups) is not wanted:
            others = tuple(each for each in port.security_groups if each != group_id)
            groups = (*others, group_id) if wanted else others
            await self._calls.change_alone(key, "update_port", id=port_id, security_groups=groups)

    # --- security groups ------------------------------------------------------------------------------------------

    async def _ensure_group(self, effect: effects.EnsureSecurityGroup, key: str) -> Facts:
        async with self._calls.turn("security group", effect.name):
            found: list[SecurityGroup] = await self._calls.look("list_security_groups", name=effect.name)
            group = found[0] if found else await self._calls.change(key, "create_security_group", name=effect.name)
        return {"security_group_id": group.id}

    async def _ensure_rules(self, effect: effects.EnsureAccessRules, key: str) -> Facts:
        there = {(rule.port, rule.cidr) for rule in (await self._group(effect.security_group_id)).rules}
        missing = tuple(cidr for cidr in effect.cidrs if (effect.port, cidr) not in there)
        if missing:
            await self._calls.change(
                key,
                "create_security_group_rules",
                security_group_id=effect.security_group_id,
                port=effect.port,
                cidrs=missing,
            )
        return {}

    async def _rules_absent(self, effect: effects.AccessRulesAbsent, key: str) -> Facts:
        kept = {(effect.port, cidr) for cidr in effect.keep}
        for rule in (await self._group(effect.security_group_id)).rules:
            if (rule.port, rule.cidr) not in kept:
                await self._calls.remove(key, "delete_security_group_rule", rule.id)
        return {}

    async def _group(self, group_id: str) -> SecurityGroup:
        """With its rules as they are: a list of them may be old."""
        group: SecurityGroup = await self._calls.look("get_security_group", id=group_id)
        return group

    # --- floating addresses ---------------------------------------------------------------------------------------

    async def _ensure_address(self, effect: effects.EnsureFloatingAddress, key: str) -> Facts:
        address = await self._leading_to(effect.port_id)
        if address is None:
            try:
                address = await self._calls.change(
                    key, "create_floating_address", name=effect.name, port_id=effect.port_id
                )
            except TransientError as error:
                if error.code != "conflict":
                    raise
                address = await self._leading_to(effect.port_id)
                if address is None:
                    raise
        if address.name != effect.name:
            raise FinalError("conflict", f"floating address {address.id} of {address.name!r} leads to the port already")
        return {"floating_address_id": address.id, "public_address": address.address}

    async def _leading_to(self, port_id: str) -> FloatingAddress | None:
        found: list[FloatingAddress] = await self._calls.look("list_floating_addresses", port_id=port_id)
        return found[0] if found else None

    async def _address_absent(self, effect: effects.FloatingAddressAbsent, key: str) -> Facts:
        gone = dict.fromkeys(await self._calls.ids("list_floating_addresses", effect.name, effect.floating_address_id))
        if effect.port_id is not None and (leading := await self._leading_to(effect.port_id)) is not None:
            gone[leading.id] = None
        for address_id in gone:
            await self._calls.remove_present(key, "floating_address", address_id)
        return {}
