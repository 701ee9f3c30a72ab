"""The last beat of every living instance is shown with its age, however many beats come."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aggregates.commands import DeleteInstance
from engine.messages import GuestStatus, VolumeUse, heartbeat_subject
from projections.heartbeats import HeartbeatView
from tests.projections.served import LONG, Refused, Served, heartbeat
from tests.support.broker import Broker


async def until(asked: Callable[[], Awaitable[Any]], true: Callable[[Any], bool]) -> Any:
    """Ask until the answer is as it should be."""
    async with asyncio.timeout(LONG):
        while True:
            try:
                answer = await asked()
            except Refused as refused:
                answer = refused
            if true(answer):
                return answer
            await asyncio.sleep(0.05)


def sequence_is(number: int) -> Callable[[Any], bool]:
    return lambda answer: isinstance(answer, dict) and answer["sequence"] == number


def view(served: Served) -> HeartbeatView:
    return served.read._beats


async def test_the_last_beat_is_shown_with_its_age(served: Served) -> None:
    instance_id = served.story.create()
    await served.caught_up()
    use = VolumeUse(used=1, size=2)
    for sequence in (1, 2, 3):
        await served.beat(instance_id, sequence, volume=use, status=GuestStatus.STARTING)
    get = lambda: served.blue.ask("heartbeats", "get", instance_id=str(instance_id))  # noqa: E731
    first = await until(get, sequence_is(3))
    assert (first["status"], first["volume"]) == ("STARTING", msgspec.to_builtins(use))
    assert 0 <= first["age"] < LONG
    later = await until(get, lambda answer: answer["age"] > first["age"])
    assert later["received_at"] == first["received_at"]
    with pytest.raises(Refused, match="not_found"):
        await served.green.ask("heartbeats", "get", instance_id=str(instance_id))


async def test_beats_are_listed_and_watched(served: Served) -> None:
    ids = [served.story.create() for _ in range(3)]
    other = served.story.create(project="green")
    await served.caught_up()
    for instance_id in (*ids, other):
        await served.beat(instance_id)
    listed = await until(lambda: served.blue.ask("heartbeats", "list"), lambda answer: len(answer["items"]) == 3)
    assert {item["instance_id"] for item in listed["items"]} == {str(each) for each in ids}
    page = await served.blue.ask("heartbeats", "list", limit=2, filter={"status": "HEALTHY"})
    rest = await served.blue.ask("heartbeats", "list", limit=2, marker=page["next_marker"])
    assert [len(page["items"]), len(rest["items"]), rest["next_marker"]] == [2, 1, None]
    watched = await served.blue.ask("heartbeats", "watch", instance_id=str(ids[0]))
    assert (watched["subject"], watched["item"]["sequence"]) == (heartbeat_subject(ids[0]), 1)
    assert len((await served.blue.ask("heartbeats", "watch"))["items"]) == 3


async def test_late_beats_do_not_bring_a_deleted_instance_back(served: Served) -> None:
    instance_id, living = served.story.create(), served.story.create()
    served.story.settle(instance_id)
    await served.caught_up()
    await served.beat(instance_id)
    get = lambda: served.blue.ask("heartbeats", "get", instance_id=str(instance_id))  # noqa: E731
    await until(get, sequence_is(1))
    served.story.command(instance_id, DeleteInstance())
    served.story.settle(instance_id)
    await until(get, lambda answer: isinstance(answer, Refused) and answer.code == "not_found")
    await served.beat(instance_id, 2)
    await served.beat(living, 7)
    await until(lambda: served.blue.ask("heartbeats", "get", instance_id=str(living)), sequence_is(7))
    assert [item["instance_id"] for item in (await served.blue.ask("heartbeats", "list"))["items"]] == [str(living)]
    assert view(served).dropped == 1


async def test_a_deletion_between_two_runs_is_noticed(served: Served, tmp_path: Path) -> None:
    instance_id, living = served.story.create(), served.story.create()
    served.story.settle(instance_id)
    await served.caught_up()
    await served.beat(instance_id)
    await served.beat(living)
    await until(lambda: served.blue.ask("heartbeats", "list"), lambda answer: len(answer["items"]) == 2)
    await served.read.close()
    served.story.command(instance_id, DeleteInstance())
    served.story.settle(instance_id)
    await served.start_again(tmp_path / "read-models")
    left = await until(lambda: served.blue.ask("heartbeats", "list"), lambda answer: len(answer["items"]) == 1)
    assert left["items"][0]["instance_id"] == str(living)
    assert left["items"][0]["age"] >= 0


async def test_what_is_no_beat_of_this_instance_is_dropped(served: Served) -> None:
    instance_id, other = served.story.create(), served.story.create()
    await served.caught_up()
    for number, body in enumerate((b"", b"{}", b"\xff", msgspec.json.encode(heartbeat(other)))):
        await served.client.publish(heartbeat_subject(instance_id), body)
        await served.client.flush()
        await until(lambda: _flushed(served), _dropped(served, number + 1))
    await served.client.publish(heartbeat_subject("no-uuid"), b"{}")
    await until(lambda: _flushed(served), _dropped(served, 5))
    assert (await served.blue.ask("heartbeats", "list"))["items"] == []


def _dropped(served: Served, number: int) -> Callable[[Any], bool]:
    return lambda _: view(served).dropped >= number


async def _flushed(served: Served) -> None:
    await view(served).flush()


_BEAT = """
import asyncio, sys, nats
async def main():
    client = await nats.connect(sys.argv[1])
    bodies = [line.split(b" ", 1) for line in sys.stdin.buffer.read().splitlines()]
    for _ in range(int(sys.argv[2])):
        for subject, body in bodies:
            await client.publish(subject.decode(), body)
        await client.flush()
    await client.close()
asyncio.run(main())
"""


async def test_a_fleet_beats_faster_than_anyone_asks(served: Served, broker: Broker) -> None:
    """Fifty rounds of four hundred instances, as fast as another process can: the last round is what is shown."""
    ids = [served.story.create() for _ in range(400)]
    await served.caught_up()
    rounds = 50
    lines = b"\n".join(
        heartbeat_subject(each).encode() + b" " + msgspec.json.encode(heartbeat(each, rounds)) for each in ids
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _BEAT, broker.url, str(rounds), stdin=subprocess.PIPE
    )
    try:
        await asyncio.wait_for(process.communicate(lines), LONG)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    page = await until(
        lambda: served.blue.ask("heartbeats", "list", limit=1000), lambda answer: len(answer["items"]) == len(ids)
    )
    assert {item["sequence"] for item in page["items"]} == {rounds}
    assert view(served).dropped == 0
