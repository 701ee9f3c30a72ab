"""What all that is made in Neutron has in common: the mark, and ids of what others have made, looked up by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from openstack.network.v2._proxy import Proxy as Neutron

from engine.clouds.openstack import marks
from engine.clouds.openstack.calls import Service
from engine.clouds.port import FinalError

TAGS_AT_ONCE = "tag-creation"  # the extension by which ports get tags in the call that makes them


class Network:
    """The service, with what is asked of it once."""

    def __init__(self, service: Service[Neutron]) -> None:
        self.service = service
        self._ids: dict[tuple[str, str], str] = {}
        self._takes_tags: bool | None = None

    async def tagged(self, instance_id: UUID, project: str) -> dict[str, Any]:
        """Tags for those who look for what is ours, as arguments of the call that makes a port, where it takes them."""
        if self._takes_tags is None:
            found = await self.service.look("find_extension", lambda neutron: neutron.find_extension(TAGS_AT_ONCE))
            self._takes_tags = found is not None
        return {"tags": marks.tags(instance_id, project)} if self._takes_tags else {}

    async def network_id(self, name: str) -> str:
        """The id of the network of this name or id. Raises `FinalError` when there is none."""
        return await self._id("network", name, lambda neutron: neutron.find_network(name))

    async def security_group_id(self, name: str) -> str:
        """The id of the security group of this name or id. Raises `FinalError` when there is none, or several."""
        return await self._id("security_group", name, lambda neutron: neutron.find_security_group(name))

    async def _id(self, kind: str, name: str, find: Callable[[Neutron], Any]) -> str:
        if (kind, name) not in self._ids:
            found = await self.service.look(f"find_{kind}", find)
            if found is None:
                raise FinalError("cloud_misconfigured", f"there is no {kind.replace('_', ' ')} {name} in this cloud")
            self._ids[kind, name] = found.id
        return self._ids[kind, name]
