"""The adapter of the simulated cloud: it looks, changes only what is missing, and waits, as adapters of real clouds do.

At most one mutating call goes out for each resource and payment, each call has a deadline, and no more than `in_flight`
are open at once. What a lost answer hides is seen by the next payment's look, or by a fence's 409.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from aggregates import effects
from aggregates.catalogue import Catalogue
from aggregates.effects import CloudEffect
from aggregates.resources import ResourceKind
from engine.clouds.port import Facts, Inventory, PayError, refuse_stranger
from engine.clouds.simulated.api import CATALOGUE, Api, CloudApi
from engine.clouds.simulated.calls import Calls
from engine.clouds.simulated.failures import Failures
from engine.clouds.simulated.faults import LATEST, STALEST
from engine.clouds.simulated.inventory import resources
from engine.clouds.simulated.networking import Networking
from engine.clouds.simulated.resources import Entry
from engine.clouds.simulated.servers import Servers
from engine.clouds.simulated.volumes import Volumes
from engine.clouds.traffic import Counts

DEADLINE = 30.0  # seconds that a call may take
BUILT_WITHIN = 600.0  # seconds that the cloud may work on a server or a volume
IN_FLIGHT = 64
# A call may act so late, and lists may not show it for so long.
LATEST_EFFECT = timedelta(seconds=LATEST + STALEST)


class SimulatedCloud:
    """A cloud behind `api`; without one, a cloud of its own in memory, made with what `CloudApi` takes.

    `caller`: who asks, as the far side's ledger shows it.
    """

    def __init__(
        self,
        *,
        api: Api | None = None,
        catalogue: Catalogue = CATALOGUE,
        latency: float = 0.0,
        on_call: Callable[[Entry], None] | None = None,
        new_id: Callable[[], UUID] = uuid4,
        latest_effect: timedelta = LATEST_EFFECT,
        deadline: float = DEADLINE,
        built_within: float = BUILT_WITHIN,
        in_flight: int = IN_FLIGHT,
        caller: str = "",
    ) -> None:
        self.api: Api = api or CloudApi(catalogue=catalogue, latency=latency, on_call=on_call, new_id=new_id)
        self.latest_effect = latest_effect
        self._calls = Calls(
            self.api,
            caller=caller,
            latest_effect=latest_effect,
            deadline=deadline,
            built_within=built_within,
            in_flight=in_flight,
        )
        self._failures = Failures()
        self._offered: Catalogue | None = None
        self._networking = Networking(self._calls)
        self._volumes = Volumes(self._calls)
        self._servers = Servers(self._calls, self._known_offer)

    @property
    def traffic(self) -> Mapping[str, Counts]:
        """Of all its services in one."""
        return {"simulated": self._calls.counts}

    async def start(self) -> None:
        """Nothing is to be taken up."""

    async def close(self) -> None:
        """Stop waiting, and let go of the API."""
        self._calls.close()
        await self.api.close()

    async def catalogue(self) -> Catalogue:
        """What the cloud offers now."""
        offered: Catalogue = await self._calls.look("get_catalogue")
        self._offered = offered
        return offered

    async def _known_offer(self) -> Catalogue:
        return self._offered or await self.catalogue()

    async def inventory(self) -> Inventory:
        """All that the cloud holds, as its lists say."""
        return Inventory(resources=await resources(self._calls))

    async def contents(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Everything there is, by kind and id, past all faults: for tests."""
        return await self.api.inventory()

    @property
    def ledger(self) -> list[Entry]:
        """What a cloud in this process carried out."""
        if not isinstance(self.api, CloudApi):
            raise TypeError("the ledger is in another process: ask its API")
        return self.api.ledger

    def fail(self, effect_name: str, error: PayError, times: int = 1) -> None:
        """The next so many payments of the effect raise the error and make no call."""
        self._failures.plan(effect_name, error, times)

    async def pay(self, effect: CloudEffect, key: str) -> Facts:
        """Make the effect true. Raises `TransientError` or `FinalError`."""
        self._failures.raise_next(effect.type_name)
        match effect:
            case effects.EnsureCredentials() | effects.CredentialsAbsent():
                return await self._pay_credentials(effect, key)
            case (
                effects.EnsurePort()
                | effects.EnsureManagementPort()
                | effects.PortAbsent()
                | effects.EnsurePortGroup()
                | effects.PortGroupAbsent()
                | effects.EnsureSecurityGroup()
                | effects.SecurityGroupAbsent()
                | effects.EnsureAccessRules()
                | effects.AccessRulesAbsent()
                | effects.EnsureFloatingAddress()
                | effects.FloatingAddressAbsent()
            ):
                return await self._networking.pay(effect, key)
            case (
                effects.EnsureVolume()
                | effects.VolumeAbsent()
                | effects.EnsureSnapshot()
                | effects.SnapshotAbsent()
                | effects.SurplusAbsent()
                | effects.ExtendVolume()
                | effects.EnsureAttachment()
                | effects.DetachVolume()
            ):
                return await self._volumes.pay(effect, key)
            case effects.ResourceAbsent():
                return await self._resource_absent(effect, key)
        return await self._servers.pay(effect, key)

    async def _resource_absent(self, effect: effects.ResourceAbsent, key: str) -> Facts:
        what = ResourceKind.PORT if effect.kind is ResourceKind.MANAGEMENT_PORT else effect.kind
        found = await self._calls.present(f"get_{what}", effect.resource_id)
        if found is None:
            return {}
        refuse_stranger(effect, found.name)
        match what:
            case ResourceKind.SERVER:
                await self._servers.remove(effect.resource_id, key)
            case ResourceKind.PORT:
                await self._networking.remove_port(effect.resource_id, key)
            case ResourceKind.SNAPSHOT:
                await self._volumes.snapshots.remove(effect.resource_id, key)
            case ResourceKind.VOLUME:
                await self._volumes.remove(effect.resource_id, key)
            case _:
                await self._calls.remove(key, f"delete_{what}", effect.resource_id)
        return {}

    async def _pay_credentials(self, effect: effects.EnsureCredentials | effects.CredentialsAbsent, key: str) -> Facts:
        name = str(effect.instance_id)
        there = await self._calls.present("get_credential", name) is not None
        if there and isinstance(effect, effects.CredentialsAbsent):
            await self._calls.remove(key, "delete_credential", name)
        elif not there and isinstance(effect, effects.EnsureCredentials):
            await self._calls.change(key, "create_credential", name=name)
        return {}
