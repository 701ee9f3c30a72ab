"""A worker that stands still inside its transaction holds the others up for seconds, and nothing is lost."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.workers.conftest import Workers


async def test_the_others_go_on_and_what_it_had_not_committed_is_done_by_them(
    workers: Workers, record_property: Callable[[str, object], None]
) -> None:
    stopped = workers.start(WORKERS_STOP_IN="transaction")
    await workers.shared()
    # Not accepted yet: it stands still with the decision written and not committed.
    creating = workers.begin_create(12)
    await workers.stands_still(stopped)
    began = time.monotonic()
    other = workers.start()
    await workers.shared([other])
    ids = await creating
    held_up = time.monotonic() - began
    assert {i.state for i in await workers.settled(ids)} == {"ACTIVE"}
    stopped.go_on()
    await workers.shared()
    more = await workers.create(12)
    assert {i.state for i in await workers.settled(more)} == {"ACTIVE"}
    assert set((await workers.held()).values()) == {1}
    record_property("figures", f"a worker stopped inside its transaction held the others up for {held_up:.1f} s")
