"""Workers that die, stand still and lose the broker, by a seed: of two that act, never both own a range."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable

import pytest

from engine.broker import BrokerError, ensure_streams
from engine.partitions import BUCKET, RANGES, TTL, Leases
from engine.recorders import RangeRow
from engine.store import open_store
from tests.simulation.virtual_time import Process
from tests.simulation.world import World, simulated

SECONDS = 300.0
CHANGE_EVERY = 2.0
QUIET = 30.0
LOOK = 0.02


class Contender(Process):
    """A worker process that does nothing but own."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(name)
        self.leases: Leases | None = None
        self._world = world

    async def main(self) -> None:
        client = await self._world.broker.connect(self.name)
        while True:
            try:
                await ensure_streams(client.jetstream())
            except BrokerError:
                continue  # as a supervisor would start it anew
            break
        store = open_store(self._world.store_url)
        store.start()
        store._recorder.session = self.name
        self.leases = Leases(client, store, self._world.wall)
        await self.leases.run()

    def owned(self) -> list[str]:
        """What it would act on at this moment."""
        if not self.running or self.leases is None:
            return []
        return [name for name in RANGES if self.leases.holds(name)]


class Contest:
    """Contenders, and what befalls them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.contenders: list[Contender] = []
        self.befell: Counter[str] = Counter()
        self.most = 0

    def join(self) -> None:
        contender = Contender(self.world, f"worker-{len(self.contenders)}")
        self.contenders.append(contender)
        contender.start(contender.main())

    def look(self) -> None:
        """No range has two that would act on it."""
        owned = Counter(name for contender in self.contenders for name in contender.owned())
        self.most = max(self.most, len(owned))
        assert all(count == 1 for count in owned.values()), {c.name: c.owned() for c in self.contenders}

    def befall(self) -> None:
        random, broker = self.world.random, self.world.broker
        what = random.choice(("join", "die", "pause", "resume", "restart", "lose", "slow"))
        acting = [contender for contender in self.contenders if contender.running]
        paused = [contender for contender in self.contenders if contender.paused and not contender.dead]
        if what == "join" and len(acting) < 5:
            self.join()
        elif what == "die" and len(acting) > 1:
            random.choice(acting).kill()
        elif what == "pause" and acting:
            random.choice(acting).pause()
        elif what == "resume" and paused:
            random.choice(paused).resume()
        elif what in ("restart", "lose") and broker.up:
            broker.restart(random.uniform(0.1, 2 * TTL))
            if what == "lose":  # what lay in memory
                broker.streams.pop(f"KV_{BUCKET}", None)
        elif what == "slow":
            broker.slowness = random.choice((1.0, 1.0, 50.0, 1000.0))
        else:
            return
        self.befell[what] += 1

    async def run(self) -> None:
        for _ in range(3):
            self.join()
        until = self.world.loop.time() + SECONDS
        following = 0.0
        while (moment := self.world.loop.time()) < until:
            self.look()
            if moment >= following:
                following = moment + self.world.random.expovariate(1 / CHANGE_EVERY)
                self.befall()
                self.look()
            await asyncio.sleep(LOOK)
        self.world.broker.slowness = 1.0
        for contender in self.contenders:
            contender.resume()
        while self.world.loop.time() < until + QUIET:
            self.look()
            await asyncio.sleep(LOOK)
        shares = [len(contender.owned()) for contender in self.contenders if contender.running]
        assert sum(shares) == len(RANGES)
        assert max(shares) - min(shares) <= 1


async def contest(world: World) -> Contest:
    found = Contest(world)
    await found.run()
    return found


def simulated_all(seeds: Iterable[int]) -> None:
    for seed in seeds:
        simulated(seed, contest)


@pytest.mark.parametrize("seed", range(6))
def test_no_range_has_two_that_act_and_in_the_end_each_has_one(seed: int) -> None:
    found = simulated(seed, contest)
    assert found.most == len(RANGES)
    assert found.befell.total() > SECONDS / CHANGE_EVERY / 3


def test_control_whoever_trusts_a_bucket_that_may_have_lost_something_takes_from_the_living(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def trusting(self: Leases, row: RangeRow, living: set[str], lease: object) -> bool:
        return row.owner in (None, self._owner) or str(row.owner).partition("@")[0] not in living

    monkeypatch.setattr(Leases, "_is_free", trusting)
    with pytest.raises(AssertionError, match="worker-"):
        simulated_all(range(10))
