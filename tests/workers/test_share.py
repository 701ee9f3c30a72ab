"""Workers share the load: evenly, each instance served by one, and what one lets go another takes at once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable

from engine.partitions import RANGES
from tests.workers.conftest import Workers


async def says_so(workers: Workers, owners: dict[str, int | None]) -> bool:
    """Whether the query says who owns what; what workers say of themselves is up to a second old."""
    reply = await workers.publisher.client.request("holdfast.v1.qry.acme.workers.list", timeout=10)
    listed = json.loads(reply.data)["items"]
    return {name: each["pid"] for each in listed for name in each["ranges"]} == owners


async def test_three_workers_share_the_load_and_hand_it_over_in_order(
    workers: Workers, record_property: Callable[[str, object], None]
) -> None:
    first, second, third = (workers.start() for _ in range(3))
    owners = await workers.shared()
    await workers.eventually(lambda: says_so(workers, owners))
    ids = await workers.create(24)
    for instance in await workers.settled(ids):
        assert instance.state == "ACTIVE"
        callers = {entry.caller for entry in await workers.changes(instance.id)}
        assert callers == {f"process {owners[str(instance.partition // 4)]}"}
    workers.running.remove(third)
    assert third.end() == 0
    after = await workers.shared([first, second])
    moved = sum(owners[name] != after[name] and owners[name] != third.pid for name in RANGES)
    record_property(
        "figures", f"ranges shared by three: {sorted(Counter(owners.values()).values())}; moved without need {moved}"
    )
    for instance_id in ids:
        await workers.send("delete_instance", instance_id)
    await workers.settled(ids)
    assert not await workers.held()
    assert set((await workers.made()).values()) == {1}
