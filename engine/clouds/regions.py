"""Several regions as one cloud: each is a cloud of its own, and what is owed in one is asked of that one alone.

Guarantees that an effect is never paid in another region than its own, also when its own is not there any more, and
that a region which does not answer holds up none of the others: what it offers is what it said last, and what it holds
counts as not seen. It cannot know whether two regions are in truth one; whoever configures them must.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import msgspec
import structlog

from aggregates.catalogue import Catalogue
from aggregates.effects import CloudEffect
from aggregates.resources import Resource
from engine.clouds.port import Cloud, Facts, FinalError, Inventory, PayError, TransientError
from engine.clouds.traffic import Counts
from engine.tasks import end

log = structlog.get_logger(__name__)

SAYS_WITHIN = 10.0  # seconds in which a region says what it offers, before the others go on without it
SHORT_LOOK = 5.0  # seconds for what a region holds that has not said what it offers when it was asked last


class Regions:
    """`own` is the region of what names none, and `name` its name, if it has one; `others` are the further ones."""

    def __init__(
        self,
        own: Cloud,
        name: str | None = None,
        others: Mapping[str, Cloud] | None = None,
        *,
        says_within: float = SAYS_WITHIN,
        short_look: float = SHORT_LOOK,
    ) -> None:
        self._own = _Region(name, own)
        self._others = {each: _Region(each, cloud) for each, cloud in (others or {}).items()}
        self._says_within = says_within
        self._short_look = short_look
        if name is None and self._others:
            raise ValueError("where there are several regions, each needs a name")
        if name in self._others:
            raise ValueError(f"two regions bear the name {name}")
        self._all = (self._own, *self._others.values())
        self.latest_effect = max(each.cloud.latest_effect for each in self._all)

    @property
    def traffic(self) -> Mapping[str, Counts]:
        """How the services of each have answered; where there are several, a service is named with its region."""
        if not self._others:
            return self._own.cloud.traffic
        return {
            f"{service} of {region.name}": counts
            for region in self._all
            for service, counts in region.cloud.traffic.items()
        }

    async def start(self) -> None:
        """Start each."""
        for each in self._all:
            await each.cloud.start()

    async def close(self) -> None:
        """Let go of each."""
        for each in self._all:
            await each.stop()
        for each in self._all:
            await each.cloud.close()

    async def catalogue(self) -> Catalogue:
        """What each region offers, as far as it is known. Raises what the own one says when nothing is known of any."""
        asking = [each.asking() for each in self._all]
        said, _ = await asyncio.wait(asking, timeout=self._says_within if self._others else None)
        for each in said:
            each.result()  # what is no refusal of the cloud's is a defect
        if all(region.offers is None for region in self._all):
            raise self._own.error or TransientError("cloud_unreachable", "no region has said yet what it offers")
        # Limits are the installation's, so any region knows them.
        quota = next(region.offers.quota for region in self._all if region.offers is not None)
        offered = {
            region.name: region.offers
            or Catalogue(flavors=(), datastores=(), quota=quota, region=region.name, unavailable=region.why)
            for region in self._all
        }
        return msgspec.structs.replace(offered[self._own.name], regions={name: offered[name] for name in self._others})

    async def inventory(self) -> Inventory:
        """All that those regions hold that say it. Raises what the own one says when none does."""
        looks = [asyncio.create_task(each.look(self._short_look), name=f"inventory-{each.name}") for each in self._all]
        try:
            await asyncio.wait(looks)
        finally:
            for look in looks:
                await end(look)
        found = {each.name: look.result() for each, look in zip(self._all, looks, strict=True)}
        seen = {name: each for name, each in found.items() if not isinstance(each, PayError)}
        silent = {str(name): str(each) for name, each in found.items() if isinstance(each, PayError)}
        own = found[self._own.name]
        if not seen and isinstance(own, PayError):
            raise own
        return Inventory(
            resources=[resource for held in seen.values() for resource in held],
            regions=frozenset(seen) | ({None} if self._own.name in seen else set()),
            silent=silent,
        )

    async def pay(self, effect: CloudEffect, key: str) -> Facts:
        """Make the effect true in its region. Raises `TransientError` or `FinalError`, also for an unknown region."""
        named = effect.region
        region = self._own if named in (None, self._own.name) else self._others.get(named or "")
        if region is None:
            there_are = ", ".join(str(each.name) for each in self._all if each.name is not None) or "none by name"
            raise FinalError(
                "region_unknown",
                f"region {named} is not in the cloud's configuration (there are: {there_are}), and nothing is done in "
                "its stead elsewhere; put it back there, start anew, and retry the operation",
            )
        return await region.cloud.pay(effect, key)


class _Region:
    """One region, and what it said last. `error`: why it did not say what it offers when it was asked last."""

    def __init__(self, name: str | None, cloud: Cloud) -> None:
        self.name = name
        self.cloud = cloud
        self.offers: Catalogue | None = None
        self.error: PayError | None = None
        self._asking: asyncio.Task[None] | None = None

    @property
    def why(self) -> str:
        """Why nothing is known of what it offers."""
        return str(self.error or "it has not been asked for long enough")

    def asking(self) -> asyncio.Task[None]:
        """It is being asked what it offers: once at a time, however long it takes."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(), name=f"catalogue-{self.name}")
        return self._asking

    async def _ask(self) -> None:
        try:
            self.offers = msgspec.structs.replace(await self.cloud.catalogue(), region=self.name)
        except PayError as error:
            if self.offers is not None:
                log.warning("region_says_not_what_it_offers", region=self.name, error=str(error))
            self.error = error
        else:
            self.error = None

    async def look(self, short: float) -> Sequence[Resource] | PayError:
        """What it holds, or why it does not say it, which one that did not answer before must do in a short while."""
        try:
            async with asyncio.timeout(None if self.error is None else short):
                held = (await self.cloud.inventory()).resources
        except PayError as error:
            return error
        except TimeoutError:
            return TransientError("cloud_timeout", f"what it holds was not said within {short:g} s")
        return held if self.name is None else [msgspec.structs.replace(each, region=self.name) for each in held]

    async def stop(self) -> None:
        """Ask no more."""
        if self._asking is not None:
            await end(self._asking)
