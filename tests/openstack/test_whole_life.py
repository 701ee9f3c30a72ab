"""From create to delete on real OpenStack services, with the real agent and a real database, by the program alone.

The hypervisor is the lab's, which runs nothing: `tests/openstack/machine` plays the machine, from the config drive that
Nova made for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from openstack.connection import Connection

from engine import nkey
from engine.clouds.local import processes
from engine.guest.user_data import read_drive
from engine.messages import EnrolRequest, enrolment_claim
from tests.openstack.ledger import holdings, remove
from tests.openstack.services import Lab
from tests.openstack.site import Site, running_site
from tests.support.eventually import soon

pytestmark = pytest.mark.timeout(600)

# What each leaves true, besides the tenant's data: a field of the record, and its value.
OPERATIONS: list[tuple[list[str], dict[str, Any]]] = [
    (["restart"], {}),
    (["reboot"], {}),
    (["reboot", "--hard"], {}),
    (["resize-volume", "2"], {"volume_size": 2}),
    (["migrate"], {}),
    (["resize-flavor", "lab.medium"], {"flavor": "lab.medium"}),
    (["stop"], {"status": "SHUTOFF"}),
    (["start"], {"status": "ACTIVE"}),
]


@pytest.fixture(scope="module")
def site(lab: Lab, service: Connection, admin: Connection) -> Iterator[Site]:
    with running_site(lab, service) as one:
        yield one
        for each in one.said("list")["items"]:
            remove(admin, each["id"])


@pytest.mark.parametrize("datastore", ["postgresql/16", "mariadb/10.11"])
def test_the_life_of_an_instance(site: Site, admin: Connection, datastore: str) -> None:
    name = datastore.partition("/")[0]
    shown = site.create(name, datastore)
    database = site.database(shown)
    database.write("key", name)
    host = shown["host"]
    for (verb, *arguments), becomes in OPERATIONS:
        site.said(verb, name, *arguments)
        shown = site.shown(name)
        assert {field: shown[field] for field in becomes} == becomes, verb
        if verb == "migrate":
            assert shown["host"] != host
        if shown["status"] == "ACTIVE":
            assert database.read("key") == name, verb
        else:
            assert _processes(site, shown) == []
    server = admin.compute.get_server(shown["server_id"])
    assert (server.status, server.compute_host) == ("ACTIVE", shown["host"])
    volume = admin.block_storage.get_volume(shown["volume_id"])
    assert (volume.status, volume.size) == ("in-use", 2)

    site.said("delete", name)
    assert holdings(admin, shown["id"]) == []
    assert _processes(site, shown) == []
    assert not (site.machines / shown["server_id"]).exists()
    assert f"guest-{shown['id']}" not in (site.made.state / "broker" / "accounts.conf").read_text()


def test_a_resize_that_the_cloud_refuses_leaves_the_database_as_it_was(site: Site) -> None:
    shown = site.create("stays", "redis/6.2")
    database = site.database(shown)
    database.write("key", "yes")
    site.said("resize-flavor", "stays", "lab.impossible", status=1)
    assert site.shown("stays")["flavor"] == "lab.small"
    assert database.read("key") == "yes"
    site.said("delete", "stays")


def test_agent_and_database_that_die_come_back_by_themselves(site: Site) -> None:
    shown = site.create("revived", "redis/6.2")
    database = site.database(shown)
    database.write("key", "yes")
    for process in _processes(site, shown):
        if "init" not in process.cmdline():
            process.kill()
    assert database.read("key") == "yes"
    soon(lambda: site.shown("revived")["health"] == "HEALTHY")
    site.said("delete", "revived")


async def test_user_data_that_is_stolen_later_is_worth_nothing(site: Site, admin: Connection) -> None:
    shown = site.create("safe", "redis/6.2")
    told = read_drive(site.machines / shown["server_id"] / "config-drive")
    thief = nkey.public_key(nkey.make_seed())
    proof = nkey.sign(told.token, enrolment_claim(told.instance_id, thief))
    token = nkey.public_key(told.token)
    asked = EnrolRequest(instance_id=told.instance_id, public_key=thief, token=token, proof=proof)
    assert (await site.enrol(asked)).code == "token_used"
    site.said("restart", "safe")
    site.said("delete", "safe")
    assert (await site.enrol(asked)).code == "token_refused"


def _processes(site: Site, shown: dict[str, Any]) -> list[psutil.Process]:
    """What runs on the instance's server."""
    return processes.belonging(shown["server_id"], [])
