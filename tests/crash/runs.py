"""One run of a scenario with one death in it, the same on real processes and in virtual time, and what it left behind.

The bed keeps what must be kept: whatever dies is started anew. The run waits for ends, never for a while.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol
from uuid import UUID

import msgspec

from aggregates.catalogue import Catalogue
from aggregates.commands import DeleteInstance, SkipStep
from aggregates.effects import Effect
from engine.clouds.simulated import BARE, CATALOGUE
from engine.crash_environment import Orders
from tests.crash.boundaries import Passed
from tests.crash.handle import Handle, Message
from tests.crash.scenarios import Scenario, Step, addressed
from tests.crash.verdict import Evidence, Stand, Told


class Bed(Protocol):
    """An installation. `patience`: seconds after which what has not come will not come."""

    patience: float
    handle: Handle

    async def ready(self) -> None:
        """Wait until it serves."""
        ...

    def message(self, command: Any, target: UUID) -> Message:
        """A new command to the aggregate."""
        ...

    def new_id(self) -> UUID:
        """An id for an instance."""
        ...

    def order(self, orders: Orders) -> None:
        """What is to happen in the processes from now on."""
        ...

    def decided(self, command_id: UUID) -> bool:
        """Whether the log has the command's record."""
        ...

    def died(self) -> int:
        """How many processes have died by order so far."""
        ...

    async def passed(self) -> Sequence[Passed]:
        """The points passed since the run began."""
        ...

    async def until(self, reached: Callable[[], bool]) -> bool:
        """Wait until it is so; False when it is not within the bed's patience."""
        ...

    def load(self, aggregate_id: UUID) -> Any:
        """The aggregate as the log has it."""
        ...

    def history(self, aggregate_id: UUID) -> Sequence[Any]:
        """Its events."""
        ...

    async def done(self, instance_id: UUID) -> Counter[str]:
        """What the cloud and the guest carried out for the instance."""
        ...

    async def held(self, instance_id: UUID) -> list[str]:
        """What the cloud and the quota hold for the instance."""
        ...

    async def delay(self, call: str, nth: int) -> None:
        """Have the nth of the next calls of this name carried out late: after another process has looked."""
        ...

    async def offer(self, catalogue: Catalogue) -> None:
        """Have the cloud offer something else, and the worker know it."""
        ...

    async def remove_by_hand(self, effect: Effect) -> None:
        """Do past the engine what is owed, if the rest waits for it."""
        ...

    async def untrue(self) -> list[str]:
        """The read models that say something else than the log."""
        ...


class Run(msgspec.Struct, kw_only=True):
    """What one run brought. `met`: whether its boundary was met, so that something died there.

    `sent_at`: how many points the worker had passed when each command was sent.
    """

    boundary: Passed | None
    evidence: Evidence
    passed: list[Passed]
    sent_at: list[int]
    met: bool


async def series(bed: Bed, scenario: Scenario, boundaries: Sequence[Passed | None]) -> list[Run]:
    """The scenario once for each boundary, on an instance of its own, one after the other; None: undisturbed.

    Instances are brought to where the scenario begins all together, and the first is deleted in the end.
    """
    await bed.ready()
    targets = [bed.new_id() for _ in boundaries]
    if all(step.during is None for step in scenario.before):
        for step in scenario.before:
            await _together(bed, targets, step)
    else:
        for target in targets:
            await _followed(bed, target, scenario.before, Orders(run=f"{target}:before"), [])
    runs = [await _run(bed, scenario, *each) for each in zip(targets, boundaries, strict=True)]
    if _may_be_deleted(bed.load(targets[0])):
        # One stands for all: what the others hold was compared already.
        await _together(bed, targets[:1], Step(command=DeleteInstance()))
        runs[0].evidence.left = await bed.held(targets[0])
    return runs


async def _together(bed: Bed, targets: Sequence[UUID], step: Step) -> None:
    """The same command to many, followed to the end."""
    if step.bare:
        await bed.offer(BARE)
    bed.order(Orders(run=str(bed.new_id()), fail=frozenset(step.fails)))
    messages = [bed.message(step.command, target) for target in targets]
    await asyncio.gather(*(bed.handle.publish(message) for message in messages))
    await asyncio.gather(*(bed.handle.learn(message, bed.patience) for message in messages))
    for target in targets:
        await bed.until(lambda target=target: _settled(bed.load(target)))  # type: ignore[misc]
    if step.bare:
        await bed.offer(CATALOGUE)


