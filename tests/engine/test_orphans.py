"""What is listed as an orphan, and what becomes of it when somebody wants it gone, around a real broker and store."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import nats.errors
import pytest

from aggregates.resources import resource_name
from engine.clouds.port import TransientError
from engine.clouds.simulated import BARE, SimulatedCloud
from engine.clouds.simulated.faults import Call
from engine.messages import EVERY_PROJECT, query_subject
from tests.engine.conftest import Engine
from tests.support.eventually import eventually
from tests.support.publisher import CREATE, Publisher

WHOLE = ["ports", "servers", "volumes"]


async def ask(publisher: Publisher, verb: str, project: str = EVERY_PROJECT, **arguments: Any) -> Any:
    """The answer, as soon as somebody owns the range and gives one."""
    subject, body = query_subject(project, "orphans", verb), json.dumps(arguments).encode()

    async def asked() -> Any:
        try:
            return json.loads((await publisher.client.request(subject, body, timeout=5)).data)
        except nats.errors.TimeoutError:
            return None

    return await eventually(asked, within=60)


async def listed(publisher: Publisher, project: str = EVERY_PROJECT) -> list[str]:
    return [each["id"] for each in (await ask(publisher, "list", project))["items"]]


async def volume(engine: Engine, name: str) -> str:
    """A volume that somebody else has made."""
    made = await engine.cloud.api.call(Call(name="create_volume", args={"name": name, "size": 1}))
    return str(made.id)


async def removed(publisher: Publisher, volume_id: str, instance_id: UUID, project: str = EVERY_PROJECT) -> Any:
    wanted = {"kind": "volume", "id": volume_id, "instance_id": str(instance_id), "actor": "bob"}
    return await ask(publisher, "delete", project, **wanted)


async def adopted(publisher: Publisher, volume_id: str, instance_id: UUID, project: str = EVERY_PROJECT) -> Any:
    wanted = {"kind": "volume", "id": volume_id, "instance_id": str(instance_id), "actor": "bob"}
    return await ask(publisher, "adopt", project, **wanted)


async def robbed(engine: Engine, publisher: Publisher) -> tuple[UUID, str]:
    """An instance whose server and volume were deleted by hand, and a volume of its name that is none of its own."""
    instance_id = uuid4()
    assert (await publisher.send("create_instance", instance_id, CREATE))["accepted"]
    made = await engine.settled(instance_id)
    await engine.cloud.api.call(Call(name="delete_server", args={"id": made.server_id}))
    await engine.cloud.api.call(Call(name="delete_volume", args={"id": made.volume_id}))
    return instance_id, await volume(engine, resource_name(instance_id))


@pytest.fixture(autouse=True)
async def seldom(engine: Engine) -> None:
    """An observer that comes to look only when a test has it look."""
    await engine.stop()
    engine.cloud = SimulatedCloud(catalogue=BARE, latest_effect=timedelta(0))
    engine.options["observe_every"] = 3600
    await engine.start()


async def told(engine: Engine, instance_id: UUID) -> list[str]:
    return [type(event).__name__ for event in await engine.store.events_of(instance_id)]


async def test_what_has_the_name_of_no_instance_of_this_log_is_shown_to_operators_and_removed_on_their_word(
    engine: Engine, publisher: Publisher
) -> None:
    nobody = uuid4()
    volume_id, stranger = await volume(engine, resource_name(nobody)), await volume(engine, "somebody's")
    (orphan,) = (await ask(publisher, "list"))["items"]
    assert (orphan["id"], orphan["instance_id"], orphan["project"]) == (volume_id, str(nobody), None)
    assert orphan["why"] == "no instance of this log has this id"
    assert await listed(publisher, "acme") == []
    assert (await removed(publisher, volume_id, nobody, "acme"))["code"] == "not_found"
    assert await removed(publisher, volume_id, nobody) == {"deleted": volume_id}
    assert list((await engine.cloud.contents())["volumes"]) == [stranger]
    assert (await removed(publisher, volume_id, nobody))["code"] == "not_found"


async def test_the_only_one_left_of_an_instance_is_removed_on_somebodys_word_which_is_on_record(
    engine: Engine, publisher: Publisher
) -> None:
    instance_id, volume_id = await robbed(engine, publisher)
    assert await listed(publisher, "acme") == await listed(publisher) == [volume_id]
    assert await listed(publisher, "green") == []
    assert (await removed(publisher, volume_id, instance_id, "green"))["code"] == "not_found"
    assert await removed(publisher, volume_id, instance_id, "acme") == {"deleted": volume_id}
    assert await engine.held() == ["ports"]
    assert (await told(engine, instance_id))[-2:] == ["OrphanDisowned", "SurplusDeleted"]
    assert (await engine.store.events_of(instance_id))[-2].actor == "bob"


async def test_what_is_an_instances_own_is_neither_listed_nor_removed(engine: Engine, publisher: Publisher) -> None:
    instance_id = uuid4()
    assert (await publisher.send("create_instance", instance_id, CREATE))["accepted"]
    own = (await engine.settled(instance_id)).volume_id
    assert await listed(publisher) == []
    refused = await removed(publisher, own, instance_id)
    assert refused["code"] == "forbidden_state"
    assert "delete the instance" in refused["message"]
    assert await engine.held() == WHOLE


async def test_a_removal_that_is_broken_off_is_finished_by_the_observer(engine: Engine, publisher: Publisher) -> None:
    instance_id, volume_id = await robbed(engine, publisher)
    engine.cloud.fail("ResourceAbsent", TransientError("unavailable", "503"), 1)
    assert (await removed(publisher, volume_id, instance_id))["code"] == "unavailable"
    assert (await told(engine, instance_id))[-1] == "OrphanDisowned"
    await engine.stop()
    engine.options["observe_every"] = 0.1
    await engine.start()

    async def gone() -> bool:
        return "SurplusDeleted" in await told(engine, instance_id)

    await eventually(gone)
    assert await engine.held() == ["ports"]


async def test_the_only_one_left_becomes_the_instances_own_on_somebodys_word(
    engine: Engine, publisher: Publisher
) -> None:
    instance_id, volume_id = await robbed(engine, publisher)
    assert (await adopted(publisher, volume_id, instance_id, "green"))["code"] == "not_found"
    for _ in range(2):
        assert await adopted(publisher, volume_id, instance_id, "acme") == {"adopted": volume_id}
    assert (await told(engine, instance_id)).count("OrphanAdopted") == 1
    assert (await engine.instance(instance_id)).volume_id == volume_id
    assert await listed(publisher) == []
    assert (await publisher.send("delete_instance", instance_id))["accepted"]
    assert (await engine.settled(instance_id)).state == "DELETED"
    assert await engine.held() == []


async def test_nobody_adopts_what_is_of_no_instance_or_comes_beside_what_is_there(
    engine: Engine, publisher: Publisher
) -> None:
    nobody = uuid4()
    refused = await adopted(publisher, await volume(engine, resource_name(nobody)), nobody)
    assert (refused["code"], "not in this log" in refused["message"]) == ("not_found", True)
    instance_id = uuid4()
    assert (await publisher.send("create_instance", instance_id, CREATE))["accepted"]
    own = (await engine.settled(instance_id)).volume_id
    second = await volume(engine, resource_name(instance_id))
    refused = await adopted(publisher, second, instance_id)
    assert (refused["code"], f"volume {own} is, and is there" in refused["message"]) == ("forbidden_state", True)
    assert (await engine.instance(instance_id)).volume_id == own


@pytest.mark.parametrize("wanted", [{}, {"kind": "planet", "id": "x", "instance_id": str(uuid4()), "actor": "bob"}])
async def test_what_is_no_request_is_told_what_is_wrong(
    engine: Engine, publisher: Publisher, wanted: dict[str, str]
) -> None:
    for verb in ("delete", "adopt"):
        assert (await ask(publisher, verb, **wanted))["code"] == "invalid_argument"
