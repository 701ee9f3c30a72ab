"""`holdfast operation cancel|retry|skip|abandon`: what is sent, what is waited for, and how the call ends."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from engine.cli.exits import Exit
from tests.cli.conftest import INSTANCE, Program, operation
from tests.client.responder import Responder, decided

OPERATION = str(uuid4())
CANCELLED = {"code": "cancelled", "message": "cancelled by alice", "state": "migrate_agent"}
ABANDONED = {"code": "abandoned", "message": "abandoned by alice", "state": "delete_volume"}


def stands(responder: Responder, outcome: str, error: dict[str, Any] | None = None, **state: Any) -> None:
    """The operation ends so; the commands about it are done as soon as they are decided."""
    responder.answers["operations", "get"] = lambda q: operation(
        q["operation_id"], outcome=outcome, error=error, **state
    )
    responder.answers["commands", "get"] = lambda q: (
        decided(q["command_id"])
        | ({"outcome": outcome, "error": error} if q["command_id"] == OPERATION else {"outcome": "done", "error": None})
    )


@pytest.mark.parametrize(
    ("arguments", "command", "args"),
    [
        (("cancel",), "cancel_operation", {}),
        (("cancel", "--reason", "by mistake"), "cancel_operation", {"reason": "by mistake"}),
        (("retry",), "retry_operation", {}),
        (("skip",), "skip_step", {}),
        (("skip", "--by-hand"), "skip_step", {"facts": {}}),
        (("skip", "--fact", "port=5432", "--fact", "host=a"), "skip_step", {"facts": {"port": 5432, "host": "a"}}),
        (("abandon", "--reason", "enough"), "abandon_operation", {"reason": "enough"}),
    ],
)
async def test_each_is_sent_to_the_instance_of_the_operation(
    program: Program, responder: Responder, arguments: tuple[str, ...], command: str, args: dict[str, Any]
) -> None:
    stands(responder, "running")
    ended = await program("operation", arguments[0], OPERATION, *arguments[1:], "--no-wait")
    assert (ended.code, ended.out) == (Exit.OK, OPERATION + "\n")
    subject, body, _ = responder.commands[0]
    assert subject == f"holdfast.v1.cmd.acme.instance.{INSTANCE}.{command}"
    assert body["args"] == {"operation_id": OPERATION, **args}


@pytest.mark.parametrize(
    ("command", "outcome", "error", "exit_code"),
    [
        ("cancel", "cancelled", CANCELLED, Exit.OK),
        ("cancel", "done", None, Exit.OK),
        ("retry", "done", None, Exit.OK),
        ("retry", "cancelled", CANCELLED, Exit.CANCELLED),
        ("retry", "failed", ABANDONED, Exit.FAILED),
        ("skip", "done", None, Exit.OK),
        ("abandon", "failed", ABANDONED, Exit.OK),
    ],
)
async def test_the_end_that_was_asked_for_is_success(
    program: Program,
    responder: Responder,
    command: str,
    outcome: str,
    error: dict[str, Any] | None,
    exit_code: Exit,
) -> None:
    sentence = "alice abandoned the operation in delete_volume; left: volume v (holdfast-x)."
    responder.answers["history", "list"] = lambda _: {"items": [{"sentence": sentence}], "next_marker": None}
    stands(responder, outcome, error)
    ended = await program("operation", command, OPERATION)
    assert ended.code == exit_code, ended.err
    assert (sentence in ended.err) == (command == "abandon")
    as_json = await program("operation", command, OPERATION, "--json")
    assert as_json.code == exit_code
    assert ("operation" if exit_code is Exit.OK else "error") in as_json.document


async def test_what_parks_again_is_told(program: Program, responder: Responder) -> None:
    stands(responder, "running", state="delete_volume", effect="VolumeAbsent", parked=True, error=CANCELLED)
    ended = await program("operation", "retry", OPERATION)
    assert ended.code == Exit.PARKED
    assert f"holdfast operation show {OPERATION}" in ended.err


async def test_a_refusal_is_a_rejection_and_an_unknown_operation_not_found(
    program: Program, responder: Responder
) -> None:
    stands(responder, "running")
    responder.answers["commands", "get"] = lambda q: decided(
        q["command_id"], accepted=False, code="forbidden_state", reason="it has nothing that undoes it"
    )
    ended = await program("operation", "cancel", OPERATION)
    assert (ended.code, "nothing that undoes it" in ended.err) == (Exit.REJECTED, True)
    responder.answers["operations", "get"] = lambda _: {"code": "not_found", "message": "none"}
    assert (await program("operation", "cancel", OPERATION)).code == Exit.NOT_FOUND


async def test_a_dry_run_shows_what_would_undo(program: Program, responder: Responder) -> None:
    stands(responder, "running")
    responder.answers["instances", "plan"] = lambda _: {
        "accepted": True,
        "plan": [{"state": "undo_build_server", "effect": "ServerAbsent"}],
    }
    ended = await program("operation", "cancel", OPERATION, "--dry-run")
    assert "undo_build_server\tServerAbsent" in ended.out
    assert responder.commands == []
    asked = {"command": "cancel_operation", "args": {"operation_id": OPERATION}, "instance_id": INSTANCE}
    assert responder.questions[-1] == ("instances.plan", asked)


async def test_a_fact_needs_a_name(program: Program) -> None:
    ended = await program("operation", "skip", OPERATION, "--fact", "5432")
    assert (ended.code, "write NAME=VALUE" in ended.err) == (Exit.USAGE, True)


async def test_what_can_be_done_about_a_parked_operation_is_shown_as_commands(
    program: Program, responder: Responder
) -> None:
    stands(
        responder, "running", command="delete_instance", state="delete_volume", effect="VolumeAbsent", parked=True,
        plan=["delete_volume"],
    )  # fmt: skip
    shown = await program("operation", "show", OPERATION)
    for command in ("retry", "skip", "abandon"):
        assert f"holdfast operation {command} {OPERATION}" in shown.out
    assert "holdfast delete" not in shown.out
    stands(
        responder, "running", command="resize_volume", state="resize_volume_grow", effect="GrowFileSystem", parked=True,
        plan=["resize_volume_grow"],
    )  # fmt: skip
    shown = await program("operation", "show", OPERATION)
    assert f"holdfast operation skip {OPERATION} --by-hand" in shown.out
    assert f"holdfast delete {INSTANCE}" in shown.out
