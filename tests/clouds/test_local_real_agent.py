"""With the real guest agent in it, a server of the local cloud beats on the broker, as nobody of importance."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import UUID

import msgspec
import nats
import psutil

from engine.clouds.local import access
from engine.clouds.local.cloud import launch_agent
from engine.messages import Heartbeat, heartbeat_subject
from tests.clouds.local_setup import local_cloud, marked
from tests.clouds.wishes import Wishes
from tests.support.broker import running_broker


async def beats(url: str, instance_id: UUID, boots: set[str]) -> Heartbeat:
    """The next heartbeat of an agent that was not seen yet."""
    client = await nats.connect(url)
    subscription = await client.subscribe(heartbeat_subject(instance_id))
    try:
        async with asyncio.timeout(60):
            while True:
                beat = msgspec.json.decode((await subscription.next_msg(60)).data, type=Heartbeat)
                if beat.boot not in boots:
                    boots.add(beat.boot)
                    return beat
    finally:
        await client.close()


async def test_the_agent_beats_and_beats_again_after_a_migration(directory: Path) -> None:
    with running_broker(directory / "broker") as broker:
        cloud = local_cloud(directory / "cloud", nats_url=broker.url, launcher=launch_agent)
        await cloud.start()
        wishes = Wishes(cloud)
        await wishes.build()
        boots: set[str] = set()
        assert (await beats(broker.url, wishes.id, boots)).instance_id == wishes.id
        (agent,) = marked(wishes.facts["server_id"])
        expected = access.unprivileged()
        if expected is not None:
            assert (agent.uids().real, agent.gids().real) == expected
        await wishes.pay(wishes.migrate())
        assert (await beats(broker.url, wishes.id, boots)).instance_id == wishes.id
        assert not psutil.pid_exists(agent.pid) or not agent.is_running()
        await wishes.remove()
        assert marked(wishes.facts["server_id"]) == []
        assert not any(found for found in (await cloud.contents()).values())
        await cloud.close()
