"""What is asked for on the command line is what the engine gets, and no password is shown or passed on the way."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from engine.cli.connecting import command_line
from engine.cli.exits import Exit
from tests.cli.conftest import INSTANCE, Program, instance
from tests.client.responder import Responder, decided

CREATE = ("create", "orders", "--datastore", "postgresql", "--flavor", "small")
PLAN = {"accepted": True, "plan": [{"state": "build_quota", "effect": "SendCommand"}], "downtime": "none"}


@pytest.mark.parametrize(
    ("arguments", "command", "args"),
    [
        (("delete", "orders"), "delete_instance", {}),
        (("restart", "orders"), "restart", {}),
        (("reboot", "orders"), "reboot", {}),
        (("reboot", "orders", "--hard"), "reboot", {"hard": True}),
        (("stop", "orders"), "stop_instance", {}),
        (("start", "orders"), "start_instance", {}),
        (("resize-volume", "orders", "4"), "resize_volume", {"new_size": 4}),
        (("resize-flavor", "orders", "large"), "resize_flavor", {"flavor": "large"}),
        (("migrate", "orders"), "migrate", {}),
        (("migrate", INSTANCE, "--host", "host-2"), "migrate", {"host": "host-2"}),
    ],
)
async def test_each_command_is_published_or_planned(
    program: Program, responder: Responder, arguments: tuple[str, ...], command: str, args: dict[str, Any]
) -> None:
    responder.answers["instances", "plan"] = lambda _: PLAN
    planned = await program(*arguments, "--dry-run")
    assert "1\tquota\tbuild_quota\tSendCommand" in planned.out
    assert responder.commands == []
    assert responder.questions[-1] == (
        "instances.plan",
        {"command": command, "args": args, "instance_id": INSTANCE},
    )
    ended = await program(*arguments, "--no-wait")
    subject, body, _ = responder.commands[0]
    assert subject == f"holdfast.v1.cmd.acme.instance.{INSTANCE}.{command}"
    assert body["args"] == args
    assert (ended.code, ended.out) == (Exit.OK, body["command_id"] + "\n")


async def test_a_plan_that_is_refused_is_a_rejection(program: Program, responder: Responder) -> None:
    responder.answers["instances", "plan"] = lambda _: {"accepted": False, "code": "conflict", "reason": "busy"}
    ended = await program("restart", "orders", "--dry-run")
    assert (ended.code, ended.err) == (Exit.REJECTED, "holdfast: conflict: busy\n")


async def test_a_late_decision_does_not_hold_up_who_does_not_wait(program: Program, responder: Responder) -> None:
    responder.answers["commands", "get"] = lambda _: {"code": "timeout", "message": "not decided"}
    ended = await program("--timeout", "1", "--json", "restart", INSTANCE, "--no-wait")
    assert ended.code == Exit.OK
    assert ended.document == {"operation_id": responder.commands[0][1]["command_id"], "instance_id": INSTANCE}
    assert "not decided yet" in ended.err


async def test_everything_about_a_new_instance_is_sent(program: Program, responder: Responder) -> None:
    ended = await program(
        *CREATE, "--version", "18", "--volume", "2", "--volume-type", "fast", "--database", "shop",
        "--user", "app:shop", "--root", "--override", "max_connections=50", "--region", "two", "--zone", "a",
        "--keep-on-failure", "--id", INSTANCE, "--password-stdin", "--no-wait", stdin="first\nsecond\n",
    )  # fmt: skip
    assert (ended.code, ended.err) == (Exit.OK, "")
    assert responder.commands[0][1]["args"] == {
        "name": "orders", "flavor": "small", "datastore": "postgresql", "datastore_version": "18", "volume_size": 2,
        "volume_type": "fast", "databases": [{"name": "shop"}],
        "users": [{"name": "app", "databases": ["shop"], "password_ref": "vault:1"}], "root_password_ref": "vault:2",
        "overrides": {"max_connections": "50"}, "region": "two", "availability_zone": "a",
        "keep_on_failure": True,
    }  # fmt: skip
    assert responder.secrets == ["first", "second"]
    assert "first" not in ended.out


async def test_passwords_come_from_a_file_or_a_variable(
    program: Program, responder: Responder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "passwords"
    file.write_text("from-file\n")
    monkeypatch.setenv("ORDERS_PASSWORD", "from-variable")
    await program(*CREATE, "--user", "app", "--password-file", str(file), "--no-wait")
    await program(*CREATE, "--user", "app", "--password-env", "ORDERS_PASSWORD", "--no-wait")
    assert responder.secrets == ["from-file", "from-variable"]


async def test_generated_passwords_are_told_once_whatever_comes_of_it(program: Program, responder: Responder) -> None:
    ended = await program(*CREATE, "--user", "app", "--generate", "--no-wait")
    assert ended.out.startswith(f"password of app: {responder.secrets[0]}\n")
    assert len(responder.secrets[0]) == 24
    as_json = await program(*CREATE, "--user", "app", "--root", "--generate", "--json")
    assert as_json.document["passwords"] == {"app": responder.secrets[1], "root": responder.secrets[2]}
    responder.answers["commands", "get"] = lambda q: decided(q["command_id"]) | {
        "outcome": "failed", "error": {"code": "no_valid_host", "message": "none"},
    }  # fmt: skip
    failed = await program(*CREATE, "--user", "app", "--generate", "--json")
    assert (failed.code, failed.document["error"]["code"]) == (Exit.FAILED, "no_valid_host")
    assert failed.document["passwords"] == {"app": responder.secrets[3]}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--user", "app"), "nobody can be asked"),
        (("--user", "app", "--password-stdin"), "there are 0 lines"),
        (("--user", "app", "--password-env", "NOT_SET_ANYWHERE"), "there are 0 lines"),
        (("--user", "app", "--password-file", "/nonexistent"), "cannot be read"),
        (("--user", "app", "--generate", "--password-stdin"), "from one place"),
        (("--override", "x"), "write NAME=VALUE"),
        (("--id", "7"), "usage"),
    ],
)
async def test_what_is_wrong_is_told_before_anything_is_sent(
    program: Program, responder: Responder, more: tuple[str, ...], said: str
) -> None:
    ended = await program(*CREATE, *more)
    assert (ended.code, said in ended.err) == (Exit.USAGE, True)
    assert (responder.commands, responder.secrets) == ([], [])


async def test_a_dry_run_needs_no_password(program: Program, responder: Responder) -> None:
    responder.answers["instances", "plan"] = lambda _: PLAN
    ended = await program(*CREATE, "--user", "app", "--root", "--dry-run", "--json")
    assert ended.document == PLAN
    assert responder.secrets == []


async def test_an_instance_without_an_address_cannot_be_connected_to(program: Program, responder: Responder) -> None:
    responder.answers["instances", "list"] = lambda _: {
        "items": [instance(address=None, port=None, status="BUILD")],
        "next_marker": None,
    }
    ended = await program("connect", "orders")
    assert (ended.code, "no_address" in ended.err) == (Exit.FAILED, True)


@pytest.mark.parametrize(
    ("datastore", "tail"),
    [
        ("postgresql", ["-h", "127.0.0.9", "-p", "5432", "-U", "app", "-d", "shop"]),
        ("redis", ["-h", "127.0.0.9", "-p", "5432", "--user", "app", "-n", "shop", "--askpass"]),
    ],
)
def test_the_wheels_bring_clients_that_ask_for_the_password(
    datastore: str, tail: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("REDISCLI_AUTH", raising=False)
    argv = command_line(instance(datastore=datastore), "app", "shop")
    assert argv is not None
    assert os.access(argv[0], os.X_OK)
    assert argv[1:] == tail


def test_the_machines_own_client_goes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = tmp_path / "mariadb"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("MYSQL_PWD", raising=False)
    assert shutil.which("mariadb") == str(own)
    assert command_line(instance(datastore="mariadb"), None, None) == [
        str(own), "-h", "127.0.0.9", "-P", "5432", "-u", "root", "-p",
    ]  # fmt: skip
    monkeypatch.setenv("PATH", "")
    assert command_line(instance(datastore="mariadb"), None, None) is None
