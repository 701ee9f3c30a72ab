"""The network service, as Neutron has it: ports, security groups with their rules, floating addresses.

Fenced are a port by its MAC address on a network, a rule by what it says, a floating address by its port. Nothing keeps
two security groups from having one name.
"""

from __future__ import annotations

from collections import Counter, defaultdict

import msgspec

from engine.clouds.errors import CloudAnswerError
from engine.clouds.simulated.ground import FLOATING_PORT, PORT_MAC, RULE, Ground
from engine.clouds.simulated.resources import FloatingAddress, Port, Rule, SecurityGroup, Shelf

NETWORKS = ("tenant", "tenant-2", "management")


class Network:
    """Everything that its calls make. What a call's arguments are called is the clouds' own."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._addresses: Counter[str] = Counter()
        self._macs: Counter[tuple[str, str]] = Counter()
        self._uses: Counter[str] = Counter()  # how many ports have a security group
        self._leading: defaultdict[str, set[str]] = defaultdict(set)  # the floating addresses that lead to a port
        self.ports: Shelf[Port] = Shelf("port")
        self.groups: Shelf[SecurityGroup] = Shelf("security group")
        self._ruled: dict[str, str] = {}  # the security group of each rule
        self.floating: Shelf[FloatingAddress] = Shelf("floating address")

    # --- ports ----------------------------------------------------------------------------------------------------

    def list_ports(self, name: str | None = None) -> list[Port]:
        """The ports of this name, or all, oldest first."""
        return self.ports.named(name, self._ground.age)

    def get_port(self, id: str) -> Port:  # noqa: A002 - the clouds' own word
        """The port."""
        return self.ports.found(id)

    def create_port(
        self, name: str, mac: str, network: str | None = None, security_groups: tuple[str, ...] = ()
    ) -> Port:
        """Make a port. 409: another has this MAC address on the network."""
        network = network or NETWORKS[0]
        if network not in NETWORKS:
            raise CloudAnswerError(404, f"there is no network {network}; there are: {', '.join(NETWORKS)}")
        for group_id in security_groups:
            self.groups.found(group_id)
        taken = bool(self._macs[network, mac])
        self._ground.refuse(PORT_MAC, taken, f"MAC address {mac} is in use on network {network}")
        made = Port(
            id=self._ground.new_id(),
            name=name,
            mac=mac,
            address=self._address(network),
            network=network,
            security_groups=tuple(security_groups),
        )
        self._macs[network, mac] += 1
        self._uses.update(made.security_groups)
        self.ports.put(made)
        self._ground.note("create", "port", made)
        return made

    def update_port(self, id: str, security_groups: tuple[str, ...]) -> None:  # noqa: A002
        """Give the port these security groups, in place of those that it has."""
        port = self.ports.found(id)
        for group_id in security_groups:
            self.groups.found(group_id)
        self._uses.subtract(port.security_groups)
        self._uses.update(security_groups)
        self.ports.put(msgspec.structs.replace(port, security_groups=tuple(security_groups)))
        self._ground.note("update", "port", port)

    def delete_port(self, id: str) -> None:  # noqa: A002
        """Delete a port that no server has. A floating address stays, and leads nowhere."""
        port = self.ports.found(id)
        if port.server_id is not None:
            raise CloudAnswerError(409, f"port {id} is in use by server {port.server_id}")
        for address_id in self._leading.pop(id, ()):
            self.floating.put(msgspec.structs.replace(self.floating.found(address_id), port_id=None))
        self._macs[port.network, port.mac] -= 1
        self._uses.subtract(port.security_groups)
        self.ports.drop(port)
        self._ground.note("delete", "port", port)

    def _address(self, network: str) -> str:
        self._addresses[network] += 1
        high, low = divmod(self._addresses[network], 250)
        return f"{_PREFIXES[network]}.{high % 256}.{low + 1}"

    # --- security groups ------------------------------------------------------------------------------------------

    def list_security_groups(self, name: str | None = None) -> list[SecurityGroup]:
        """The groups of this name, or all, oldest first."""
        return self.groups.named(name, self._ground.age)

    def get_security_group(self, id: str) -> SecurityGroup:  # noqa: A002
        """The group, with its rules."""
        return self.groups.found(id)

    def create_security_group(self, name: str) -> SecurityGroup:
        """Make a group."""
        made = SecurityGroup(id=self._ground.new_id(), name=name)
        self.groups.put(made)
        self._ground.note("create", "security_group", made)
        return made

    def delete_security_group(self, id: str) -> None:  # noqa: A002
        """Delete a group that no port has, and its rules. 409: one has it."""
        group = self.groups.found(id)
        if self._uses[id] > 0:
            raise CloudAnswerError(409, f"security group {id} is in use")
        for rule in group.rules:
            del self._ruled[rule.id]
        self.groups.drop(group)
        self._ground.note("delete", "security_group", group)

    def create_security_group_rules(self, security_group_id: str, port: int, cidrs: tuple[str, ...]) -> None:
        """Let the networks in, all or none. 409: one of them is let in already."""
        group = self.groups.found(security_group_id)
        there = {(rule.port, rule.cidr) for rule in group.rules}
        double = [cidr for cidr in cidrs if (port, cidr) in there]
        self._ground.refuse(RULE, bool(double), f"security group {security_group_id} has a rule for {double} already")
        made = tuple(
            Rule(id=self._ground.new_id(), name=group.name, security_group_id=group.id, port=port, cidr=cidr)
            for cidr in cidrs
        )
        self.groups.put(msgspec.structs.replace(group, rules=group.rules + made))
        for rule in made:
            self._ruled[rule.id] = group.id
            self._ground.note("create", "security_group_rule", rule)

    def delete_security_group_rule(self, id: str) -> None:  # noqa: A002
        """Let the rule's network in no more."""
        if id not in self._ruled:
            raise CloudAnswerError(404, f"there is no security group rule {id}")
        group = self.groups.found(self._ruled.pop(id))
        gone = next(rule for rule in group.rules if rule.id == id)
        self.groups.put(msgspec.structs.replace(group, rules=tuple(rule for rule in group.rules if rule.id != id)))
        self._ground.note("delete", "security_group_rule", gone)

    # --- floating addresses ---------------------------------------------------------------------------------------

    def list_floating_addresses(self, name: str | None = None, port_id: str | None = None) -> list[FloatingAddress]:
        """Those of this name, or of this port, or all."""
        found = self.floating.named(name, self._ground.age)
        return found if port_id is None else [each for each in found if each.port_id == port_id]

    def get_floating_address(self, id: str) -> FloatingAddress:  # noqa: A002
        """The floating address."""
        return self.floating.found(id)

    def create_floating_address(self, name: str, port_id: str) -> FloatingAddress:
        """Make one that leads to the port. 409: another leads there."""
        self.ports.found(port_id)
        self._ground.refuse(
            FLOATING_PORT, bool(self._leading[port_id]), f"port {port_id} has a floating address already"
        )
        made = FloatingAddress(id=self._ground.new_id(), name=name, address=self._address("public"), port_id=port_id)
        self._leading[port_id].add(made.id)
        self.floating.put(made)
        self._ground.note("create", "floating_address", made)
        return made

    def update_floating_address(self, id: str, port_id: str | None) -> None:  # noqa: A002
        """Have it lead to this port, or nowhere. 409: another leads there."""
        address = self.floating.found(id)
        if port_id is not None:
            self.ports.found(port_id)
            taken = bool(self._leading[port_id] - {id})
            self._ground.refuse(FLOATING_PORT, taken, f"port {port_id} has a floating address already")
            self._leading[port_id].add(id)
        if address.port_id not in (None, port_id):
            self._leading[address.port_id].discard(id)
        self.floating.put(msgspec.structs.replace(address, port_id=port_id))
        self._ground.note("update", "floating_address", address)

    def delete_floating_address(self, id: str) -> None:  # noqa: A002
        """Delete it."""
        gone = self.floating.found(id)
        if gone.port_id is not None:
            self._leading[gone.port_id].discard(id)
        self.floating.drop(gone)
        self._ground.note("delete", "floating_address", gone)


_PREFIXES = {"tenant": "10.0", "tenant-2": "10.1", "management": "10.2", "public": "198.18"}
