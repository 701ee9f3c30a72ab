"""A schedule by a seed: what is asked, what breaks and when, over hours of virtual time, and whether promises held.

Each seed draws its own share of trouble, so that some runs see much of one kind and others a little of all. At the
end trouble stops, everything may settle, and all promises are checked; some are checked all along.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from datetime import timedelta
from random import Random
from typing import Any
from uuid import UUID

import msgspec

from aggregates.commands import COMMANDS
from aggregates.effects import CloudEffect, GuestEffect
from engine.clock import monotonic
from engine.clouds.port import FinalError, TransientError
from engine.clouds.simulated.compute import IMAGES
from engine.clouds.simulated.faults import FAULTS, Call, Fault
from engine.clouds.simulated.guests import GUEST_FAULTS, GuestFault
from engine.clouds.simulated.network import NETWORKS
from engine.messages import GuestStatus, GuestVerb, Heartbeat, heartbeat_subject
from tests.clouds.ambiguous import kinds
from tests.simulation.promises import OVERDUE, Evidence, broken, overdue
from tests.simulation.publisher import Publisher, Sent
from tests.simulation.world import World, simulated

LOOKS = 5  # within which what is surplus is gone
MINUTE, HOUR = 60.0, 3600.0
LENGTHS = (10 * MINUTE, 30 * MINUTE, 2 * HOUR, 8 * HOUR, 24 * HOUR)
LOOK = 5 * MINUTE  # between two checks of what must hold at any time
SETTLES_WITHIN = 6 * HOUR  # whatever is owed is paid or parks after some twenty tries of a minute each
OBSERVE_EVERY = 30.0  # seconds between two looks of a worker at all that the cloud holds
BEAT = 30.0  # seconds between two heartbeats of a guest


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """How much of what: events an hour, or the part of calls that meet a fault."""

    kills: float = 0.0
    deadly: float = 0.0  # the part of crash points passed that kill
    pauses: float = 0.0
    restarts: float = 0.0
    disconnects: float = 0.0
    ack_loss: float = 0.0
    slowness: float = 1.0
    cloud: float = 0.0
    guests: float = 0.0
    failures: float = 0.0
    steps: float = 0.0
    silences: float = 0.0
    gaps: float = 0.0  # the part of calls in `UNFENCED` before which a worker stops until nobody reckons with them


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a seed stands for."""

    length: float
    workers: int
    projects: int
    instances: int
    commands: int
    build_time: float
    verb_time: float
    trouble: Trouble


class Report(msgspec.Struct, kw_only=True):
    """What came of a seed."""

    seed: int
    breaches: list[str]
    injected: Counter[str]
    commands: Counter[str]
    virtual: float
    callbacks: int
    events: int


def plan(seed: int, length: float | None = None) -> Plan:
    """What the seed stands for."""
    random = Random(f"plan {seed}")
    chosen = length or random.choices(LENGTHS, weights=(300, 100, 20, 3, 0.5))[0]
    hours = chosen / HOUR

    def some(most: float, least: float = 0.0, part: float = 0.5) -> float:
        return random.uniform(least, most) if random.random() < part else 0.0

    # So many that a short schedule sees some, too.
    often = max(4.0 / hours, 0.5)
    return Plan(
        length=chosen,
        workers=random.choice((1, 1, 1, 2, 3)),
        projects=random.randint(1, 3),
        instances=random.randint(1, 6),
        commands=random.randint(5, 25) + int(8 * hours),
        build_time=random.choice((0.0, 2.0, 20.0)),
        verb_time=random.choice((0.0, 1.0, 15.0)),
        trouble=Trouble(
            kills=some(often),
            deadly=some(0.02),
            pauses=some(often / 2, part=0.3),
            restarts=some(often),
            disconnects=some(2 * often),
            ack_loss=some(0.3),
            slowness=random.choice((1.0, 1.0, 1.0, 20.0, 200.0)),
            cloud=some(0.15),
            guests=some(0.15),
            failures=some(often, part=0.3),
            steps=some(often, part=0.4),
            silences=some(often, part=0.3),
            gaps=some(0.5, 0.05),
        ),
    )


