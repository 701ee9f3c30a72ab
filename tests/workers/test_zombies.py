"""A worker that stands still for longer than its lease wakes up as a stranger: it writes nothing and makes nothing.

Stopped in just the gap between the look at its lease and the call, it makes a second volume, which is found and
removed. Controls have one that heeds neither lease nor fence, or workers that do not observe: the second volume stays.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from aggregates.instance_events import SurplusDeleted
from aggregates.resources import resource_name
from engine.clouds.simulated.faults import Call
from tests.workers.conftest import Process, Workers

# Between the look that finds no volume and the call that makes it.
HAS_LOOKED = "answer:list_volumes"


@pytest.fixture
def cloud_arguments(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The name of a volume is no fence: of two calls each makes one."""
    return ("--latest-effect", getattr(request, "param", "0.5"))


async def stopped_with_an_instance(
    workers: Workers, at: str = HAS_LOOKED, *options: str, **environment: str
) -> tuple[Process, UUID]:
    """A worker that stands still in the middle of a create that was its own, and whose lease has run out."""
    zombie = workers.start(*options, WORKERS_STOP_AT=at, **environment)
    await workers.shared()
    [instance_id] = await workers.create(1)
    await workers.stands_still(zombie)
    other = workers.start(*options)
    await workers.shared([other])
    return zombie, instance_id


async def test_one_that_was_paused_makes_no_second_resource_and_takes_its_place_again(workers: Workers) -> None:
    zombie, instance_id = await stopped_with_an_instance(workers)
    assert (await workers.in_state(instance_id, "ACTIVE")).state == "ACTIVE"
    before = await workers.store.events_of(instance_id)
    zombie.go_on()
    owners = await workers.shared()
    assert zombie.pid in owners.values()
    assert await workers.store.events_of(instance_id) == before
    assert [entry.caller for entry in await workers.changes(instance_id) if entry.caller == f"process {zombie.pid}"]
    volumes = [e for e in await workers.changes(instance_id) if (e.kind, e.action) == ("volume", "create")]
    assert [e.caller for e in volumes] == [f"process {workers.running[1].pid}"]
    ids = await workers.create(16)
    assert {i.state for i in await workers.settled(ids)} == {"ACTIVE"}
    served = {entry.caller for i in ids for entry in await workers.changes(i)}
    assert served == {f"process {process.pid}" for process in workers.running}


async def test_one_that_has_paid_when_it_is_paused_records_nothing(workers: Workers) -> None:
    zombie, instance_id = await stopped_with_an_instance(workers, "after_effect:build_port")
    await workers.in_state(instance_id, "ACTIVE")
    before = await workers.store.events_of(instance_id)
    zombie.go_on()
    await workers.shared()
    assert await workers.store.events_of(instance_id) == before
    name = resource_name(instance_id)
    ports = [e for e in await workers.changes(instance_id) if (e.kind, e.action, e.name) == ("port", "create", name)]
    assert [e.caller for e in ports] == [f"process {zombie.pid}"]  # the other one looked, and found it


async def test_control_without_lease_and_fence_a_second_volume_is_made(workers: Workers) -> None:
    zombie, instance_id = await stopped_with_an_instance(workers, WORKERS_CARELESS="1")
    await workers.in_state(instance_id, "ACTIVE")
    zombie.go_on()
    await workers.eventually(lambda: made(workers, instance_id, 2))
    workers.kill(zombie)


# Long enough for the other to wait for what may yet be made.
@pytest.mark.parametrize("cloud_arguments", ["8"], indirect=True)
async def test_one_that_is_paused_between_the_look_at_its_lease_and_the_call_leaves_no_second_volume(
    workers: Workers,
) -> None:
    zombie, instance_id = await stopped_with_an_instance(workers, "call:create_volume")
    await workers.eventually(lambda: made(workers, instance_id, 1))
    zombie.go_on()
    await workers.eventually(lambda: made(workers, instance_id, 2))  # the one gap that no lease closes
    await workers.in_state(instance_id, "ACTIVE")
    assert set((await workers.held()).values()) == {1}


async def woken_in_the_gap(workers: Workers, observe_every: str) -> Any:
    """The instance, ACTIVE before the call is made of one that was stopped in the gap until nobody reckons with it."""
    zombie, instance_id = await stopped_with_an_instance(
        workers, "call:create_volume", "--observe-every", observe_every
    )
    instance = await workers.in_state(instance_id, "ACTIVE")
    assert instance.unanswered_until < datetime.now(UTC)
    zombie.go_on()
    await workers.eventually(lambda: made(workers, instance_id, 2))
    return instance


async def test_what_it_makes_when_nobody_reckons_with_it_any_more_is_found_and_removed(workers: Workers) -> None:
    instance = await woken_in_the_gap(workers, "0.5")

    async def removed() -> bool:
        return isinstance((await workers.store.events_of(instance.id))[-1], SurplusDeleted)

    await workers.eventually(removed)
    assert set((await workers.held()).values()) == {1}
    assert list((await workers.far_side.inventory())["volumes"]) == [instance.volume_id]
    after = await workers.instance(instance.id)
    assert (after.state, after.entered, after.volume_id) == ("ACTIVE", instance.entered, instance.volume_id)


async def test_control_without_an_observer_what_it_makes_then_stays(workers: Workers) -> None:
    instance = await woken_in_the_gap(workers, "0")
    await workers.shared()
    assert {i.state for i in await workers.settled(await workers.create(8))} == {"ACTIVE"}
    assert (await workers.held())["volumes", instance.resource_name] == 2


async def test_one_that_is_paused_while_it_removes_surplus_removes_nothing_else(workers: Workers) -> None:
    zombie = workers.start("--observe-every", "0.5", WORKERS_STOP_AT="call:delete_volume")
    await workers.shared()
    [instance_id] = await workers.create(1)
    instance = await workers.in_state(instance_id, "ACTIVE")
    await workers.far_side.call(Call(name="create_volume", args={"name": instance.resource_name, "size": 1}))
    await workers.stands_still(zombie)
    other = workers.start("--observe-every", "0.5")
    await workers.shared([other])

    async def removed() -> bool:
        return isinstance((await workers.store.events_of(instance_id))[-1], SurplusDeleted)

    await workers.eventually(removed)
    before = await workers.store.events_of(instance_id)
    zombie.go_on()
    await workers.shared()
    assert await workers.store.events_of(instance_id) == before
    assert set((await workers.held()).values()) == {1}
    assert [e.action for e in await workers.changes(instance_id) if e.kind == "volume"].count("delete") == 1


async def made(workers: Workers, instance_id: UUID, volumes: int) -> bool:
    """Whether so many volumes were made for an instance, kept or not."""
    changes = await workers.changes(instance_id)
    return sum((e.kind, e.action) == ("volume", "create") for e in changes) >= volumes
