"""A worker that stands still for longer than its lease wakes up as a stranger: it writes nothing and makes nothing.

The control has one that heeds neither lease nor fence: it makes a second volume, so the test can fail.
"""

from __future__ import annotations

from uuid import UUID

import pytest

from tests.workers.conftest import Process, Workers

# Between the look that finds no volume and the call that makes it.
HAS_LOOKED = "answer:list_volumes"


@pytest.fixture
def cloud_arguments(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The name of a volume is no fence: of two calls each makes one."""
    return ("--latest-effect", getattr(request, "param", "0.5"))


async def stopped_with_an_instance(workers: Workers, at: str = HAS_LOOKED, **environment: str) -> tuple[Process, UUID]:
    """A worker that stands still in the middle of a create that was its own, and whose lease has run out."""
    zombie = workers.start(WORKERS_STOP_AT=at, **environment)
    await workers.shared()
    [instance_id] = await workers.create(1)
    await workers.stands_still(zombie)
    other = workers.start()
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
    ports = [e for e in await workers.changes(instance_id) if (e.kind, e.action) == ("port", "create")]
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


async def made(workers: Workers, instance_id: UUID, volumes: int) -> bool:
    """Whether so many volumes were made for an instance, kept or not."""
    changes = await workers.changes(instance_id)
    return sum((e.kind, e.action) == ("volume", "create") for e in changes) >= volumes