class Schedule:
    """One seed's course in a world."""

    def __init__(self, world: World, chosen: Plan) -> None:
        self.world = world
        self.plan = chosen
        self.random = Random(f"schedule {world.seed}")
        self.breaches: list[str] = []
        self.commands: Counter[str] = Counter()
        self._projects = [f"project-{n + 1}" for n in range(chosen.projects)]
        self._instances: dict[UUID, str] = {}
        self._away = 0.0  # seconds during which nobody could act
        self._silent: dict[UUID, float] = {}
        self._following: list[asyncio.Task[Sent]] = []
        self._troubled = True

    async def run(self) -> Report:
        """Go through it, let all settle, check the promises."""
        self._prepare()
        self._start_missing()
        acting = [asyncio.create_task(actor) for actor in self._actors()]
        await asyncio.sleep(self.plan.length)
        self._end_of_trouble()
        for task in acting:
            task.cancel()
        await asyncio.gather(*acting, return_exceptions=True)
        await self._settle()
        world = self.world
        return Report(
            seed=world.seed,
            breaches=self.breaches,
            injected=world.injected + world.broker.faults + self._faults_met(),
            commands=self.commands,
            virtual=world.loop.time(),
            callbacks=world.loop.callbacks,
            events=world.events.end(),
        )

    # --- trouble --------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        world, trouble = self.world, self.plan.trouble
        world.api.build_time = self.plan.build_time
        world.agents.verb_time = self.plan.verb_time
        world.broker.ack_loss = trouble.ack_loss
        world.broker.slowness = trouble.slowness
        world.api.faults.draw = self._cloud_fault if trouble.cloud else None
        world.agents.faults.draw = self._guest_fault if trouble.guests else None
        world.observe_every = OBSERVE_EVERY
        if trouble.gaps:
            world.stops = self._stop_in_the_gap
        if trouble.deadly:
            world.fatal = lambda _point, _subject: self.random.random() < trouble.deadly

    def _end_of_trouble(self) -> None:
        world = self.world
        self._troubled = False
        world.broker.ack_loss, world.broker.slowness = 0.0, 1.0
        world.api.faults.draw = world.agents.faults.draw = None
        world.fatal = lambda _point, _subject: False
        world.stops = lambda _point, _subject: 0.0
        world.failures = type(world.failures)()
        for node in world.running:
            if node.paused:
                node.resume()

    def _stop_in_the_gap(self, point: str, subject: str) -> float:
        """How long it stops: the lease was looked at, and the call goes out when nobody reckons with it any more."""
        if point != "call" or subject not in UNFENCED or self.random.random() >= self.plan.trouble.gaps:
            return 0.0
        if any(node.paused for node in self.world.running):
            return 0.0  # somebody must be left to take over
        seconds = self.world.latest_effect.total_seconds() + self.random.uniform(10.0, 60.0)
        self._note("stopped in the gap", call=subject, seconds=round(seconds))
        self._away += seconds
        return seconds

    def _cloud_fault(self, _call: Call) -> Fault | None:
        if self.random.random() >= self.plan.trouble.cloud:
            return None
        return FAULTS[self.random.choice(DRAWN)]

    def _guest_fault(self, _instance: str, _verb: GuestVerb) -> GuestFault | None:
        if self.random.random() >= self.plan.trouble.guests:
            return None
        return GUEST_FAULTS[self.random.choice(list(GUEST_FAULTS))]

    def _faults_met(self) -> Counter[str]:
        met: Counter[str] = Counter()
        for (_, cloud), times in self.world.api.faults.injected.items():
            met[f"cloud: {cloud}"] += times
        for (_, guest), times in self.world.agents.faults.injected.items():
            met[f"guest: {guest}"] += times
        return met

    def _actors(self) -> list[Coroutine[Any, Any, None]]:
        trouble = self.plan.trouble
        hourly: Mapping[Callable[[], Coroutine[Any, Any, None]], float] = {
            self._kill: trouble.kills,
            self._pause: trouble.pauses,
            self._restart_broker: trouble.restarts,
            self._disconnect: trouble.disconnects,
            self._fail: trouble.failures,
            self._step: trouble.steps,
            self._silence: trouble.silences,
        }
        return [
            self._command(),
            self._supervise(),
            self._watch(),
            self._beat(),
            *(self._often(act, rate) for act, rate in hourly.items() if rate),
        ]

    async def _often(self, act: Callable[[], Coroutine[Any, Any, None]], hourly: float) -> None:
        while True:
            await asyncio.sleep(self.random.expovariate(hourly / HOUR))
            await act()

    def _note(self, what: str, **facts: Any) -> None:
        self.world.injected[what] += 1
        self.world.trace(what, **facts)

    async def _kill(self) -> None:
        alive = self.world.running
        if alive:
            node = self.random.choice(alive)
            self._note("kill at a random moment", victim=node.name)
            node.kill()

    async def _supervise(self) -> None:
        """What has died is started anew, soon or late."""
        while True:
            if len(self.world.running) < self._wanted:
                pause = self.random.choice((0.1, 1.0, 5.0, 60.0, 600.0))
                self._away += pause
                await asyncio.sleep(pause)
                self._start_missing()
            await asyncio.sleep(2.0)

    @property
    def _wanted(self) -> int:
        return self.plan.workers + self.world.shared

    def _start_missing(self) -> None:
        world = self.world
        for _ in range(self.plan.workers - sum(node.works for node in world.running)):
            world.start_node()
        if not any(node.projects for node in world.running):
            world.start_node(works=False, projects=True)

    async def _pause(self) -> None:
        alive = [node for node in self.world.running if not node.paused]
        if not alive:
            return
        node, seconds = self.random.choice(alive), self.random.choice((0.5, 5.0, 30.0, 150.0))
        self._note("pause", victim=node.name, seconds=seconds)
        self._away += seconds
        node.stand_still(seconds)

    async def _restart_broker(self) -> None:
        if self.world.broker.up:
            downtime = self.random.choice((0.2, 2.0, 20.0, 120.0))
            self._note("broker restart", downtime=downtime)
            self._away += downtime
            self.world.broker.restart(downtime)

    async def _disconnect(self) -> None:
        clients = self.world.broker.clients
        if clients:
            client = self.random.choice(clients)
            self._note("connection lost", client=client.name)
            self.world.broker.disconnect(client)

    async def _fail(self) -> None:
        """Have the next few payments of an effect fail, for a while or for good."""
        effect = self.random.choice(EFFECTS)
        times = self.random.choice((1, 1, 3, 30))
        final = self.random.random() < 0.4
        error = (FinalError if final else TransientError)("planned", "as the schedule has it")
        self._note("failure for good" if final else "failure for a while", effect=effect, times=times)
        self.world.failures.plan(effect, error, times)

    async def _step(self) -> None:
        minutes = self.random.choice((-30.0, -5.0, -1.0, 1.0, 5.0, 30.0))
        self._note("clock step", minutes=minutes)
        self.world.wall.step(timedelta(minutes=minutes))

    async def _silence(self) -> None:
        if self._instances:
            instance_id = self.random.choice(list(self._instances))
            seconds = self.random.choice((BEAT, 4 * BEAT, 20 * BEAT))
            self._note("guest silent", instance=instance_id, seconds=seconds)
            self._silent[instance_id] = self.world.loop.time() + seconds

    # --- what is asked --------------------------------------------------------------------------------------------

    async def _command(self) -> None:
        for _ in range(self.plan.commands):
            await asyncio.sleep(self.random.expovariate(1.1 * self.plan.commands / self.plan.length))
            self._send()
        await asyncio.Event().wait()

    def _send(self) -> None:
        if not self._instances or (len(self._instances) < self.plan.instances and self.random.random() < 0.5):
            self._create()
            return
        instance_id = self.random.choice(list(self._instances))
        publisher = self.world.publisher(self._instances[instance_id])
        drawn = self.random.random()
        if drawn < 0.15 and publisher.sent:
            self.commands["sent again"] += 1
            publisher.send_again(self.random.choice(list(publisher.sent.values())))
        elif drawn < 0.3:
            self._spoil(publisher, instance_id)
        else:
            name = self.random.choice(OPERATIONS)
            self._tell(publisher, name, instance_id, self._arguments(name, publisher, instance_id))

    def _arguments(self, name: str, publisher: Publisher, instance_id: UUID) -> dict[str, Any]:
        if name in ARGUMENTS:
            return ARGUMENTS[name](self.random)
        begun = [sent for sent in publisher.sent.values() if sent.target == str(instance_id)]
        if name not in ABOUT_OPERATIONS or not begun:
            return {}
        return {"operation_id": str(self.random.choice(begun[-2:]).command_id)}

    def _create(self) -> None:
        project = self.random.choice(self._projects)
        instance_id = self.world.new_id()
        self._instances[instance_id] = project
        self._tell(self.world.publisher(project), "create_instance", instance_id, _create_args(self.random))

    def _tell(self, publisher: Publisher, name: str, target: UUID | str, args: dict[str, Any], **options: Any) -> None:
        self.commands[name] += 1
        self._following.append(publisher.send(name, target, args, **options))

    def _spoil(self, publisher: Publisher, instance_id: UUID) -> None:
        """Something that is to be refused."""
        now = self.world.wall()
        kind = self.random.choice(("arguments", "command", "secret", "expired", "version", "stranger", "nobody", "id"))
        self.commands[f"refused: {kind}"] += 1
        match kind:
            case "arguments":
                self._tell(publisher, "resize_volume", instance_id, {"new_size": "much"})
            case "command":
                self._tell(publisher, "explode", instance_id, {})
            case "secret":
                self._tell(publisher, "restart", instance_id, {"password": "in clear"})
            case "expired":
                self._tell(publisher, "restart", instance_id, {}, deadline=now - timedelta(hours=2))
            case "version":
                self._tell(publisher, "restart", instance_id, {}, expected_version=100_000)
            case "stranger":
                other = self.world.publisher("stranger")
                self._tell(other, "delete_instance", instance_id, {})
            case "nobody":
                self._tell(publisher, "delete_instance", self.world.new_id(), {})
            case "id":
                self._tell(publisher, "restart", str(instance_id).upper(), {})

    async def _beat(self) -> None:
        """Heartbeats of the guests that are there."""
        client = await self.world.broker.connect("agents")
        sequence = 0
        while True:
            await asyncio.sleep(BEAT)
            sequence += 1
            now = self.world.loop.time()
            for instance_id in self._instances:
                if self._silent.get(instance_id, 0.0) > now or not self.world.api.serves(f"holdfast-{instance_id}"):
                    continue
                beat = Heartbeat(
                    instance_id=instance_id,
                    boot="boot",
                    sequence=sequence,
                    sent_at=self.world.wall(),
                    interval=BEAT,
                    status=GuestStatus.HEALTHY,
                )
                await client.publish(heartbeat_subject(instance_id), msgspec.json.encode(beat))

    # --- what must hold -------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            self._look()

    def _look(self) -> None:
        """What holds at any time; whoever was away, and a clock that was set, have that time on top."""
        stepped = abs(self.world.wall.stepped)
        grace = OVERDUE + stepped + timedelta(seconds=self._away)
        for breach in overdue(self.world.owing(), self.world.wall(), grace):
            if breach not in self.breaches:
                self.world.trace("breach", what=breach)
                self.breaches.append(breach)

    async def _settle(self) -> None:
        world = self.world
        self._start_missing()
        try:
            await world.settled(SETTLES_WITHIN)
            # What was sent at last is there now, and is seen twice and removed; messages that waited for the broker are
            # on their way meanwhile, too. Where something never comes to an end, what is broken shows it.
            known, until = -1, monotonic() + SETTLES_WITHIN
            while known != world.events.end() and monotonic() < until:
                known = world.events.end()
                await asyncio.sleep(LOOKS * OBSERVE_EVERY)
                await world.settled(SETTLES_WITHIN)
        except TimeoutError:
            stuck = [f"{aggregate.id} in {aggregate.state}" for aggregate in world.owing()]
            self.breaches.append(
                f"stuck: not settled in {SETTLES_WITHIN / HOUR:.0f} h: {stuck or 'undecided commands'}"
            )
        await self._ask_again()
        learned = {
            (publisher.project, sent.command_id): sent.outcome
            for publisher in world.publishers.values()
            for sent in publisher.sent.values()
            if sent.acknowledged
        }
        inventory = await world.api.inventory()
        for node in world.running:
            node.kill()
        evidence = Evidence(
            world.events, inventory=inventory, ledger=world.api.ledger, learned=learned, models=world.models
        )
        for breach in broken(evidence):
            world.trace("breach", what=breach)
            self.breaches.append(breach)

    async def _ask_again(self) -> None:
        """Whoever does not know the outcome asks once more; only what is parked has none."""
        asking = [
            publisher.ask(sent, 120.0)
            for publisher in self.world.publishers.values()
            for sent in publisher.sent.values()
            if sent.acknowledged and sent.outcome is None
        ]
        await asyncio.gather(*asking)


