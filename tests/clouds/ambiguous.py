"""The machinery of the matrix of ambiguous answers: effects on a simulated cloud in virtual time, tried while owed.

Which calls an effect makes is found by a recording run. Nothing here knows what a fault should lead to.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import timedelta
from random import Random
from typing import Any
from uuid import UUID

from aggregates import effects
from aggregates.effects import CloudEffect, Effect
from aggregates.resources import ResourceKind
from engine.clouds.port import Facts, FinalError, PayError, UnknownOutcomeError
from engine.clouds.simulated import CloudApi, Fault, Faults, SimulatedCloud
from engine.clouds.simulated.cloud import LATEST_EFFECT
from engine.clouds.simulated.faults import FAULTS, LATEST, STALEST, Call
from engine.clouds.simulated.ground import FENCES
from engine.settler import FIRST_PAUSE, LONGEST_PAUSE
from tests.clouds.wishes import Wishes

INSTANCE = UUID(int=7)
SEVERAL = 3  # times that a cloud refuses before it relents
TRIES = 20
Prepare = Callable[[Wishes], Awaitable[CloudEffect]]


def _built(effect: Callable[[Wishes], CloudEffect]) -> Prepare:
    async def prepare(wishes: Wishes) -> CloudEffect:
        await wishes.build()
        return effect(wishes)

    return prepare


def _bare(effect: Callable[[Wishes], CloudEffect], *before: Callable[[Wishes], CloudEffect]) -> Prepare:
    async def prepare(wishes: Wishes) -> CloudEffect:
        for each in before:
            await wishes.pay(each(wishes))
        return effect(wishes)

    return prepare


def _after(before: Callable[[Wishes], CloudEffect], effect: Callable[[Wishes], CloudEffect]) -> Prepare:
    async def prepare(wishes: Wishes) -> CloudEffect:
        await wishes.build()
        await wishes.pay(before(wishes), "before")
        return effect(wishes)

    return prepare


async def _two_of_each(wishes: Wishes) -> CloudEffect:
    for effect in (wishes.server_group, wishes.security_group):
        await wishes.pay(effect())
    await wishes.build()
    await wishes.pay(wishes.snapshot())
    for call, args in (
        ("create_snapshot", {"name": wishes.name, "volume_id": wishes.facts["volume_id"]}),
        ("create_volume", {"name": wishes.name, "size": 1}),
        ("create_server_group", {"name": wishes.name, "policy": "anti-affinity"}),
        ("create_security_group", {"name": wishes.group_name}),
    ):
        other = await wishes.cloud.api.call(Call(name=call, args=args))  # type: ignore[union-attr]
        assert other.id not in wishes.facts.values()
    await asyncio.sleep(STALEST + 1)  # what made it is over for so long when the chart comes to this
    return wishes.no_surplus()


# Each effect that a cloud is asked for, and what must be there before.
EFFECTS: Mapping[type[CloudEffect], Prepare] = {
    effects.EnsureCredentials: _bare(lambda w: effects.EnsureCredentials(instance_id=w.id)),
    effects.EnsureServerGroup: _bare(Wishes.server_group),
    effects.EnsureSecurityGroup: _bare(Wishes.security_group),
    effects.EnsureAccessRules: _bare(Wishes.rules, Wishes.security_group),
    effects.AccessRulesAbsent: _bare(lambda w: w.only_rules("10.0.0.0/8"), Wishes.security_group, Wishes.rules),
    effects.EnsurePort: _bare(Wishes.port, Wishes.security_group),
    effects.EnsureManagementPort: _bare(Wishes.management_port),
    effects.EnsurePortGroup: _bare(Wishes.port_group, lambda w: w.port(security_group_id=None), Wishes.security_group),
    effects.PortGroupAbsent: _bare(Wishes.no_port_group, Wishes.security_group, Wishes.port),
    effects.EnsureFloatingAddress: _bare(Wishes.address, Wishes.port),
    effects.FloatingAddressAbsent: _bare(Wishes.no_address, Wishes.port, Wishes.address),
    effects.SecurityGroupAbsent: _bare(Wishes.no_security_group, Wishes.security_group, Wishes.rules),
    effects.ServerGroupAbsent: _bare(Wishes.no_server_group, Wishes.server_group),
    effects.EnsureVolume: _bare(Wishes.volume),
    effects.EnsureSnapshot: _built(Wishes.snapshot),
    effects.SnapshotAbsent: _bare(Wishes.no_snapshot, Wishes.volume, Wishes.snapshot),
    effects.EnsureServer: _bare(Wishes.server, Wishes.port),
    effects.EnsureAttachment: _bare(Wishes.attachment, Wishes.port, Wishes.volume, Wishes.server),
    effects.DetachVolume: _built(Wishes.detachment),
    effects.RebuildServer: _built(Wishes.rebuild),
    effects.ExtendVolume: _built(lambda w: w.extend(2)),
    effects.RebootServer: _built(Wishes.reboot),
    effects.ResizeServer: _built(lambda w: w.resize("medium")),
    effects.MigrateServer: _built(Wishes.migrate),
    effects.ConfirmServer: _after(lambda w: w.resize("medium"), Wishes.confirm),
    effects.RevertServer: _after(Wishes.migrate, Wishes.revert),
    effects.StopServer: _built(Wishes.stop),
    effects.StartServer: _after(Wishes.stop, Wishes.start),
    effects.ServerAbsent: _built(Wishes.no_server),
    effects.PortAbsent: _after(Wishes.no_server, Wishes.no_port),
    effects.VolumeAbsent: _after(Wishes.no_server, Wishes.no_volume),
    effects.SurplusAbsent: _two_of_each,
    effects.ResourceAbsent: _built(lambda w: w.gone(ResourceKind.SERVER)),
    effects.CredentialsAbsent: _built(lambda w: effects.CredentialsAbsent(instance_id=w.id)),
}


# What the cloud lets be there twice under one name.
UNFENCED = (effects.EnsureVolume, effects.EnsureSnapshot, effects.EnsureSecurityGroup, effects.EnsureServerGroup)


def kinds(base: type[Effect]) -> set[type[Effect]]:
    """The effects of this kind that a state can owe: those that no other is derived from."""
    below = base.__subclasses__()
    return {base} if not below else set().union(*(kinds(each) for each in below))


class Drawn:
    """Has the n-th call of the effect under test meet a fault, and notes all calls. `n` None: none meets one."""

    def __init__(self, n: int | None = None, fault: Fault | None = None, times: int = 1) -> None:
        self.calls: list[Call] = []
        self.listening = False
        self.met = asyncio.Event()
        self._n = n
        self._fault = fault
        self._times = times

    def __call__(self, call: Call) -> Fault | None:
        """The fault of this call."""
        if not self.listening:
            return None
        self.calls.append(call)
        if self._n is None or len(self.calls) <= self._n or not self._times:
            return None
        if not self._is_like(call, self.calls[self._n]):
            return None
        self._times -= 1
        self.met.set()
        return self._fault

    def _is_like(self, call: Call, drawn: Call) -> bool:
        return call.name == drawn.name


class Storm(Drawn):
    """Has every third call meet any fault, until the time is over."""

    def __init__(self, seed: int, until: float = 900.0) -> None:
        super().__init__()
        self._random = Random(seed)
        self._until = until

    def __call__(self, call: Call) -> Fault | None:
        """The fault of this call."""
        if not self.listening:
            return None
        self.calls.append(call)
        if asyncio.get_running_loop().time() > self._until or self._random.random() > 0.3:
            return None
        return FAULTS[self._random.choice(sorted(FAULTS))]


class Trial:
    """One effect, tried until it is paid, and what the cloud has done for it."""

    def __init__(
        self,
        drawn: Drawn,
        *,
        build_time: float = 0.0,
        fences: frozenset[str] = FENCES,
        latest_effect: timedelta = LATEST_EFFECT,
    ) -> None:
        self.drawn = drawn
        self.api = CloudApi(build_time=build_time, fences=fences, faults=Faults(drawn))
        self.cloud = SimulatedCloud(api=self.api, latest_effect=latest_effect)
        self.wishes = Wishes(self.cloud, INSTANCE)
        self.errors: list[PayError] = []
        self.facts: Facts = {}
        self._before = 0

    async def pay(self, prepare: Prepare, keys: Iterator[str]) -> Trial:
        """Try as the settler does, clear away as the chart does, and wait until whatever is late has come."""
        effect = await prepare(self.wishes)
        self._before = len(self.api.ledger)
        self.drawn.listening = True
        self.facts = await self._tried(effect, keys)
        if isinstance(effect, UNFENCED) and self._unknown:
            await asyncio.sleep(self.cloud.latest_effect.total_seconds())
            self.wishes.facts |= self.facts
            await self._tried(self.wishes.no_surplus(), iter(["surplus"] * TRIES))
        self.drawn.listening = False
        await asyncio.sleep(2 * LATEST)
        return self

    async def _tried(self, effect: CloudEffect, keys: Iterator[str]) -> Facts:
        for attempt in range(TRIES):
            try:
                return await self.cloud.pay(effect, next(keys))
            except FinalError:
                raise
            except PayError as error:
                self.errors.append(error)
                await asyncio.sleep(max(min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE), error.retry_after))
        raise AssertionError(f"{effect.type_name} was not paid in {TRIES} tries: {self.errors}")

    @property
    def _unknown(self) -> bool:
        return any(isinstance(error, UnknownOutcomeError) for error in self.errors)

    @property
    def changes(self) -> Counter[str]:
        """What the cloud carried out for the effect, so often; what was made and removed again is left out."""
        counted = Counter(f"{entry.action} {entry.kind}" for entry in self.api.ledger[self._before :])
        for kind in ("volume", "snapshot", "security_group", "server_group"):
            surplus = min(counted[f"create {kind}"] - 1, counted[f"delete {kind}"])
            if surplus > 0:
                counted[f"create {kind}"] -= surplus
                counted[f"delete {kind}"] -= surplus
        return +counted

    async def there(self) -> dict[str, list[Any]]:
        """What the cloud holds, without what differs from run to run."""
        inventory = await self.cloud.contents()
        return {kind: [_alike(each) for each in found.values()] for kind, found in inventory.items()}


def _alike(shown: Mapping[str, Any]) -> dict[str, Any]:
    """What is the same in every run: no ids, and rules in no order."""
    alike = {name: value for name, value in shown.items() if not name.endswith("id")}
    if "rules" in alike:
        alike["rules"] = sorted((rule["port"], rule["cidr"]) for rule in alike["rules"])
    if "security_groups" in alike:
        alike["security_groups"] = len(alike["security_groups"])
    if "members" in alike:
        alike["members"] = len(alike["members"])
    return alike
