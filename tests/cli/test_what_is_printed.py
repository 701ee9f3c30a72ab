"""People get tables, pipes get lines, programs get one JSON document; none gets what the other needs."""

from __future__ import annotations

import asyncio
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.cli.waiting import step_name
from tests.cli.conftest import INSTANCE, Program, instance, operation
from tests.client.responder import Responder

HOLDFAST = Path(sys.executable).parent / "holdfast"
CATALOGUE = {
    "flavors": [{"id": "2", "name": "small", "vcpus": 1, "ram": 512}],
    "datastores": [{"manager": "redis", "versions": ["6.2"], "parameters": ["timeout", "maxclients"]}],
}
EVENT = {
    "position": 1, "kind": "instance", "aggregate_id": INSTANCE, "instance_id": INSTANCE, "version": 1,
    "name": "InstanceRequested", "at": "2026-01-01T10:00:00Z", "operation_id": None, "command": None, "actor": "alice",
    "facts": {}, "sentence": "alice asked for the instance orders.",
}  # fmt: skip
BEAT = {
    "instance_id": INSTANCE, "status": "HEALTHY", "age": 0.52, "role": "primary", "position": None,
    "volume": {"used": 2**20, "size": 2**30, "warning": True, "read_only": False},
}  # fmt: skip
WORKER = {
    "id": "w-1", "host": "node-1", "pid": 42, "since": "2026-01-01T10:00:00Z", "running": 3,
    "ranges": ["0", "1", "2", "7", "9", "10", "outbox"],
}  # fmt: skip
FLEET = {"instances": 1, "statuses": {"ACTIVE": 1}, "datastores": {"redis": {"6.2": 1}}, "ram": 512}


@pytest.fixture
def answers(responder: Responder) -> None:
    responder.answers["catalogue", "get"] = lambda _: CATALOGUE
    responder.answers["history", "list"] = lambda _: {"items": [EVENT], "next_marker": None}
    responder.answers["heartbeats", "list"] = lambda _: {"items": [BEAT], "next_marker": None}
    responder.answers["operations", "list"] = lambda _: {"items": [operation("o-1")], "next_marker": None}
    responder.answers["fleet", "get"] = lambda _: FLEET
    responder.answers["workers", "list"] = lambda _: {"items": [WORKER]}


@pytest.mark.usefixtures("answers")
@pytest.mark.parametrize(
    ("arguments", "line", "document"),
    [
        (("list",), f"orders\t{INSTANCE}\tACTIVE\tHEALTHY\tpostgresql 18\tsmall\t2 GiB\t127.0.0.9:5432\t-",
         {"items": [instance()]}),
        (("show", "orders"), "because\tDatabaseHealthy by alice's create_instance at 2026-01-01 10:00:09", instance()),
        (("operations",), f"o-1\trestart\t{INSTANCE}\tdone\t2/2\t-\talice\t2026-01-01 10:00:00\t2.0 s",
         {"items": [operation("o-1")]}),
        (("operation", "show", INSTANCE), "plan\tdatabase, health", operation(INSTANCE)),
        (("history", "orders"), "2026-01-01 10:00:00\tInstanceRequested\talice\talice asked for the instance orders.",
         {"items": [EVENT]}),
        (("heartbeats",), f"{INSTANCE}\tHEALTHY\t0.5 s\tprimary\t-\t1 of 1024 MiB nearly full", {"items": [BEAT]}),
        (("datastores",), "redis\t6.2\tmaxclients, timeout", {"items": CATALOGUE["datastores"]}),
        (("flavors",), "small\t2\t1\t512 MiB", {"items": CATALOGUE["flavors"]}),
        (("fleet",), "redis\t6.2 1", FLEET),
        (("workers",), "w-1\tnode-1\t42\t2026-01-01 10:00:00\t3\t0-2, 7, 9-10, outbox", {"items": [WORKER]}),
        (("connect", "orders", "--print"), "127.0.0.9:5432",
         {"id": INSTANCE, "name": "orders", "datastore": "postgresql", "address": "127.0.0.9", "port": 5432}),
        (("restart", "orders"), "restart done after 2.0 s: orders is ACTIVE at 127.0.0.9:5432", None),
    ],
)  # fmt: skip
async def test_lines_for_a_pipe_and_a_document_for_a_program(
    program: Program, arguments: tuple[str, ...], line: str, document: dict[str, Any] | None
) -> None:
    plain = await program(*arguments)
    assert (plain.code, plain.err) == (0, "")
    assert line in plain.out.splitlines()
    assert "\x1b" not in plain.out
    as_json = await program("--json", *arguments)
    assert (as_json.code, as_json.err) == (0, "")
    if document is None:
        assert as_json.document["instance"] == instance()
        assert as_json.document["operation"]["outcome"] == "done"
    else:
        assert as_json.document == document