EFFECTS = tuple(sorted(each.__name__ for base in (CloudEffect, GuestEffect) for each in kinds(base)))
OPERATIONS = tuple(name for kind, name in COMMANDS if kind == "instance" and name != "create_instance")
UNFENCED = frozenset({"create_port", "create_volume"})  # calls that make something though nobody wants it any more
ABOUT_OPERATIONS = frozenset({"cancel_operation", "retry_operation", "skip_step", "abandon_operation"})
DRAWN = tuple(FAULTS)
FLAVORS = ("micro", "small", "medium", "large")

CIDRS = ("0.0.0.0/0", "10.0.0.0/8", "192.0.2.0/24", "2001:db8::/32")


def _access(random: Random) -> dict[str, Any]:
    return {
        "public": random.random() < 0.5,
        "allowed_cidrs": random.sample(CIDRS, random.randint(0, len(CIDRS))),
    }


ARGUMENTS: Mapping[str, Callable[[Random], dict[str, Any]]] = {
    "reboot": lambda random: {"hard": random.random() < 0.5},
    "resize_volume": lambda random: {"new_size": random.randint(1, 12)},
    "resize_flavor": lambda random: {"flavor": random.choice(FLAVORS)},
    "migrate": lambda random: {"host": random.choice(("host-1", "host-2", "host-3"))} if random.random() < 0.5 else {},
    "rebuild": lambda random: {"image_id": random.choice(IMAGES)} if random.random() < 0.5 else {},
    "update_access": _access,
}


def _create_args(random: Random) -> dict[str, Any]:
    return {
        **_wishes(random),
        "name": f"db-{random.randint(1, 999)}",
        "flavor": random.choice(FLAVORS),
        "datastore": "postgresql",
        "volume_size": random.randint(1, 5),
        "keep_on_failure": random.random() < 0.2,
    }


def _wishes(random: Random) -> dict[str, Any]:
    """What an instance may ask for, or leave to the cloud."""
    asked = {
        "access": _access(random),
        "locality": random.choice(("affinity", "anti-affinity")),
        "nics": [random.choice(NETWORKS[:2])],
        "volume_type": random.choice(("local", "remote")),
        "image_id": random.choice(IMAGES),
    }
    return {name: value for name, value in asked.items() if random.random() < 0.5}


def course(seed: int, length: float | None = None, *, tracing: Callable[[str], None] | None = None) -> Report:
    """Run the seed."""
    chosen = plan(seed, length)
    return simulated(seed, lambda world: Schedule(world, chosen).run(), shared=chosen.workers > 1, tracing=tracing)
