"""An operator limits what a project may hold, by the program or by the client; others may not, and it holds."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import pytest

from engine.client import ClientError, Context, Rejected, TaskManager
from engine.client.connection import Connection
from engine.client.sync import SyncTaskManager
from engine.state import StateDirectory
from tests.support.eventually import soon
from tests.support.installation import Installation

REDIS = ("--datastore", "redis", "--flavor", "micro")  # 256 MiB, and a volume of 1 GiB


def project() -> str:
    """One of whom nobody has heard yet."""
    return f"p{uuid4().hex[:8]}"


def said(made: Installation, of: str, *arguments: str, status: int = 0) -> Any:
    """The JSON answer of a call for the project that ends with the status."""
    done = made.holdfast(*arguments, "--project", of, "--json")
    assert done.returncode == status, f"{arguments}: {done.stdout}{done.stderr}"
    return json.loads(done.stdout)


def quota(made: Installation, of: str) -> dict[str, Any]:
    """What the project holds and may hold."""
    answer = said(made, of, "quota", "show")
    assert isinstance(answer, dict)
    return answer


def _other_than(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    return {} if now == before else now


def _holding(number: int, now: dict[str, Any]) -> dict[str, Any]:
    held: dict[str, Any] = now["held"]
    return held if held["instances"] == number else {}


def test_what_is_set_holds_and_what_is_not_named_stays(made: Installation) -> None:
    one, other = project(), project()
    before = quota(made, one)
    assert set(before["held"]["limits"].values()) == {None}
    assert set(before["limits"]) == {"instances", "ram", "volumes", "backups"}

    answer = said(made, one, "quota", "set", one, "--instances", "3", "--volumes", "unlimited")
    assert answer == {"project": one, "limits": {"instances": 3, "volumes": -1}}
    shown = soon(lambda: _other_than(before, quota(made, one)))
    assert shown["limits"] == before["limits"] | {"instances": 3, "volumes": -1}
    table = made.holdfast("quota", "show", "--project", one).stdout.splitlines()
    assert table[0].split("\t") == ["what", "held", "limit", "set for"]
    assert [line.split("\t")[2:] for line in table if line.startswith(("instances", "volumes"))] == [
        ["3", "this project"],
        ["unlimited", "this project"],
    ]
    assert quota(made, other) == before

    assert "volumes default" in made.holdfast("quota", "set", one, "--volumes", "default", "--instances", "4").stdout
    again = soon(lambda: _other_than(shown, quota(made, one)))
    assert again["limits"] == before["limits"] | {"instances": 4}


def test_what_does_not_fit_fails_with_the_reason_and_what_is_gone_counts_no_more(made: Installation) -> None:
    one = project()
    said(made, one, "quota", "set", one, "--ram", "300", "--backups", "0")
    created = said(made, one, "create", "fits", *REDIS)
    refused = said(made, one, "create", "too-much", *REDIS, status=1)
    assert refused["error"]["code"] == "quota_exceeded"
    assert "512 ram (MiB)" in refused["error"]["message"]
    assert "300" in refused["error"]["message"]
    held = soon(lambda: _holding(1, quota(made, one)))
    assert held["held"] == [{"instance_id": created["instance"]["id"], "ram": 256, "volumes": 1}]
    said(made, one, "delete", created["instance"]["id"])
    nothing = soon(lambda: _holding(0, quota(made, one)))
    assert (nothing["ram"], nothing["volumes"], nothing["held"]) == (0, 0, [])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("p",), "name at least one limit"),
        (("p", "--instances", "many"), "give a number, `unlimited` or `default`"),
        (("p", "--ram", "-3"), "give a number, `unlimited` or `default`"),
        (("a b", "--ram", "1"), "letters, digits"),
        ((), "Missing argument"),
    ],
)
def test_what_cannot_be_meant_is_not_sent(made: Installation, arguments: tuple[str, ...], words: str) -> None:
    done = made.holdfast("quota", "set", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr


def test_the_client_sets_limits_as_operator(made: Installation) -> None:
    one = project()
    connection = Connection.local(StateDirectory(made.state), "operator", timeout=60)
    with SyncTaskManager(Context(project=one, actor="olga"), TaskManager, broker=connection) as manager:
        manager.set_quota({"instances": 2, "ram": -1}).accepted(60)
        manager.set_quota({"instances": None}).accepted(60)
        with pytest.raises(Rejected) as nothing_named:
            manager.set_quota({}).accepted(60)
        with pytest.raises(Rejected) as unknown:
            manager.set_quota({"servers": 2}).accepted(60)
        with pytest.raises(Rejected) as negative:
            manager.set_quota({"volumes": -2}).accepted(60)
    assert {raised.value.code for raised in (nothing_named, unknown, negative)} == {"invalid_argument"}
    wanted = {"instances": None, "ram": -1, "volumes": None, "backups": None}
    assert soon(lambda: quota(made, one)["held"]["limits"] == wanted)


def test_a_publisher_may_not_set_limits(made: Installation) -> None:
    one = project()
    connection = Connection.local(StateDirectory(made.state), timeout=5)
    with (
        SyncTaskManager(Context(project=one, actor="alice"), TaskManager, broker=connection) as manager,
        pytest.raises(ClientError) as raised,
    ):
        manager.set_quota({"instances": 1000}).accepted(5)
    assert raised.value.code == "unauthorised"
    assert quota(made, one)["held"]["limits"]["instances"] is None
