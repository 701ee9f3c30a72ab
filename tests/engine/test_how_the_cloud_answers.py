"""A worker says of itself how the services of the cloud have answered it."""

from __future__ import annotations

import json
from datetime import timedelta
from uuid import uuid4

from engine.clouds.simulated import BARE, CloudApi, Fault, SimulatedCloud
from engine.clouds.simulated.faults import Kind
from tests.engine.conftest import Engine
from tests.support.publisher import CREATE, Publisher


async def test_calls_that_were_refused_unanswered_or_failed_are_told_by_workers_list(
    engine: Engine, publisher: Publisher
) -> None:
    await engine.stop()
    far_side = CloudApi(catalogue=BARE)
    far_side.faults.plan("create_volume", Fault(kind=Kind.REFUSED, status=429, retry_after=0.1))
    far_side.faults.plan("create_volume", Fault(kind=Kind.REFUSED, status=500))
    far_side.faults.plan("create_port", Fault(kind=Kind.LOST), 2)
    engine.cloud = SimulatedCloud(api=far_side, deadline=0.2, latest_effect=timedelta(0))
    await engine.start()
    instance_id = uuid4()
    assert (await publisher.send("create_instance", instance_id, CREATE))["accepted"]
    assert (await engine.settled(instance_id)).status == "ACTIVE"
    answer = await publisher.client.request("holdfast.v1.qry.acme.workers.list", timeout=10)
    (worker,) = json.loads(answer.data)["items"]
    counts = worker["cloud"]["simulated"]
    assert (counts["busy"], counts["unanswered"], counts["failed"]) == (1, 2, 1)
    assert counts["calls"] > 4
