"""`holdfast orphans` shows what nobody has, and removes what was shown and agreed to, the servers first."""

from __future__ import annotations

from typing import Any

import pytest

from engine.cli.exits import Exit
from engine.messages import EVERY_PROJECT, query_subject
from tests.cli.conftest import INSTANCE, Program
from tests.client.responder import Responder


def orphan(kind: str, **about: Any) -> dict[str, Any]:
    given = {
        "kind": kind, "id": f"{kind}-9", "name": f"holdfast-{INSTANCE}", "instance_id": INSTANCE, "project": "acme",
        "status": "available", "size": None, "host": None, "server_id": None, "region": None,
        "why": "nobody has it",
    }  # fmt: skip
    return {**given, **about}


DRIFTED = {
    "project": "acme", "id": INSTANCE, "name": "orders", "status": "ACTIVE",
    "drift": [{"says": "volume v has size 7, not 5", "since": "2026-01-01T10:00:00Z"}],
}  # fmt: skip


@pytest.fixture(autouse=True)
async def installation(responder: Responder) -> None:
    """There are two orphans, and an instance that has drifted."""
    assert responder._client is not None
    await responder._client.subscribe(query_subject(EVERY_PROJECT, "*", "*"), cb=responder._query)
    responder.answers["orphans", "list"] = lambda _: {"items": [orphan("volume", size=1), orphan("server")]}
    responder.answers["orphans", "delete"] = lambda q: {"deleted": q["id"]}
    responder.answers["orphans", "adopt"] = lambda q: {"adopted": q["id"]}
    responder.answers["troubles", "get"] = lambda _: {"drifted": [DRIFTED]}


def asked(responder: Responder, verb: str = "delete") -> list[str]:
    """What was to be removed, in order."""
    return [question["id"] for name, question in responder.questions if name == f"orphans.{verb}"]


async def test_orphans_and_drift_are_shown_and_nothing_is_removed(program: Program, responder: Responder) -> None:
    ended = await program("orphans")
    assert ended.code == Exit.OK
    for words in ("volume-9", "server-9", "nobody has it", "orders", "the volume v has size 7, not 5"):
        assert words in ended.out
    as_json = await program("orphans", "--json")
    assert [each["id"] for each in as_json.document["orphans"]] == ["volume-9", "server-9"]
    assert as_json.document["drifted"] == [DRIFTED]
    assert asked(responder) == []


@pytest.mark.parametrize("answer", ["", "n\n"])
async def test_what_is_not_agreed_to_is_not_removed(program: Program, responder: Responder, answer: str) -> None:
    ended = await program("orphans", "--delete", stdin=answer)
    assert ended.code != Exit.OK
    assert "Remove these 2" in ended.err
    assert asked(responder) == []


@pytest.mark.parametrize(("options", "answer"), [((), "y\n"), (("--yes",), "")])
async def test_what_is_agreed_to_is_removed_the_servers_first(
    program: Program, responder: Responder, options: tuple[str, ...], answer: str
) -> None:
    ended = await program("orphans", "--delete", *options, stdin=answer)
    assert ended.code == Exit.OK
    assert asked(responder) == ["server-9", "volume-9"]
    assert "volume volume-9 is gone" in ended.out


async def test_one_that_cannot_be_removed_keeps_no_other_and_is_told(program: Program, responder: Responder) -> None:
    refused = {"code": "in_use", "message": "server s has it"}
    responder.answers["orphans", "delete"] = lambda q: refused if q["kind"] == "server" else {"deleted": q["id"]}
    ended = await program("orphans", "--delete", "--yes", "--json")
    assert ended.code == Exit.FAILED
    outcomes = {each["id"]: each.get("error", each.get("deleted")) for each in ended.document["orphans"]}
    assert outcomes == {"server-9": refused, "volume-9": True}


async def test_a_program_is_not_asked(program: Program, responder: Responder) -> None:
    assert (await program("orphans", "--delete", "--json")).code == Exit.USAGE
    assert asked(responder) == []


async def test_where_there_is_nothing_it_says_so_and_asks_for_nothing(program: Program, responder: Responder) -> None:
    responder.answers["orphans", "list"] = lambda _: {"items": []}
    responder.answers["troubles", "get"] = lambda _: {"drifted": []}
    ended = await program("orphans", "--delete")
    assert (ended.code, asked(responder)) == (Exit.OK, [])


async def test_what_is_agreed_to_is_adopted(program: Program, responder: Responder) -> None:
    ended = await program("orphans", "--adopt", "--id", "volume-9", stdin="y\n")
    assert ended.code == Exit.OK
    assert "Record these 1" in ended.err
    assert (asked(responder, "adopt"), asked(responder)) == (["volume-9"], [])
    assert "volume volume-9 is its instance's own" in ended.out


async def test_only_what_is_listed_can_be_chosen_and_for_one_thing(program: Program, responder: Responder) -> None:
    ended = await program("orphans", "--delete", "--yes", "--id", "volume-8")
    assert (ended.code, asked(responder)) == (Exit.USAGE, [])
    assert "volume-8 is no orphan" in ended.err
    ended = await program("orphans", "--delete", "--adopt", "--yes")
    assert (ended.code, asked(responder), asked(responder, "adopt")) == (Exit.USAGE, [], [])
