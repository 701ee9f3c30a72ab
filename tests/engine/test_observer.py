"""The observer around a real broker and store: what is surplus in the cloud is found and removed, and nothing else."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest

from aggregates.catalogue import Catalogue
from aggregates.resources import ResourceKind, resource_name
from engine.clock import monotonic
from engine.clouds.fences import port_mac
from engine.clouds.port import Inventory, TransientError
from engine.clouds.simulated import BARE, CATALOGUE, Fault, SimulatedCloud
from engine.clouds.simulated.faults import Call, Kind
from tests.engine.conftest import Engine
from tests.support.eventually import eventually
from tests.support.publisher import CREATE, Publisher

WHOLE = ["ports", "servers", "volumes"]


class Watched(SimulatedCloud):
    """Counts how often all that it holds was asked for; can be made to do things by hand."""

    def __init__(self, catalogue: Catalogue = BARE) -> None:
        super().__init__(catalogue=catalogue, latest_effect=timedelta(0))
        self.looks = 0

    async def inventory(self) -> Inventory:
        """All that the cloud holds."""
        self.looks += 1
        return await super().inventory()

    async def by_hand(self, call: str, /, **args: Any) -> Any:
        """What somebody else does."""
        return await self.api.call(Call(name=call, args=args))

    async def looked_at(self, times: int = 4) -> None:
        """Until so many looks have begun from now on: all but the last have ended."""
        until = self.looks + times

        async def often_enough() -> bool:
            return self.looks >= until

        await eventually(often_enough)


@pytest.fixture
async def cloud(engine: Engine) -> Watched:
    """A cloud that the engine looks at ten times a second."""
    return await watched(engine, BARE)


async def watched(engine: Engine, catalogue: Catalogue) -> Watched:
    """Such a cloud, which offers this."""
    await engine.stop()
    engine.cloud = cloud = Watched(catalogue)
    engine.options["observe_every"] = 0.1
    await engine.start()
    return cloud


async def made(engine: Engine, publisher: Publisher, state: str = "ACTIVE") -> UUID:
    """An instance that has come to this state."""
    instance_id = uuid4()
    assert (await publisher.send("create_instance", instance_id, CREATE))["accepted"]
    assert (await engine.settled(instance_id)).state == "ACTIVE"
    if state == "DELETED":
        assert (await publisher.send("delete_instance", instance_id))["accepted"]
        assert (await engine.settled(instance_id)).state == "DELETED"
    return instance_id


async def names(engine: Engine, instance_id: UUID) -> list[str]:
    return [type(event).__name__ for event in await engine.store.events_of(instance_id)]


async def noted(engine: Engine, instance_id: UUID, name: str, times: int = 1) -> None:
    async def told() -> bool:
        return (await names(engine, instance_id)).count(name) >= times

    await eventually(told)


async def test_a_second_volume_is_removed_and_the_lifecycle_is_as_it_was(
    engine: Engine, publisher: Publisher, cloud: Watched
) -> None:
    instance_id = await made(engine, publisher)
    before = await engine.instance(instance_id)
    second = await cloud.by_hand("create_volume", name=resource_name(instance_id), size=1)
    await noted(engine, instance_id, "SurplusDeleted")
    assert await engine.held() == WHOLE
    assert (await names(engine, instance_id))[-2:] == ["SurplusFound", "SurplusDeleted"]
    after = await engine.instance(instance_id)
    assert after.volume_id == before.volume_id != second.id
    assert (after.state, after.entered, after.surplus) == ("ACTIVE", before.entered, ())
    # Who knows the version of the last transition is told of no change since.
    decision = await publisher.send("restart", instance_id, expected_version=before.entered)
    assert decision["accepted"], decision
    assert (await engine.settled(instance_id)).state == "ACTIVE"


async def test_control_without_an_observer_the_second_volume_stays(engine: Engine, publisher: Publisher) -> None:
    await engine.stop()
    engine.cloud = cloud = Watched()
    engine.options["observe_every"] = 0
    await engine.start()
    instance_id = await made(engine, publisher)
    await cloud.by_hand("create_volume", name=resource_name(instance_id), size=1)
    assert (await publisher.send("restart", instance_id))["accepted"]
    assert (await engine.settled(instance_id)).state == "ACTIVE"
    assert (await engine.held(), cloud.looks) == ([*WHOLE, "volumes"], 0)


async def test_whatever_appears_after_a_delete_is_removed_the_server_first(
    engine: Engine, publisher: Publisher, cloud: Watched
) -> None:
    instance_id = await made(engine, publisher, "DELETED")
    name = resource_name(instance_id)
    group = await cloud.by_hand("create_security_group", name=resource_name(instance_id, ResourceKind.SECURITY_GROUP))
    members = await cloud.by_hand("create_server_group", name=name, policy="affinity")
    port = await cloud.by_hand("create_port", name=name, mac=port_mac(instance_id), security_groups=(group.id,))
    management = resource_name(instance_id, ResourceKind.MANAGEMENT_PORT)
    await cloud.by_hand("create_port", name=management, mac="fa:16:3e:00:00:01")
    await cloud.by_hand("create_floating_address", name=name, port_id=port.id)
    server = await cloud.by_hand(
        "create_server", name=name, flavor_id="small", port_id=port.id, server_group_id=members.id
    )
    volume = await cloud.by_hand("create_volume", name=name, size=1)
    await cloud.by_hand("attach_volume", server_id=server.id, volume_id=volume.id)
    await noted(engine, instance_id, "SurplusDeleted", len(ResourceKind))
    assert await engine.held() == []
    gone = [event.removed.kind for event in await engine.store.events_of(instance_id) if hasattr(event, "removed")]
    assert gone == list(ResourceKind)
    assert (await engine.instance(instance_id)).state == "DELETED"


async def test_what_is_not_of_this_log_or_of_another_name_stays(
    engine: Engine, publisher: Publisher, cloud: Watched
) -> None:
    instance_id = await made(engine, publisher, "DELETED")
    strangers = [resource_name(uuid4()), resource_name(instance_id).upper(), f"{resource_name(instance_id)}-copy", "x"]
    for name in strangers:
        await cloud.by_hand("create_volume", name=name, size=1)
    await cloud.looked_at()
    assert await engine.held() == ["volumes"] * 4
    assert (await names(engine, instance_id)).count("SurplusFound") == 0


async def test_while_an_operation_runs_it_is_left_to_it(engine: Engine, publisher: Publisher, cloud: Watched) -> None:
    instance_id = await made(engine, publisher)
    cloud.fail("ExtendVolume", TransientError("unavailable", "503"), 3)
    assert (await publisher.send("resize_volume", instance_id, {"new_size": 2}))["accepted"]
    await noted(engine, instance_id, "AttemptFailed")
    await cloud.by_hand("create_volume", name=resource_name(instance_id), size=1)
    await noted(engine, instance_id, "SurplusDeleted")
    told = await names(engine, instance_id)
    assert told.index("SurplusFound") > told.index("FileSystemGrown")
    assert await engine.held() == WHOLE


async def test_one_look_alone_which_may_be_old_counts_for_nothing(
    engine: Engine, publisher: Publisher, cloud: Watched
) -> None:
    instance_id = await made(engine, publisher)
    await cloud.looked_at(15)
    assert (await publisher.send("delete_instance", instance_id))["accepted"]
    assert (await engine.settled(instance_id)).state == "DELETED"
    far_side: Any = cloud.api
    gone_for = monotonic() - far_side.ledger[-1].at
    # One list that shows the volume, as it was half a second before it was deleted.
    far_side.faults.plan("list_volumes", Fault(kind=Kind.STALE, seconds=gone_for + 0.5))
    await cloud.looked_at()
    assert far_side.faults.injected["list_volumes", Kind.STALE] == 1
    assert (await names(engine, instance_id)).count("SurplusFound") == 0


async def test_what_cannot_be_removed_is_tried_again_by_each_look(
    engine: Engine, publisher: Publisher, cloud: Watched
) -> None:
    instance_id = await made(engine, publisher)
    cloud.fail("ResourceAbsent", TransientError("unavailable", "503"), 3)
    await cloud.by_hand("create_volume", name=resource_name(instance_id), size=1)
    await noted(engine, instance_id, "SurplusDeleted")
    assert await engine.held() == WHOLE
    assert (await names(engine, instance_id)).count("SurplusFound") == 1


async def test_what_was_found_and_is_gone_by_itself_is_noted_by_the_next_worker(
    engine: Engine, publisher: Publisher, cloud: Watched
) -> None:
    instance_id = await made(engine, publisher, "DELETED")
    cloud.fail("ResourceAbsent", TransientError("unavailable", "503"), 1_000_000)
    volume = await cloud.by_hand("create_volume", name=resource_name(instance_id), size=1)
    await noted(engine, instance_id, "SurplusFound")
    await engine.stop()
    await cloud.by_hand("delete_volume", id=volume.id)
    engine.cloud = Watched()
    engine.cloud.api = cloud.api
    await engine.start()
    await noted(engine, instance_id, "SurplusDeleted")
    assert (await engine.instance(instance_id)).surplus == ()


async def test_a_cloud_that_does_not_say_what_it_holds_stops_nothing(
    engine: Engine, publisher: Publisher, cloud: Watched
) -> None:
    far_side: Any = cloud.api
    far_side.faults.plan("list_ports", Fault(kind=Kind.REFUSED, status=503), 1)
    await cloud.looked_at()
    instance_id = await made(engine, publisher)
    await cloud.by_hand("create_volume", name=resource_name(instance_id), size=1)
    await noted(engine, instance_id, "SurplusDeleted")


# --- what somebody has changed ------------------------------------------------------------------------------------


async def drifted(engine: Engine, instance_id: UUID) -> list[str]:
    return [str(each) for each in (await engine.instance(instance_id)).drift]


async def test_a_server_stopped_by_hand_is_noted_until_somebody_starts_it(
    engine: Engine, publisher: Publisher, cloud: Watched
) -> None:
    instance_id = await made(engine, publisher)
    before = await engine.instance(instance_id)
    await cloud.by_hand("stop_server", id=before.server_id)
    await noted(engine, instance_id, "DriftFound")
    assert await drifted(engine, instance_id) == [f"server {before.server_id} has status SHUTOFF, not ACTIVE"]
    await cloud.looked_at()
    assert (await names(engine, instance_id)).count("DriftFound") == 1
    await cloud.by_hand("start_server", id=before.server_id)
    await noted(engine, instance_id, "DriftGone")
    after = await engine.instance(instance_id)
    assert (after.drift, after.state, after.entered) == ((), "ACTIVE", before.entered)


async def test_an_address_that_somebody_has_led_elsewhere_is_noted_until_it_leads_back(
    engine: Engine, publisher: Publisher
) -> None:
    cloud = await watched(engine, CATALOGUE)
    instance_id = uuid4()
    assert (await publisher.send("create_instance", instance_id, {**CREATE, "access": {"public": True}}))["accepted"]
    instance = await engine.settled(instance_id)
    other = await cloud.by_hand("create_port", name="other", mac="fa:16:3e:00:00:01")
    for elsewhere, says in ((other.id, other.id), (None, "no port")):
        await cloud.by_hand("update_floating_address", id=instance.floating_address_id, port_id=elsewhere)
        told = f"floating address {instance.floating_address_id} leads to {says}, not to {instance.port_id}"
        await eventually(partial(_is_drift, engine, instance_id, [told]))
    await cloud.by_hand("update_floating_address", id=instance.floating_address_id, port_id=instance.port_id)
    await noted(engine, instance_id, "DriftGone")
    assert await drifted(engine, instance_id) == []


async def _is_drift(engine: Engine, instance_id: UUID, wanted: list[str]) -> bool:
    return await drifted(engine, instance_id) == wanted


async def test_all_that_was_removed_by_hand_is_missed_though_the_cloud_shows_nothing_of_it(
    engine: Engine, publisher: Publisher, cloud: Watched
) -> None:
    instance_id = await made(engine, publisher)
    instance = await engine.instance(instance_id)
    for kind in ("server", "port", "volume"):
        await cloud.by_hand(f"delete_{kind}", id=getattr(instance, f"{kind}_id"))
    await noted(engine, instance_id, "DriftFound", 3)
    assert await engine.held() == []
    await engine.stop()
    await engine.start()  # it is noted once, whoever looks
    await cloud.looked_at()
    assert (await names(engine, instance_id)).count("DriftFound") == 3
    assert (await publisher.send("delete_instance", instance_id))["accepted"]
    assert (await engine.settled(instance_id)).state == "DELETED"
    assert await drifted(engine, instance_id) == []


async def test_a_worker_begun_anew_misses_what_it_never_saw(
    engine: Engine, publisher: Publisher, cloud: Watched
) -> None:
    instance_id = await made(engine, publisher)
    instance = await engine.instance(instance_id)
    await engine.stop()
    for kind in ("server", "port", "volume"):
        await cloud.by_hand(f"delete_{kind}", id=getattr(instance, f"{kind}_id"))
    await engine.start()
    await noted(engine, instance_id, "DriftFound", 3)


async def test_nothing_is_noted_of_what_an_operation_changes(
    engine: Engine, publisher: Publisher, cloud: Watched
) -> None:
    instance_id = await made(engine, publisher)
    for command, args in (
        ("resize_volume", {"new_size": 2}), ("migrate", {}), ("resize_flavor", {"flavor": "large"}),
        ("stop_instance", {}), ("start_instance", {}), ("reboot", {"hard": True}), ("delete_instance", {}),
    ):  # fmt: skip
        assert (await publisher.send(command, instance_id, args))["accepted"]
        await engine.settled(instance_id)
        await cloud.looked_at(3)
    told = await names(engine, instance_id)
    assert [each for each in told if each.startswith(("Drift", "Surplus"))] == []
