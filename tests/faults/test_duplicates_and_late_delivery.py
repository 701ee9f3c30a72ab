"""Messages that come several times, shuffled and late lead to the same state as once and in order."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import msgspec
import pytest

from engine.broker import BrokerSettings, connect, streams
from engine.messages import MSG_ID, CommandSubject, message_id
from projections.base import ReadModels
from projections.models import MODELS
from tests.engine.conftest import Engine
from tests.faults.load import whole_log
from tests.projections.asking import catch_up
from tests.projections.asking import connect as reading
from tests.support.broker import running_broker
from tests.support.eventually import eventually
from tests.support.publisher import CREATE

WINDOW = 0.3  # seconds for which the broker knows a message
LIVES = 6
LIFE: tuple[tuple[str, dict[str, Any]], ...] = (
    ("create_instance", CREATE),
    ("resize_volume", {"new_size": 2}),
    ("resize_flavor", {"flavor": "colossal"}),  # refused
    ("stop_instance", {}),
    ("restart", {}),  # refused: it is stopped
    ("start_instance", {}),
    ("resize_flavor", {"flavor": "large"}),
    ("delete_instance", {}),
)
# What another run of the same commands says otherwise: times, places in the stream, what the cloud chose.
CHANCE = {
    "timestamp", "sequence", "deadline", "port_id", "address", "volume_id", "server_id", "host", "old_host", "new_host",
}  # fmt: skip


class Message(msgspec.Struct, frozen=True):
    """A command as it is published, any number of times."""

    command_id: UUID
    subject: str
    body: bytes


class Publishing:
    """Publishes messages and counts what the broker took for a repetition."""

    def __init__(self, stream: Any, random: Random) -> None:
        self.done: Counter[str] = Counter()
        self._stream = stream
        self._random = random

    async def once(self, messages: Sequence[Message]) -> None:
        """Each one time, in order."""
        for message in messages:
            await self._stream.publish(message.subject, message.body)

    async def often(self, messages: Sequence[Message], earlier: Sequence[Message]) -> None:
        """Each one to five times, and some earlier ones again, all shuffled; with the header and without."""
        late = self._random.sample(earlier, min(len(earlier), 5))
        copies = [m for m in messages for _ in range(self._random.randint(1, 5))] + late
        self._random.shuffle(copies)
        self.done["copies"] += len(copies) - len(messages)
        self.done["late"] += len(late)
        for copy in copies:
            known = {MSG_ID: message_id("acme", copy.command_id, copy.body)}
            headers = known if self._random.random() < 0.5 else None
            acknowledged = await self._stream.publish(copy.subject, copy.body, headers=headers)
            self.done["dropped by the broker"] += bool(acknowledged.duplicate)


def waves(random: Random) -> list[list[Message]]:
    """The first command of every life, the second of every one, and so on."""
    ids = [UUID(int=random.getrandbits(128), version=4) for _ in range(LIVES)]
    return [[_message(random, each, command, args) for each in ids] for command, args in LIFE]


def _message(random: Random, instance_id: UUID, command: str, args: dict[str, Any]) -> Message:
    command_id = UUID(int=random.getrandbits(128), version=4)
    body = {"command_id": str(command_id), "args": args, "actor": "alice", "issued_at": "2026-01-31T12:00:00Z"}
    subject = CommandSubject("acme", "instance", str(instance_id), command)
    return Message(command_id, str(subject), json.dumps(body).encode())


Wave = Callable[[Publishing, list[Message], list[Message]], Any]


async def lived(directory: Path, store_url: str, seed: int, publish: Wave) -> tuple[Any, Counter[str]]:
    """The state that all lives end in, published so."""
    random = Random(seed)
    planned = waves(random)
    with running_broker(directory / "broker") as broker:
        engine = Engine(broker, store_url)
        await engine.start()
        client = await connect(BrokerSettings(url=broker.url), name="publisher")
        publishing = Publishing(client.jetstream(), random)
        earlier: list[Message] = []
        for wave in (*planned, []):

            async def over(wave: list[Message] = wave) -> bool:
                decided = [await engine.store.decision("acme", each.command_id) for each in wave]
                return None not in decided and not await engine.store.owing()

            await publish(publishing, wave, earlier)
            await eventually(over)
            earlier += wave
        state = await end_state(engine, directory)
        await client.close()
        await engine.stop()
    return state, publishing.done


async def end_state(engine: Engine, directory: Path) -> Any:
    """Each aggregate's history and each row of the read models, but for what is chance."""
    histories: dict[UUID, list[Any]] = {}
    quota: Counter[str] = Counter()
    for stored in await whole_log(engine.store):
        if stored.topic.startswith("quota."):
            quota[stored.topic] += 1  # whose turn it is there depends on how the lives lie in time
            continue
        facts = _steady(msgspec.to_builtins(stored.event))
        if facts.get("aggregate_kind") == "quota":
            del facts["version"]
        histories.setdefault(stored.aggregate_id, []).append((stored.version, stored.topic, facts))
    commands = await engine.client.jetstream().stream_info("HOLDFAST_COMMANDS")
    assert commands.state.messages > 0
    return histories, quota, _rows(engine, directory)


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _steady(inner) for key, inner in value.items() if key not in CHANCE}
    return [_steady(inner) for inner in value] if isinstance(value, list) else value


def _rows(engine: Engine, directory: Path) -> list[tuple[Any, ...]]:
    models = ReadModels(directory / "models", MODELS)
    catch_up(models, engine.store.log)
    models.close()
    with closing(reading(directory / "models")) as connection:
        return [
            tuple(row)
            for question in (
                "SELECT id, status, state, flavor, volume_size, version, last_event FROM instances ORDER BY id",
                "SELECT id, command, outcome, n, m FROM operations WHERE kind = 'instance' ORDER BY id",
            )
            for row in connection.execute(question)
        ]


async def _often(publishing: Publishing, wave: list[Message], earlier: list[Message]) -> None:
    await asyncio.sleep(WINDOW)  # what is repeated from before the wave, the broker does not know any more
    await publishing.often(wave, earlier)


@pytest.mark.parametrize("store_url", ["postgresql"], indirect=True)
async def test_each_message_several_times_shuffled_and_late_is_each_once(
    tmp_path: Path, store_url: str, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    monkeypatch.setattr(streams, "DEDUPLICATION", WINDOW)
    for name in ("once", "often"):
        (tmp_path / name).mkdir()
    once, _ = await lived(
        tmp_path / "once", f"sqlite://{tmp_path}/once.db", 7, lambda publishing, wave, _: publishing.once(wave)
    )
    often, done = await lived(tmp_path / "often", store_url, 7, _often)
    assert len(once[0]) > LIVES * (1 + len(LIFE))  # instances, their records, and those of the commands to the quota
    assert often[0].keys() == once[0].keys()
    for aggregate_id, history in once[0].items():
        assert often[0][aggregate_id] == history
    assert often[1:] == once[1:]
    assert done["dropped by the broker"] > 0
    told = ", ".join(f"{n} {what}" for what, n in done.items())
    record_property("figures", f"{LIVES * len(LIFE)} commands and {told}: the same end state as each once, in order")
