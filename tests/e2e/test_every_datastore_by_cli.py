"""A user makes, uses, changes and deletes an instance of each datastore and version with the program alone."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.databases import Database
from tests.support.installation import Installation

PASSWORD = "correct-horse-battery"
OFFERED = [("postgresql", "16"), ("postgresql", "18"), ("mariadb", "10.11"), ("redis", "6.2")]


def said(made: Installation, *arguments: str, status: int = 0) -> Any:
    """The JSON answer of a call that ends with the status."""
    done = made.holdfast(*arguments, "--json", DB_PASSWORD=PASSWORD)
    assert done.returncode == status, f"{arguments}: {done.stdout}{done.stderr}"
    return json.loads(done.stdout) if done.stdout else None


@pytest.mark.parametrize(("datastore", "version"), OFFERED)
def test_the_life_of_an_instance(made: Installation, datastore: str, version: str) -> None:
    name = f"{datastore}-{version.replace('.', '-')}"
    wanted = ["--datastore", datastore, "--version", version, "--flavor", "micro", "--password-env", "DB_PASSWORD"]
    tenant = ["--user", "app"] if datastore == "redis" else ["--database", "app", "--user", "app:app"]
    said(made, "create", name, *wanted, *tenant)
    database = Database(said(made, "show", name), PASSWORD)
    database.write("key", name)
    for command in (
        ["restart", name],
        ["reboot", name],
        ["resize-volume", name, "2"],
        ["resize-flavor", name, "small"],
        ["migrate", name],
        ["rebuild-server", name],
        ["stop", name],
        ["start", name],
    ):
        said(made, *command)
        if command[0] != "stop":
            assert database.read("key") == name, command
    shown = said(made, "show", name)
    assert (shown["volume_size"], shown["flavor"], shown["status"]) == (2, "small", "ACTIVE")
    assert name in [each["name"] for each in said(made, "list")["items"]]
    said(made, "delete", name)
    said(made, "show", name, status=4)


def test_every_datastore_is_offered(made: Installation) -> None:
    answer = said(made, "datastores")
    listed = answer["items"] if isinstance(answer, dict) and "items" in answer else answer
    found = {(each["manager"], version) for each in listed for version in each["versions"]}
    assert found == set(OFFERED)


def test_a_refusal_says_why_and_ends_with_its_own_status(made: Installation) -> None:
    done = made.holdfast("create", "big", "--datastore", "redis", "--flavor", "colossal")
    assert done.returncode == 3
    assert "colossal" in done.stderr
    assert made.holdfast("restart", "nobody").returncode == 4
    assert made.holdfast("explode").returncode == 2
