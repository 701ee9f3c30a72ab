"""A small real responder for the client's tests: it stands where the engine does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import DiscardPolicy, StreamConfig

from engine.broker import COMMAND_STREAM, BrokerSettings, connect, ensure_streams
from engine.messages import REPLY_TO, command_filter, query_subject


class Responder:
    """Stands where the engine will: keeps what was published, answers queries by the functions given."""

    def __init__(self, project: str = "acme") -> None:
        self.project = project
        self.commands: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.secrets: list[str] = []
        self.questions: list[tuple[str, dict[str, Any]]] = []
        self.answers: dict[tuple[str, str], Callable[[dict[str, Any]], Any]] = {}
        self.on_command: Callable[[dict[str, Any]], Any] | None = None
        self._client: Client | None = None
        self._tasks: list[asyncio.Future[None]] = []

    async def start(self, broker: BrokerSettings, inbox: str | None = None, **stream: Any) -> None:
        self._client = await connect(broker, name="responder", inbox_prefix=inbox)
        if stream:
            config = StreamConfig(name="small", subjects=[command_filter()], discard=DiscardPolicy.NEW, **stream)
            await self._client.jetstream().add_stream(config)
        else:
            await ensure_streams(self._client.jetstream())
        await self._client.subscribe(command_filter(), cb=self._command)
        await self._client.subscribe(query_subject(self.project, "*", "*"), cb=self._query)
        await self._client.flush()

    async def stop(self) -> None:
        if self._client is not None:
            await self._client.close()

    async def _command(self, message: Msg) -> None:
        headers = dict(message.headers or {})
        body = msgspec.json.decode(message.data)
        self.commands.append((message.subject, body, headers))
        if self.on_command is not None and self._client is not None:
            decision = self.on_command(body)
            if decision is not None:
                await self._client.publish(headers[REPLY_TO], msgspec.json.encode(decision))

    async def _query(self, message: Msg) -> None:
        model, verb = message.subject.split(".")[-2:]
        question = msgspec.json.decode(message.data)
        self.questions.append((f"{model}.{verb}", question))
        if (model, verb) == ("secrets", "put"):
            self.secrets.append(question["secret"])
            answer: Any = {"secret_ref": f"vault:{len(self.secrets)}"}
        else:
            answer = self.answers[model, verb](question)
        if answer is not None:
            await message.respond(msgspec.json.encode(answer))

    def publish(self, subject: str) -> None:
        """Publish something there, soon."""
        assert self._client is not None
        self._tasks.append(asyncio.ensure_future(self._client.publish(subject, b"{}")))

    async def stored(self) -> int:
        """How many commands the stream holds."""
        assert self._client is not None
        return (await self._client.jetstream(timeout=30).stream_info(COMMAND_STREAM)).state.messages

    async def wait_for(self, condition: Callable[[], bool], seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError("the condition did not come true")
            await asyncio.sleep(0.02)


def decided(command_id: str, *, accepted: bool = True, **more: Any) -> dict[str, Any]:
    return {
        "command_id": command_id,
        "accepted": accepted,
        "kind": "instance",
        "aggregate_id": "3f3e4f6e-0000-4000-8000-000000000001",
        **more,
    }
