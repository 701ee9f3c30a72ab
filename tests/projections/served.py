"""The read side on a real broker: started, asked, beaten at."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import nats
from nats.aio.client import Client

from engine.messages import GuestStatus, Heartbeat, heartbeat_subject, query_subject
from projections.run import Projections
from tests.projections.story import START, Story

LONG = 30.0


class Refused(Exception):  # noqa: N818 - what a query was answered with
    """A query was answered with an error."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message


class Asker:
    """Asks as one project, with a connection of its own."""

    def __init__(self, client: Client, project: str = "blue") -> None:
        self.client = client
        self.project = project

    async def ask(self, model: str, verb: str, body: bytes | None = None, **arguments: Any) -> Any:
        """The decoded answer. Raises `Refused`, with what the headers say checked against the body."""
        data = msgspec.json.encode(arguments) if body is None else body
        answer = await self.client.request(query_subject(self.project, model, verb), data, timeout=LONG)
        content = msgspec.json.decode(answer.data)
        code = (answer.headers or {}).get("Nats-Service-Error-Code")
        if code is not None:
            assert content["code"] == code
            assert (answer.headers or {})["Nats-Service-Error"]
            raise Refused(content["code"], content["message"])
        return content


class Served:
    """A story, followed and answered about."""

    def __init__(self, story: Story, read: Projections, *, asking: Client, again: Client) -> None:
        self.story = story
        self.read = read
        self.client = asking
        self.blue = Asker(asking, "blue")
        self.green = Asker(asking, "green")
        self._again = again

    async def start_again(self, directory: Path) -> None:
        """Start the read side anew, once the first has been closed."""
        self.read = await Projections.start(self.story.log, directory, self._again)

    async def caught_up(self) -> None:
        """Wait until all that happened can be asked for."""
        await self.read.projector.wait_for(self.story.log.end(), LONG)

    async def beat(self, instance_id: UUID, sequence: int = 1, **changes: Any) -> None:
        """Publish a beat of the instance's agent."""
        beat = heartbeat(instance_id, sequence)
        await self.client.publish(
            heartbeat_subject(instance_id), msgspec.json.encode(msgspec.structs.replace(beat, **changes))
        )


def heartbeat(instance_id: UUID, sequence: int = 1) -> Heartbeat:
    """A beat as agents send it."""
    return Heartbeat(
        instance_id=instance_id,
        boot="boot-1",
        sequence=sequence,
        sent_at=START,
        interval=5.0,
        status=GuestStatus.HEALTHY,
    )


async def connected(url: str) -> Client:
    """A connection that does not try for ever."""
    return await nats.connect(url, connect_timeout=10, max_reconnect_attempts=5)
