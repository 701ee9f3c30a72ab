"""Questions over the broker are answered from the read models, for the asker's project alone."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec
import nats.errors
import pytest

from aggregates.commands import DeleteInstance, Restart
from aggregates.health import HealthStatus
from engine.client import Context, OperationFailed, TaskManager
from engine.messages import EVERY_PROJECT, PREFIX, event_subject
from projections.answers import CommandAnswer, FleetAnswer, HistoryAnswer, InstanceAnswer, OperationAnswer, QuotaAnswer
from projections.base import ReadModels
from projections.models import MODELS
from projections.run import run_projector
from tests.projections.served import LONG, Asker, Refused, Served, connected
from tests.projections.story import Story
from tests.support.broker import Broker


async def refusal(asker: Asker, model: str, verb: str, body: bytes | None = None, **arguments: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        await asker.ask(model, verb, body, **arguments)
    return caught.value


async def test_every_model_answers_what_it_declares(served: Served) -> None:
    instance_id = served.story.create()
    served.story.settle(instance_id)
    served.story.reserve("blue", instance_id)
    restart = str(served.story.command(instance_id, Restart()))
    await served.caught_up()
    questions: list[tuple[type[Any], str, dict[str, Any]]] = [
        (InstanceAnswer, "instances", {"instance_id": str(instance_id)}),
        (CommandAnswer, "commands", {"command_id": restart}),
        (OperationAnswer, "operations", {"operation_id": restart}),
        (HistoryAnswer, "history", {"aggregate_id": str(instance_id), "version": 1}),
        (FleetAnswer, "fleet", {}),
        (QuotaAnswer, "quota", {}),
    ]
    for answer, model, arguments in questions:
        got = await served.blue.ask(model, "get", **arguments)
        assert msgspec.json.decode(msgspec.json.encode(msgspec.convert(got, answer))) == got


async def test_troubles_are_told_of_one_project_or_of_all_with_how_far_the_models_are(served: Served) -> None:
    story = served.story
    parked, green = story.create(), story.create(project="green")
    for instance_id in (parked, green):
        story.settle(instance_id)
        story.command(instance_id, DeleteInstance(), project=story.instances[instance_id].project)
        story.stumble(instance_id, 3)
        story.park(instance_id)
    story.create()  # its deadline has passed long ago: the story plays in the past
    silent = story.create(name="silent")
    story.settle(silent)
    story.health(silent, HealthStatus.DOWN)
    story.drift(silent, volume_size=7)
    await served.caught_up()
    answer = await served.blue.ask("troubles", "get")
    assert answer["numbers"] == {"parked": 1, "overdue": 1, "struggling": 0, "down": 1, "drifted": 1}
    told = answer["parked"][0]
    assert (told["instance_id"], told["effect"], told["attempts"]) == (str(parked), "StopDatabase", 3)
    assert told["error"]["message"] == "403"
    assert answer["down"][0]["name"] == "silent"
    assert [each["says"] for each in answer["drifted"][0]["drift"]] == ["volume volume-1 has size 7, not 5"]
    assert (answer["lag"], answer["stopped"]) == (0, {})
    everywhere = await Asker(served.client, EVERY_PROJECT).ask("troubles", "get")
    assert everywhere["numbers"] == {"parked": 2, "overdue": 1, "struggling": 0, "down": 1, "drifted": 1}
    assert {each["project"] for each in everywhere["parked"]} == {"blue", "green"}


async def test_a_read_model_that_stands_still_is_among_the_troubles(served: Served) -> None:
    served.story.create()
    await served.caught_up()
    served.story.spoil()
    async with asyncio.timeout(LONG):
        while True:
            answer = await served.blue.ask("troubles", "get")
            if answer["stopped"]:
                break
            await asyncio.sleep(0.05)
    assert set(answer["stopped"]) <= {"instances", "operations"}
    assert "no_such_state" in next(iter(answer["stopped"].values()))


async def test_lists_are_filtered_sorted_and_paged(served: Served) -> None:
    for ordinal in range(5):
        served.story.create(name=f"db-{ordinal}")
    await served.caught_up()
    first = await served.blue.ask("instances", "list", sort="-name", limit=3)
    rest = await served.blue.ask("instances", "list", sort="-name", limit=3, marker=first["next_marker"])
    assert [item["name"] for item in first["items"] + rest["items"]] == ["db-4", "db-3", "db-2", "db-1", "db-0"]
    assert rest["next_marker"] is None
    named = await served.blue.ask("instances", "list", filter={"name": "db-2"})
    assert [item["name"] for item in named["items"]] == ["db-2"]


@pytest.mark.parametrize("model", ["instances", "commands", "operations", "history"])
async def test_another_project_gets_nothing(served: Served, model: str) -> None:
    instance_id = served.story.create(project="blue")
    operation = served.story.instances[instance_id].operation
    assert operation is not None
    await served.caught_up()
    keys: dict[str, dict[str, Any]] = {
        "instances": {"instance_id": str(instance_id)},
        "commands": {"command_id": str(operation.id)},
        "operations": {"operation_id": str(operation.id)},
        "history": {"aggregate_id": str(instance_id), "version": 1},
    }
    key = keys[model]
    assert await served.blue.ask(model, "get", **key)
    assert (await refusal(served.green, model, "get", **key)).code == "not_found"
    assert (await served.green.ask(model, "list"))["items"] == []
    if model != "history":
        assert (await refusal(served.green, model, "watch", **key)).code == "not_found"


@pytest.mark.parametrize(
    ("model", "verb", "body", "code"),
    [
        ("instances", "get", b"{", "invalid_argument"),
        ("instances", "get", b"\xff\xfe", "invalid_argument"),
        ("instances", "get", b"{}", "invalid_argument"),
        ("instances", "get", b'{"instance_id": "no-uuid"}', "invalid_argument"),
        ("instances", "get", b'{"instance_id": "00000000-0000-0000-0000-000000000001", "x": 1}', "invalid_argument"),
        ("instances", "get", b'{"instance_id": "00000000-0000-0000-0000-000000000001"}', "not_found"),
        ("instances", "list", b'{"limit": 100000000000000000000000}', "invalid_argument"),
        ("instances", "list", b'{"filter": {"name": 99999999999999999999}}', "invalid_argument"),
        ("instances", "list", b'{"filter": {"name": "\\ud800"}}', "invalid_argument"),
        ("instances", "list", b'{"sort": "name; DROP TABLE instances"}', "invalid_argument"),
        ("commands", "get", b'{"command_id": "00000000-0000-0000-0000-000000000001", "wait": 3600}',
         "invalid_argument"),
        ("commands", "get", b'{"command_id": "00000000-0000-0000-0000-000000000001", "wait": 0.05}', "timeout"),
        ("commands", "get", b'{"command_id": "00000000-0000-0000-0000-000000000001"}', "not_found"),
        ("history", "get", b'{"aggregate_id": "00000000-0000-0000-0000-000000000001", "version": 0}',
         "invalid_argument"),
        ("fleet", "list", b"", "unknown_query"),
        ("operations", "destroy", b"", "unknown_query"),
    ],
)  # fmt: skip
async def test_a_bad_question_gets_a_stable_code(served: Served, model: str, verb: str, body: bytes, code: str) -> None:
    assert (await refusal(served.blue, model, verb, body)).code == code


async def test_what_the_worker_answers_is_left_to_it(served: Served) -> None:
    with pytest.raises(nats.errors.NoRespondersError):
        await served.blue.ask("instances", "plan")


async def test_waiting_for_a_decision(served: Served) -> None:
    instance_id, command_id = served.story.create(), uuid4()
    asked = asyncio.create_task(served.blue.ask("commands", "get", command_id=str(command_id), wait=LONG))
    await served.caught_up()
    served.story.command(instance_id, Restart(), command_id=command_id)
    answer = await asked
    assert (answer["accepted"], answer["code"], answer["outcome"]) == (False, "conflict", None)


async def test_waiting_for_an_outcome(served: Served) -> None:
    instance_id = served.story.create()
    served.story.settle(instance_id)
    restart = served.story.command(instance_id, Restart())
    await served.caught_up()
    question: dict[str, Any] = {"command_id": str(restart), "for": "outcome"}
    running = await served.blue.ask("commands", "get", **question, wait=0.05)
    assert running["outcome"] == "running"
    asked = asyncio.create_task(served.blue.ask("commands", "get", **question, wait=LONG))
    served.story.settle(instance_id)
    answer = await asked
    assert (answer["outcome"], answer["error"]) == ("done", None)


async def test_waiting_for_the_outcome_of_what_a_deletion_cancels(served: Served) -> None:
    instance_id = served.story.create()
    operation = served.story.instances[instance_id].operation
    assert operation is not None
    question: dict[str, Any] = {"command_id": str(operation.id), "for": "outcome", "wait": LONG}
    asked = asyncio.create_task(served.blue.ask("commands", "get", **question))
    await served.caught_up()
    served.story.command(instance_id, DeleteInstance())
    assert (await asked)["outcome"] == "cancelled"


async def test_many_who_wait_keep_nobody_from_asking(served: Served) -> None:
    instance_id = served.story.create()
    served.story.settle(instance_id)
    ids = [uuid4() for _ in range(200)]
    waiting = [asyncio.create_task(served.blue.ask("commands", "get", command_id=str(each), wait=LONG)) for each in ids]
    await served.caught_up()
    assert (await served.blue.ask("instances", "get", instance_id=str(instance_id)))["status"] == "ACTIVE"
    for each in ids:
        served.story.command(instance_id, Restart(), command_id=each)
    answers = await asyncio.gather(*waiting)
    assert [answer["accepted"] for answer in answers].count(True) == 1


async def test_watching_gives_what_there_is_and_where_to_follow(served: Served) -> None:
    instance_id = served.story.create()
    served.story.settle(instance_id)
    restart = served.story.command(instance_id, Restart())
    await served.caught_up()
    one = await served.blue.ask("instances", "watch", instance_id=str(instance_id))
    assert one["item"] == await served.blue.ask("instances", "get", instance_id=str(instance_id))
    assert one["position"] == served.story.log.end()
    published = event_subject("blue", "instance", instance_id, "DatabaseRestarted")
    assert published.startswith(one["subject"].removesuffix(">"))
    for name, key in (("operations", "operation_id"), ("commands", "command_id")):
        assert (await served.blue.ask(name, "watch", body=msgspec.json.encode({key: str(restart)})))["subject"] == one[
            "subject"
        ]
    every = await served.blue.ask("instances", "watch", limit=1)
    assert ([item["id"] for item in every["items"]], every["subject"]) == (
        [str(instance_id)], f"{PREFIX}.evt.blue.instance.*.>",
    )  # fmt: skip
    fleet = await served.blue.ask("fleet", "watch")
    assert (fleet["item"]["running"], fleet["subject"]) == (1, f"{PREFIX}.evt.blue.>")
    history = await served.blue.ask("history", "watch", filter={"instance_id": str(instance_id)}, limit=1)
    assert history["items"][0]["name"] == "CommandAccepted"


async def test_a_page_too_large_for_a_message_is_shortened_not_lost(served: Served) -> None:
    for ordinal in range(12):
        instance_id = served.story.create(name=f"db-{ordinal}")
        served.story.until(instance_id, "build_port")
        served.story.fail(instance_id, message="why " * 40_000)
    await served.caught_up()
    seen: list[str] = []
    marker, pages = None, 0
    while marker or not pages:
        page = await served.blue.ask("instances", "list", limit=1000, marker=marker)
        seen += [item["name"] for item in page["items"]]
        marker, pages = page["next_marker"], pages + 1
    assert (len(seen), len(set(seen))) == (12, 12)
    assert pages > 1


async def test_the_service_can_be_found_and_counts(served: Served) -> None:
    await served.blue.ask("fleet", "get")
    info = msgspec.json.decode((await served.client.request("$SRV.INFO.holdfast-projections", timeout=LONG)).data)
    assert {endpoint["subject"] for endpoint in info["endpoints"]} >= {
        f"{PREFIX}.qry.*.instances.list", f"{PREFIX}.qry.*.commands.*", f"{PREFIX}.qry.*.heartbeats.*",
    }  # fmt: skip


async def test_a_new_read_side_goes_on_where_the_old_one_was(served: Served, tmp_path: Path) -> None:
    instance_id: UUID = served.story.create()
    await served.caught_up()
    await served.read.close()
    served.story.settle(instance_id)
    await served.start_again(tmp_path / "read-models")
    await served.caught_up()
    assert (await served.blue.ask("instances", "get", instance_id=str(instance_id)))["status"] == "ACTIVE"


async def test_run_until_cancelled_lets_go_of_everything(story: Story, broker: Broker, tmp_path: Path) -> None:
    client, asking = await connected(broker.url), await connected(broker.url)
    running = asyncio.create_task(run_projector(story.log, tmp_path / "read-models", client))
    async with asyncio.timeout(LONG):
        while True:
            try:
                assert (await Asker(asking).ask("fleet", "get"))["instances"] == 0
                break
            except nats.errors.NoRespondersError:
                await asyncio.sleep(0.05)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    with pytest.raises(nats.errors.NoRespondersError):
        await Asker(asking).ask("fleet", "get")
    ReadModels(tmp_path / "read-models", MODELS).close()
    await asking.close()
    await client.close()


async def test_the_client_follows_an_operation_to_its_end(served: Served, broker: Any) -> None:
    instance_id = served.story.create()
    operation = served.story.instances[instance_id].operation
    assert operation is not None
    async with TaskManager(Context(project="blue", actor="ann"), broker.url) as manager:
        handle = manager.operation(str(operation.id))
        assert (await handle.accepted(LONG)).aggregate_id == str(instance_id)
        seen = []
        async for progress in handle.progress(LONG):
            seen.append((progress.n, progress.state))
            served.story.pay(instance_id)
            await served.caught_up()
            await served.client.publish(event_subject("blue", "instance", instance_id, "Paid"), b"")
        assert seen[0] == (1, "build_quota")
        assert seen[-1] == (len(operation.plan), None)
        assert (await handle.done(LONG)).outcome == "done"


async def test_the_client_is_told_why_an_operation_failed(served: Served, broker: Any) -> None:
    instance_id = served.story.create()
    served.story.settle(instance_id)
    restart = served.story.command(instance_id, Restart())
    async with TaskManager(Context(project="blue", actor="ann"), broker.url) as manager:
        ended = asyncio.create_task(manager.operation(str(restart)).done(LONG))
        served.story.fail(instance_id)
        with pytest.raises(OperationFailed, match=r"No valid host was found\."):
            await ended