async def _run(bed: Bed, scenario: Scenario, target: UUID, boundary: Passed | None) -> Run:
    """Run it with a death at the boundary, and look at what is left."""
    before = bed.died()
    orders = Orders(run=str(target), kill="" if boundary is None else str(boundary))
    if boundary is not None and boundary.point == "flight":
        await bed.delay(boundary.subject, boundary.occurrence)
    sent_at: list[int] = []
    sent, told = await _followed(bed, target, scenario.steps, orders, sent_at)
    passed = list(await bed.passed())
    stand = Stand.of(bed.load(target))
    again = [await _again(bed, message, first) for message, first in zip(sent, told, strict=True)]
    await bed.until(lambda: _settled(bed.load(target)))
    evidence = Evidence(
        told=told,
        again=again,
        stand=stand,
        version_after=_version(bed.load(target)),
        began=_began(bed.history(target)),
        done=await bed.done(target),
        holds=await bed.held(target),
        left=[],
    )
    return Run(boundary=boundary, evidence=evidence, passed=passed, sent_at=sent_at, met=bed.died() > before)


async def _followed(
    bed: Bed, target: UUID, steps: Sequence[Step], orders: Orders, sent_at: list[int]
) -> tuple[list[Message], list[Told]]:
    """Send the commands, and wait for their ends."""
    sent = await _steps(bed, target, steps, orders, sent_at)
    told = await asyncio.gather(*(bed.handle.learn(message, bed.patience) for message in sent))
    await bed.until(lambda: _settled(bed.load(target)))
    return sent, list(told)


async def _steps(bed: Bed, target: UUID, steps: Sequence[Step], orders: Orders, sent_at: list[int]) -> list[Message]:
    """Send the commands, each at its time."""
    sent = []
    for ordinal, step in enumerate(steps):
        following = steps[ordinal + 1] if ordinal + 1 < len(steps) else None
        # What is interrupted is kept from going on until the interruption is decided.
        held = _named(following.during if following is not None else None)
        orders = msgspec.structs.replace(
            orders,
            fail=frozenset(step.fails),
            unanswered=_named(step.unanswered),
            stall=held | _named(None if step.parked else step.during),
        )
        bed.order(orders)
        if isinstance(step.command, SkipStep):
            await bed.remove_by_hand(bed.load(target).owes().effect)  # which is what somebody does who says so
        command = addressed(step.command, bed.load(target)) if step.during else step.command
        message = bed.message(command, target)
        sent_at.append(sum(not each.by_projector for each in await bed.passed()))
        await bed.handle.publish(message)
        sent.append(message)
        if step.during:
            await bed.until(lambda decided=message.command_id: bed.decided(decided))  # type: ignore[misc]
            bed.order(msgspec.structs.replace(orders, stall=held))
        if following is not None:
            await bed.until(lambda step=following: _has_come(bed.load(target), step))  # type: ignore[misc]
    return sent


async def _again(bed: Bed, message: Message, first: Told) -> Told:
    """What the same message brings, published once more when all is over."""
    decision = await bed.handle.publish_again(message, bed.patience)
    if decision is None:
        return Told(message.command_id, first.command)
    if not decision.duplicate:
        return Told(message.command_id, first.command, "decided anew", decision.code)
    return Told(message.command_id, first.command, first.outcome, first.code)


def _has_come(aggregate: Any, step: Step) -> bool:
    """Whether the moment of the step has come."""
    if aggregate is None or aggregate.state != step.during:
        return False
    return aggregate.parked is not None if step.parked else aggregate.attempts > 0


def _named(state: str | None) -> frozenset[str]:
    return frozenset() if state is None else frozenset({state})


def _may_be_deleted(aggregate: Any) -> bool:
    return aggregate is not None and aggregate.owes() is None and aggregate.state != "DELETED"


def _version(aggregate: Any) -> int:
    return 0 if aggregate is None else int(aggregate.version)


def _settled(aggregate: Any) -> bool:
    return aggregate is not None and (aggregate.owes() is None or aggregate.parked is not None)


def _began(events: Sequence[Any]) -> Counter[str]:
    """How many operations each command began."""
    return Counter(str(event.operation.id) for event in events if hasattr(event, "operation"))