async def test_a_person_sees_the_step_by_its_name(program: Program, responder: Responder) -> None:
    states = iter([("restart_database", 1), ("restart_health", 2)])

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        state, n = next(states, (None, 2))
        running = {"state": state, "n": n, "outcome": "running", "finished_at": None} if state else {}
        return operation(question["operation_id"], **running)

    responder.answers["operations", "get"] = answer
    seen = await asyncio.to_thread(_on_a_terminal, ["--nats", program.url, "--project", "acme", "restart", "orders"])
    assert "\x1b[" in seen
    assert "restart orders" in seen
    for name in ("database", "health", "0/2", "restart done after 2.0 s"):
        assert name in seen


async def test_names_cannot_steer_the_terminal(program: Program, responder: Responder) -> None:
    responder.answers["instances", "list"] = lambda _: {
        "items": [instance(name="a\x1b[2Jb\t[red]c")],
        "next_marker": None,
    }
    ended = await program("list")
    assert ended.out.splitlines()[1].startswith("a\\x1b[2Jb\\t[red]c\t")
    assert "[red]c" in await asyncio.to_thread(
        _on_a_terminal, ["--nats", program.url, "--project", "acme", "list"], "200"
    )


async def test_a_list_is_read_over_pages_and_says_when_there_is_more(program: Program, responder: Responder) -> None:
    responder.answers["instances", "list"] = lambda q: {
        "items": [instance(name=f"n{q.get('marker', '0')}")],
        "next_marker": str(int(q.get("marker", "0")) + 1),
    }
    ended = await program("list", "--limit", "3")
    assert [line.split("\t")[0] for line in ended.out.splitlines()] == ["name", "n0", "n1", "n2"]
    assert "more than 3" in ended.err


async def test_global_options_stand_on_either_side(program: Program, responder: Responder) -> None:
    for arguments in (("--json", "list"), ("list", "--json"), ("list", "--limit", "5", "--json", "--timeout=20")):
        assert (await program(*arguments)).document["items"][0]["name"] == "orders"
    assert (await program("operation", "show", INSTANCE, "--json")).document["id"] == INSTANCE
    # What an option takes is not an option itself.
    await program("list", "--filter", "--json")
    other = await program("list", "--project", "other", "--timeout", "1")
    assert other.code == 6


@pytest.mark.parametrize(
    ("state", "plan", "name"),
    [
        ("build_server", ("build_quota", "build_server"), "server"),
        ("undo_build_server", ("build_quota", "build_server"), "undo server"),
        ("resize_flavor_stop", ("resize_flavor_quota", "resize_flavor_stop"), "stop"),
        ("undo_resize_flavor_agent", ("resize_flavor_quota", "resize_flavor_stop"), "undo agent"),
        ("stop_server", ("stop_database", "stop_server"), "server"),
        ("restart_health", (), "health"),
        ("odd", ("odd",), "odd"),
        (None, ("build_quota",), "end"),
    ],
)
def test_steps_are_named_after_their_states(state: str | None, plan: tuple[str, ...], name: str) -> None:
    assert step_name(state, plan) == name


def _on_a_terminal(arguments: list[str], columns: str = "120") -> str:
    """What a person sees."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": columns}
    running = subprocess.Popen([HOLDFAST, *arguments], stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    seen = b""
    try:
        while True:
            try:
                more = os.read(ours, 65536)
            except OSError:  # the terminal's other side is closed
                break
            if not more:
                break
            seen += more
        assert running.wait(60) == 0
    finally:
        running.kill()
        running.wait(10)
        os.close(ours)
    return seen.decode()
