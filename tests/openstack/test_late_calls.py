"""Requests that lie somewhere while their answers are missing, and are carried out late, when the same has been made
already: one of everything is left, and history names what was removed.
"""

from __future__ import annotations

import asyncio
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from uuid import UUID, uuid4

import nkeys  # type: ignore[import-untyped]
import psycopg
import pytest
from openstack.connection import Connection

from engine.partitions import range_of_aggregate
from engine.store import open_store
from tests.openstack.adapter import Doors, doors
from tests.openstack.ledger import holdings, remove
from tests.openstack.proxy import Door
from tests.openstack.services import Lab
from tests.openstack.site import Site, running_site
from tests.support.broker import running_broker
from tests.support.broker_users import Key, asks_about_guests
from tests.support.eventually import soon
from tests.support.installation import HOLDFAST

LATE = 8.0  # seconds; more than another worker takes to take over and to make its own
MORE = 'external = "lab-public"\n[timing]\ncall = 10.0\nlatest_effect = 20.0\n'
# The interface and the end of the path of requests of which two may be carried out; and how many are. Nothing keeps a
# second group or volume from being made; a second address for the same port Neutron refuses.
ASKED_FOR = {("network", "security-groups"): 2, ("block_storage", "volumes"): 2, ("network", "floatingips"): 1}


@pytest.fixture
def store(postgres: str) -> str:
    """The URL of a store of its own that several workers can share."""
    schema = f"late_{uuid4().hex}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
    return f"{postgres}?schema={schema}"


@pytest.fixture
def through(lab: Lab, service: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Doors]:
    """The doors, served in a thread of their own; programs that start meanwhile go through them."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    opened = doors(service, tmp_path)
    try:
        made = asyncio.run_coroutine_threadsafe(opened.__aenter__(), loop).result(30)
        monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(made.write()))
        yield made
        asyncio.run_coroutine_threadsafe(opened.__aexit__(None, None, None), loop).result(30)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)


class Shared(NamedTuple):
    """A Holdfast whose work others may share. `connecting`: how to reach its broker; `serving`: what workers need."""

    site: Site
    connecting: tuple[str, ...]
    serving: tuple[str, ...]


@pytest.fixture
def shared(
    lab: Lab, service: Connection, through: Doors, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Shared]:
    """On a broker of its own: the embedded one belongs to one process."""
    monkeypatch.setenv("HOLDFAST_STORE", store)
    engine, enrol, issuer = Key(), Key(), Key(nkeys.PREFIX_BYTE_ACCOUNT)
    seeds = ["--guest-seed", str(enrol.write(tmp_path / "enrol.nk"))]
    seeds += ["--callout-seed", str(issuer.write(tmp_path / "callout.nk"))]
    with running_broker(tmp_path / "broker", asks_about_guests(engine, enrol, issuer)) as broker:
        connecting = ("--nats", broker.url, "--seed", str(engine.write(tmp_path / "engine.nk")))
        serving = (*connecting, "--durable-broker", *seeds)
        with running_site(lab, service, *serving, broker=broker.url, more=MORE, cloud="doors") as site:
            yield Shared(site, connecting, serving)


@pytest.mark.timeout(600)
def test_what_a_dead_worker_has_asked_for_comes_late_and_is_removed(
    shared: Shared, admin: Connection, through: Doors, store: str
) -> None:
    site, connecting, _ = shared
    wanted = ("--datastore", "redis", "--version", "6.2", "--flavor", "lab.small", "--public", "--user", "app")
    with _second_worker(shared) as second, ThreadPoolExecutor() as threads:
        instance_id = _instance_of(store, second.pid)
        for interface, kind in ASKED_FOR:
            through.at[interface].late = LATE
            through.at[interface].plan("POST", f"/{kind}$", Door.LATE)
        asked = ("create", "late", *wanted, "--id", str(instance_id), "--password-env", "DB_PASSWORD", *connecting)
        created = threads.submit(site.said, *asked)
        soon(lambda: through.at["block_storage"].lying or created.done(), within=120)
        second.kill()
        try:
            created.result(300)
            shown = site.said("show", "late", *connecting)
            there = Counter(each.kind for each in holdings(admin, str(instance_id)))
            told = site.said("history", "late", *connecting)["items"]
            site.said("delete", "late", *connecting)
            assert holdings(admin, str(instance_id)) == []
        finally:
            remove(admin, str(instance_id))
    assert shown["status"] == "ACTIVE"
    assert there == Counter(["security group", "port", "floating ip", "volume", "server"])
    made = Counter(each.path.rsplit("/", 1)[-1] for each in through.seen if each.method == "POST" and each.status < 300)
    assert {asked: made[asked[1]] for asked in ASKED_FOR} == ASKED_FOR
    (removed,) = (event["facts"]["removed"] for event in told if event["name"] == "SurplusRemoved")
    assert len(removed) == sum(ASKED_FOR.values()) - len(ASKED_FOR)


@contextmanager
def _second_worker(shared: Shared) -> Iterator[subprocess.Popen[bytes]]:
    """A worker beside the one that the site has, which can be killed alone."""
    made = shared.site.made
    command = [str(HOLDFAST), "worker", "--state", str(made.state), *shared.serving, *shared.site.cloud_options]
    with made.log.open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait(30)


def _instance_of(url: str, pid: int) -> UUID:
    """A new id, which lies in a range that the process owns."""

    async def owned() -> set[str]:
        store = open_store(url)
        store.start()
        try:
            ranges = await store.ranges()
        finally:
            await store.close()
        return {name for name, row in ranges.items() if row.owner is not None and int(row.owner.split("@")[2]) == pid}

    deadline = time.monotonic() + 60
    while True:
        theirs = asyncio.run(owned())
        found = next((each for each in (uuid4() for _ in range(200)) if range_of_aggregate(each) in theirs), None)
        if found is not None:
            return found
        assert time.monotonic() < deadline, "it owns nothing"
