"""`holdfast doctor` says what needs a person and how to get it on; its exit code is 1 when something does."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from engine.broker import DEAD_LETTER_STREAM
from engine.cli.exits import Exit
from engine.messages import EVERY_PROJECT, query_subject
from engine.partitions import RANGES
from tests.cli.conftest import INSTANCE, Ended, Program
from tests.client.responder import Responder
from tests.support.broker import Broker, running_broker

OPERATION = "7073baae-6952-4212-9921-4fea574a7650"
WELL: dict[str, Any] = {
    "parked": [], "overdue": [], "struggling": [], "down": [], "drifted": [],
    "numbers": {"parked": 0, "overdue": 0, "struggling": 0, "down": 0, "drifted": 0}, "lag": 0, "stopped": {},
}  # fmt: skip


def member(ranges: Sequence[str]) -> dict[str, Any]:
    return {"id": "w", "host": "a", "pid": 1, "since": "2026-01-01T10:00:00Z", "ranges": list(ranges), "running": 3}


@pytest.fixture(autouse=True)
async def installation(responder: Responder) -> None:
    """All is well."""
    assert responder._client is not None
    await responder._client.subscribe(query_subject(EVERY_PROJECT, "*", "*"), cb=responder._query)
    responder.answers["troubles", "get"] = lambda _: WELL
    responder.answers["workers", "list"] = lambda _: {"items": [member(RANGES[:9]), member(RANGES[9:])]}


def trouble(responder: Responder, kind: str, number: int = 1, **about: Any) -> None:
    """There is one of this kind."""
    operation = {
        "project": "acme", "id": OPERATION, "command": "delete_instance", "instance_id": INSTANCE, "actor": "alice",
        "state": "delete_volume", "effect": "VolumeAbsent", "attempts": 20,
        "error": {"code": "cloud_error", "message": "Volume has dependent snapshots."}, "retry_at": None,
        "deadline": "2030-01-01T00:00:00Z", "started_at": (datetime.now(UTC) - timedelta(hours=3)).isoformat(),
        "name": "orders", "status": "ACTIVE", "health": "DOWN", "host": "host-1",
        "drift": [{"says": "volume v has size 7, not 5"}, {"says": "port p is not there"}],
    }  # fmt: skip
    found = [operation | about]
    responder.answers["troubles", "get"] = lambda _: WELL | {kind: found, "numbers": WELL["numbers"] | {kind: number}}


def acts(ended: Ended) -> list[str]:
    """What needs a person."""
    return [line.removeprefix("ACT ") for line in ended.out.splitlines() if line.startswith("ACT ")]


async def test_where_nothing_needs_a_person_the_exit_code_is_0(program: Program) -> None:
    ended = await program("doctor")
    assert (ended.code, acts(ended)) == (Exit.OK, [])
    for check in (
        "broker: reachable",
        "dead letters: none",
        "workers: 2 serve all partitions and work on 6 aggregates",
        "read models: up to date",
    ):
        assert f"ok  {check}" in ended.out
    assert "cloud:" not in ended.out  # none of these workers has called one
    as_json = await program("doctor", "--json")
    assert as_json.document["ok"] is True
    assert all(finding["ok"] for finding in as_json.document["findings"])


async def test_how_the_cloud_answers_all_workers_is_told_and_wakes_nobody(
    program: Program, responder: Responder
) -> None:
    one = {"nova": {"calls": 40, "busy": 2, "unanswered": 0, "failed": 0}, "cinder": {"calls": 7}}
    other = {"nova": {"calls": 60, "busy": 1, "unanswered": 4, "failed": 5}}
    items = [member(RANGES[:9]) | {"cloud": one}, member(RANGES[9:]) | {"cloud": other}]
    responder.answers["workers", "list"] = lambda _: {"items": items}
    ended = await program("doctor")
    assert ended.code == Exit.OK
    assert (
        "ok  cloud: since its workers began, cinder was called 7 times; "
        "nova was called 100 times, 3 refused as one too many, 4 without an answer, 5 failed"
    ) in ended.out.splitlines()
    (finding,) = [f for f in (await program("doctor", "--json")).document["findings"] if f["check"] == "cloud"]
    assert finding["about"]["nova"] == {"calls": 100, "busy": 3, "unanswered": 4, "failed": 5}


async def test_what_is_parked_is_told_with_its_error_its_age_and_the_commands_that_get_it_on(
    program: Program, responder: Responder
) -> None:
    trouble(responder, "parked")
    ended = await program("doctor")
    assert ended.code == Exit.FAILED
    number, told = acts(ended)
    assert number == "parked: 1 operations are parked:"
    for words in ("VolumeAbsent", "delete_volume", "20 times", "3 hours ago", "Volume has dependent snapshots."):
        assert words in told
    for command in ("retry", "skip", "abandon"):
        assert f"holdfast operation {command} {OPERATION} --project acme" in ended.out
    as_json = await program("doctor", "--json")
    assert (as_json.code, as_json.document["ok"]) == (Exit.FAILED, False)
    (finding,) = [each for each in as_json.document["findings"] if each.get("about")]
    assert finding["about"]["id"] == OPERATION
    assert len(finding["todo"]) == 3


@pytest.mark.parametrize(
    ("kind", "exit_code", "words"),
    [
        ("overdue", Exit.FAILED, f"holdfast operation cancel {OPERATION}"),
        ("struggling", Exit.OK, f"holdfast operation retry {OPERATION}"),
        ("down", Exit.FAILED, f"holdfast reboot {OPERATION}"),
        ("drifted", Exit.FAILED, "but the volume v has size 7, not 5; the port p is not there"),
    ],
)
async def test_each_kind_of_trouble_is_told_and_what_goes_on_by_itself_wakes_nobody(
    program: Program, responder: Responder, kind: str, exit_code: Exit, words: str
) -> None:
    trouble(responder, kind, number=70)
    ended = await program("doctor")
    assert ended.code == exit_code
    assert words in ended.out
    assert "70 " in ended.out
    assert "the oldest 1:" in ended.out


async def test_a_model_that_stands_still_needs_a_person(program: Program, responder: Responder) -> None:
    responder.answers["troubles", "get"] = lambda _: WELL | {"lag": 3, "stopped": {"history": "cannot take event 9"}}
    ended = await program("doctor")
    assert ended.code == Exit.FAILED
    assert acts(ended) == ["read models: 3 events behind the log; history stands still: cannot take event 9"]
    assert "holdfast rebuild" in ended.out


async def test_partitions_that_nobody_serves_need_a_person(
    program: Program, responder: Responder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.cli.doctor._HAND_OVER", 0.1)
    responder.answers["workers", "list"] = lambda _: {"items": [member(RANGES[1:])]}
    ended = await program("doctor")
    assert ended.code == Exit.FAILED
    assert acts(ended) == [f"workers: 1 live, and nobody serves the ranges {RANGES[0]}"]


async def test_a_dead_letter_needs_a_person(program: Program, responder: Responder) -> None:
    assert responder._client is not None
    await responder._client.jetstream().publish("holdfast.v1.dlq.acme.malformed", b"{}", timeout=30)
    ended = await program("doctor")
    assert ended.code == Exit.FAILED
    assert acts(ended) == ["dead letters: 1 wait to be replayed or discarded"]
    assert (await responder._client.jetstream().stream_info(DEAD_LETTER_STREAM)).state.messages == 1


async def test_what_does_not_answer_is_told_by_name(program: Program, responder: Responder, broker: Broker) -> None:
    await responder.stop()
    silent = await program("doctor", "--timeout", "2")
    assert silent.code == Exit.FAILED
    assert [each.partition(":")[0] for each in acts(silent)] == ["workers", "read models"]
    assert "holdfast projector" in silent.out
    broker.stop()
    gone = await program("doctor", "--timeout", "1")
    assert gone.code == Exit.FAILED
    assert [each.partition(":")[0] for each in acts(gone)] == ["broker"]


async def test_a_broker_without_our_streams_is_told(tmp_path: Path) -> None:
    with running_broker(tmp_path / "bare") as bare:
        ended = await Program(bare.url)("doctor")
    assert ended.code == Exit.FAILED
    assert "no stream HOLDFAST_COMMANDS" in ended.out
