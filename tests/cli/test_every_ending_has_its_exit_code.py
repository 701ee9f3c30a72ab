"""Scripts tell the ways in which a call can end by its exit code, and people by one line on standard error."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.cli.exits import MEANING, Exit
from tests.cli.conftest import INSTANCE, Program, instance, operation
from tests.client.responder import Responder, decided
from tests.support.broker import Broker

HOLDFAST = Path(sys.executable).parent / "holdfast"
NO_ROOM = {"code": "no_valid_host", "message": "No valid host was found", "state": "build_server"}
REFUSED = {"accepted": False, "code": "conflict", "reason": "resize_volume is running"}


def ends(**outcome: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda q: decided(q["command_id"]) | {"outcome": "running"} | outcome


def stands(**state: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda q: operation(q["operation_id"], **state)


@pytest.mark.parametrize(
    ("command", "progress", "exit_code", "said"),
    [
        (ends(outcome="done"), stands(), Exit.OK, ""),
        (ends(outcome="failed", error=NO_ROOM), stands(outcome="failed", error=NO_ROOM), Exit.FAILED, "no_valid_host"),
        (ends(outcome="cancelled"), stands(outcome="cancelled"), Exit.CANCELLED, "cancelled"),
        (ends(**REFUSED), stands(), Exit.REJECTED, "conflict: resize_volume is running"),
        (ends(**REFUSED | {"code": "not_found"}), stands(), Exit.NOT_FOUND, "not_found"),
        (
            ends(),
            stands(outcome="running", state="restart_health", effect="AwaitHealthy", parked=True, error=NO_ROOM),
            Exit.PARKED,
            "AwaitHealthy cannot be done (No valid host was found)",
        ),
        (ends(), stands(outcome="running", state="restart_health"), Exit.TIMEOUT, "goes on"),
    ],
)
async def test_an_operation_that_is_waited_for(
    program: Program,
    responder: Responder,
    command: Callable[[dict[str, Any]], Any],
    progress: Callable[[dict[str, Any]], Any],
    exit_code: Exit,
    said: str,
) -> None:
    responder.answers["commands", "get"] = command
    responder.answers["operations", "get"] = progress
    ended = await program("--timeout", "3", "restart", INSTANCE)
    assert (ended.code, ended.err.count("\n")) == (exit_code, 1 if said else 0)
    assert said in ended.err


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        (("show", "nothing-of-this-name"), Exit.NOT_FOUND, "no instance is named"),
        (("operation", "show", "no-id"), Exit.USAGE, "is not a UUID"),
        (("resize-volume", "orders", "0"), Exit.USAGE, "usage: Invalid value"),
        (("no-such-command",), Exit.USAGE, "see `holdfast --help`"),
        (("show",), Exit.USAGE, "Missing argument 'INSTANCE'"),
        (("list", "--filter", "state"), Exit.USAGE, "write FIELD=VALUE"),
        (("--project", "a.b", "list"), Exit.USAGE, "letters, digits"),
    ],
)
async def test_what_cannot_be_done_is_one_line(
    program: Program, arguments: tuple[str, ...], exit_code: Exit, said: str
) -> None:
    ended = await program(*arguments)
    assert (ended.code, ended.out, ended.err.count("\n")) == (exit_code, "", 1)
    assert said in ended.err
    as_json = await program(*arguments, "--json")
    assert (as_json.code, as_json.err) == (exit_code, ended.err)
    assert as_json.document["error"]["code"] in ended.err


async def test_a_name_that_several_bear_is_not_guessed(program: Program, responder: Responder) -> None:
    responder.answers["instances", "list"] = lambda _: {
        "items": [instance(), instance(id="3f3e4f6e-0000-4000-8000-000000000002")],
        "next_marker": None,
    }
    ended = await program("delete", "orders")
    assert ended.code == Exit.USAGE
    assert "ambiguous_name" in ended.err
    assert "000000000002" in ended.err
    assert responder.commands == []


async def test_no_broker_and_no_engine_are_told_apart_from_an_empty_list(broker: Broker, tmp_path: Path) -> None:
    silent = await Program(broker.url)("list")
    assert (silent.code, "no_responders" in silent.err) == (Exit.UNREACHABLE, True)
    broker.stop()
    gone = await Program(broker.url)("list", "--timeout", "1")
    assert (gone.code, "unreachable" in gone.err) == (Exit.UNREACHABLE, True)
    nowhere = await asyncio.to_thread(Program._call, ["list", "--state", str(tmp_path / "none")], "")
    assert (nowhere.code, "no_engine" in nowhere.err) == (Exit.UNREACHABLE, True)


async def test_an_interrupted_wait_says_that_the_operation_goes_on(program: Program, responder: Responder) -> None:
    responder.answers["operations", "get"] = stands(outcome="running", state="restart_health")
    waiting = _started("--nats", program.url, "--project", "acme", "restart", INSTANCE)
    try:
        await responder.wait_for(lambda: any(name == "operations.get" for name, _ in responder.questions))
        waiting.send_signal(signal.SIGINT)
        out, err = await asyncio.to_thread(waiting.communicate, timeout=60)
    finally:
        waiting.kill()
        waiting.wait(10)
    command_id = responder.commands[0][1]["command_id"]
    assert (waiting.returncode, out) == (Exit.INTERRUPTED, "")
    assert f"operation {command_id} goes on; see it with `holdfast operation watch {command_id}`" in err


async def test_the_help_lists_every_exit_code(program: Program) -> None:
    ended = await program("--help")
    assert ended.code == Exit.OK
    for code, meaning in MEANING.items():
        assert f"{code.value:>3}  {meaning}" in ended.out
    assert set(MEANING) == set(Exit)


def _started(*arguments: str) -> subprocess.Popen[str]:
    # A shell has what it starts in the background ignore SIGINT, and so does all that is started from there.
    command = ["env", "--default-signal=INT", str(HOLDFAST), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
