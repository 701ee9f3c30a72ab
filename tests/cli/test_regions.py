"""Regions as they are shown: which there are, what each offers, where an instance lies, and which did not answer."""

from __future__ import annotations

from typing import Any

import pytest

from engine.cli.exits import Exit
from engine.messages import EVERY_PROJECT, query_subject
from tests.cli.conftest import Program, instance
from tests.client.responder import Responder


def offer(region: str | None, flavor: str, **more: Any) -> dict[str, Any]:
    flavors = [{"id": flavor, "name": flavor, "vcpus": 1, "ram": 512}]
    datastores = [{"manager": "redis", "versions": ["6.2"], "parameters": []}]
    return {"region": region, "flavors": flavors, "datastores": datastores, "unavailable": None, "regions": {}, **more}


AWAY = offer("three", "none", flavors=[], datastores=[], unavailable="cloud_unreachable: no route")
SEVERAL = offer("one", "small", regions={"two": offer("two", "huge"), "three": AWAY})


@pytest.fixture
def several(responder: Responder) -> None:
    """Three regions, one of which has not answered."""
    responder.answers["catalogue", "get"] = lambda _: SEVERAL


@pytest.mark.usefixtures("several")
async def test_the_regions_are_shown_the_own_first_with_what_each_offers(program: Program) -> None:
    ended = await program("regions")
    assert (ended.code, ended.err) == (Exit.OK, "")
    assert ended.out.splitlines()[1:] == [
        "one\tsmall\tredis 6.2\t-",
        "two\thuge\tredis 6.2\t-",
        "three\t-\t-\tcloud_unreachable: no route",
    ]
    items = (await program("--json", "regions")).document["items"]
    assert [(each["region"], each["flavors"]) for each in items] == [
        ("one", ["small"]),
        ("two", ["huge"]),
        ("three", []),
    ]


@pytest.mark.usefixtures("several")
async def test_what_a_region_offers_is_shown_for_it_alone(program: Program) -> None:
    assert (await program("flavors", "--region", "two")).out.splitlines()[1:] == ["huge\thuge\t1\t512 MiB"]
    assert (await program("flavors")).out.splitlines()[1:] == ["small\tsmall\t1\t512 MiB"]
    assert "redis\t6.2" in (await program("datastores", "--region", "two")).out
    ended = await program("flavors", "--region", "four")
    assert ended.code == Exit.USAGE
    assert "no region four; there are: one, two, three" in " ".join(ended.err.split())


async def test_where_there_are_none_it_is_said(program: Program, responder: Responder) -> None:
    responder.answers["catalogue", "get"] = lambda _: offer(None, "small")
    assert (await program("--json", "regions")).document == {"items": []}
    ended = await program("flavors", "--region", "two")
    assert "there are: none by name" in " ".join(ended.err.split())


async def test_where_an_instance_lies_is_shown(program: Program, responder: Responder) -> None:
    found = instance(region="two")
    responder.answers["instances", "list"] = lambda _: {"items": [found, instance()], "next_marker": None}
    responder.answers["instances", "get"] = lambda _: found
    lines = [line.split("\t") for line in (await program("list")).out.splitlines()]
    assert [line[lines[0].index("region")] for line in lines] == ["region", "two", "-"]
    assert "region\ttwo" in (await program("show", found["id"])).out.splitlines()


async def test_orphans_of_a_region_that_did_not_answer_are_said_to_be_missing(
    program: Program, responder: Responder
) -> None:
    assert responder._client is not None
    await responder._client.subscribe(query_subject(EVERY_PROJECT, "*", "*"), cb=responder._query)
    responder.answers["orphans", "list"] = lambda _: {
        "items": [],
        "silent": {"two": "cloud_timeout: no answer in time"},
    }
    responder.answers["troubles", "get"] = lambda _: {"drifted": []}
    ended = await program("orphans")
    assert ended.code == Exit.OK
    assert "region two did not say what it holds: cloud_timeout: no answer in time" in ended.err
