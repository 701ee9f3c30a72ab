"""`holdfast dead-letters`: the operator sees what could not be decided, and replays or discards it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from aggregates.instance import Instance
from aggregates.record import CommandAccepted, CommandRejected
from engine.broker import BrokerSettings, connect
from engine.client.dead_letters import replay_id
from engine.deciding import AGGREGATES
from engine.event_log import open_log
from projections.run import Projections
from tests.cli.conftest import Program
from tests.engine.conftest import Engine
from tests.engine.test_bad_input import envelope
from tests.faults.brittle import POISON, Brittle
from tests.support.publisher import CREATE, Publisher

pytestmark = pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)


@pytest.fixture
async def program(engine: Engine, tmp_path: Path) -> AsyncIterator[Program]:
    client = await connect(BrokerSettings(url=engine.broker.url), name="projector")
    events = open_log(engine.store_url)
    read_side = await Projections.start(events, tmp_path, client)
    yield Program(engine.broker.url)
    await read_side.close()
    events.close()
    await client.close()


@pytest.fixture
def mended(brittle: type[Brittle], monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Set to mend the decider."""
    return monkeypatch


async def poison(publisher: Publisher, **envelope_changes: str) -> tuple[UUID, bytes]:
    instance_id, body = uuid4(), envelope({**CREATE, "name": POISON}, **envelope_changes)
    assert (await publisher.send_body("create_instance", instance_id, body))["code"] == "internal_error"
    return instance_id, body


async def test_letters_are_listed_in_pages_and_by_what_they_are(
    publisher: Publisher, program: Program, brittle: type[Brittle]
) -> None:
    instance_id, body = await poison(publisher)
    await publisher.send_body("create_instance", uuid4(), b"no json, password=hunter2")
    await publisher.send_body("explode", uuid4(), envelope({}))
    ended = await program("dead-letters", "list", "--json")
    assert [each["code"] for each in ended.document["items"]] == ["internal_error", "malformed", "unknown_command"]
    assert [each["replayable"] for each in ended.document["items"]] == [True, False, False]
    assert ended.document["next"] is None
    assert "hunter2" not in ended.out
    first = (await program("dead-letters", "list", "--json", "--limit", "2")).document
    assert [each["id"] for each in first["items"]] == [1, 2]
    rest = (await program("dead-letters", "list", "--json", "--after", str(first["next"]))).document
    assert [each["id"] for each in rest["items"]] == [3]
    for chosen in (
        f"aggregate_id={instance_id}",
        "code=internal_error",
        f"command_id={json.loads(body)['command_id']}",
    ):
        assert [
            e["id"] for e in (await program("dead-letters", "list", "--json", "--filter", chosen)).document["items"]
        ] == [1]
    other = await program("dead-letters", "list", "--project", "other")
    assert len(other.out.splitlines()) == 1
    assert len((await program("dead-letters", "list", "--project", "other", "--all-projects")).out.splitlines()) == 4
    assert (await program("dead-letters", "list", "--filter", "colour=red")).code == 2


async def test_a_letter_is_shown_with_its_traceback(
    publisher: Publisher, program: Program, brittle: type[Brittle]
) -> None:
    _, body = await poison(publisher)
    ended = await program("dead-letters", "show", "1")
    shown = dict(line.split("\t", 1) for line in ended.out.splitlines() if "\t" in line)
    assert shown["command id"] == json.loads(body)["command_id"]
    assert shown["size"] == str(len(body))
    assert shown["tries"] == "3"
    assert json.loads(shown["body"])["args"]["name"] == POISON
    assert "in create" in ended.out
    assert "TimeoutError: no room for poison, root_password=***" in ended.out
    missing = await program("dead-letters", "show", "2")
    assert (missing.code, "not_found" in missing.err) == (4, True)


async def test_a_replay_is_a_command_of_its_own_and_the_first_decision_stands(
    engine: Engine, publisher: Publisher, program: Program, mended: pytest.MonkeyPatch
) -> None:
    instance_id, body = await poison(publisher)
    first = UUID(json.loads(body)["command_id"])
    # Nothing is mended yet: the replay is rejected too, and has a letter of its own.
    rejected = await program("dead-letters", "replay", "1")
    assert (rejected.code, "internal_error" in rejected.err) == (3, True)
    mended.setitem(AGGREGATES, "instance", Instance)
    # Its decision stands as well: what is replayed now is the second letter.
    assert (await program("dead-letters", "replay", "1")).code == 3
    replayed = (await program("dead-letters", "replay", "2", "--json")).document
    second = replay_id(replay_id(first))
    assert replayed == {
        "letter": 2, "command_id": str(second), "replays": str(replay_id(first)), "kept": False, "accepted": True,
    }  # fmt: skip
    assert (await engine.settled(instance_id)).state == "ACTIVE"
    assert isinstance(await engine.store.decision("acme", first), CommandRejected)
    record = await engine.store.decision("acme", second)
    assert isinstance(record, CommandAccepted)
    assert record.actor.startswith("alice, replayed by ")
    # What was accepted is dealt with, the other letter waits for somebody.
    assert [e["id"] for e in (await program("dead-letters", "list", "--json")).document["items"]] == [1]


async def test_a_kept_letter_replayed_twice_is_one_command(
    engine: Engine, publisher: Publisher, program: Program, mended: pytest.MonkeyPatch
) -> None:
    instance_id, _ = await poison(publisher)
    mended.setitem(AGGREGATES, "instance", Instance)
    for _ in range(2):
        assert (await program("dead-letters", "replay", "1", "--keep")).code == 0
    await engine.settled(instance_id)
    made = [e for e in await engine.store.events_of(instance_id) if type(e).__name__ == "InstanceRequested"]
    assert len(made) == 1


async def test_what_is_no_command_cannot_be_replayed(
    publisher: Publisher, program: Program, brittle: type[Brittle]
) -> None:
    await publisher.send_body("create_instance", uuid4(), b"no json")
    ended = await program("dead-letters", "replay", "1")
    assert (ended.code, "not_replayable" in ended.err) == (2, True)


async def test_a_letter_is_discarded_when_asked_for_and_not_before(
    publisher: Publisher, program: Program, brittle: type[Brittle]
) -> None:
    for _ in range(3):
        await publisher.send_body("create_instance", uuid4(), b"no json")
    assert (await program("dead-letters", "discard", "1", stdin="n\n")).code == 130
    assert (await program("dead-letters", "discard", "1", "--json")).code == 2
    assert (await program("dead-letters", "discard", "1", "9", "--yes")).code == 4
    assert len((await program("dead-letters", "list", "--json")).document["items"]) == 3
    assert (await program("dead-letters", "discard", "1", stdin="y\n")).code == 0
    assert (await program("dead-letters", "discard", "2", "3", "--yes")).code == 0
    assert (await program("dead-letters", "list", "--json")).document["items"] == []
