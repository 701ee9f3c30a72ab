"""Nova: server groups, which keep servers on one host or apart.

A group can bear no mark, so its name, which holds the instance's id, tells whose it is. Nothing keeps two of one name
from being made; the surplus is removed later.
"""

from __future__ import annotations

from openstack.compute.v2._proxy import Proxy as Nova
from openstack.compute.v2.server_group import ServerGroup

from aggregates import effects
from engine.clouds.openstack.calls import Service
from engine.clouds.port import Facts, TransientError


class ServerGroups:
    """The groups."""

    def __init__(self, nova: Service[Nova]) -> None:
        self._nova = nova

    async def ensure(self, effect: effects.EnsureServerGroup) -> Facts:
        """There is the group."""
        named = await self._named(effect.name)
        if named:
            return {"server_group_id": named[0].id}
        made = await self._nova.change(
            "create_server_group",
            lambda nova: nova.create_server_group(name=effect.name, policy=effect.policy),
        )
        return {"server_group_id": made.id}

    async def absent(self, effect: effects.ServerGroupAbsent) -> Facts:
        """There is no such group, unless servers are in it."""
        ids = {each.id for each in await self._named(effect.name)}
        for group_id in sorted(ids | ({effect.server_group_id} if effect.server_group_id else set())):
            await self._remove(group_id)
        return {}

    async def surplus_absent(self, effect: effects.SurplusAbsent) -> list[str]:
        """The groups of the name that were not to be kept, and are gone now."""
        surplus = [each.id for each in await self._named(effect.name) if each.id not in effect.keep]
        return [each for each in surplus if await self._remove(each)]

    async def get(self, group_id: str) -> ServerGroup | None:
        """The group, if it is there."""
        return await self._nova.present("get_server_group", lambda nova: nova.get_server_group(group_id))

    async def remove(self, group_id: str) -> None:
        """There is no such group any more. Raises `TransientError` while servers are in it."""
        if not await self._remove(group_id):
            raise TransientError("in_use", f"server group {group_id} has servers in it; delete them first")

    async def _named(self, name: str) -> list[ServerGroup]:
        return await self._nova.look(
            "list_server_groups", lambda nova: [each for each in nova.server_groups() if each.name == name]
        )

    async def _remove(self, group_id: str) -> bool:
        """Whether it is gone: one with servers in it stays."""
        group = await self.get(group_id)
        if group is not None and group.member_ids:
            return False
        if group is not None:
            await self._nova.remove("delete_server_group", lambda nova: nova.delete_server_group(group_id))
        return True
