"""Who reaches a database from where, and a server made anew: by the program, on real services."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from openstack.connection import Connection

from tests.openstack.ledger import holdings, remove
from tests.openstack.services import Lab
from tests.openstack.site import Site, running_site

pytestmark = pytest.mark.timeout(600)

MORE = 'management = "lab-net"\nexternal = "lab-public"\n[volumes]\nextended_offline = ["*"]\n'


@pytest.fixture(scope="module")
def site(lab: Lab, service: Connection, admin: Connection) -> Iterator[Site]:
    """A Holdfast on the lab, with networks for agents and for public addresses."""
    with running_site(lab, service, more=MORE) as one:
        yield one
        for each in one.said("list")["items"]:
            remove(admin, each["id"])


def _let_in(service: Connection, group_id: str) -> set[str]:
    rules = service.network.security_group_rules(security_group_id=group_id, direction="ingress")
    return {f"{each.protocol} {each.port_range_min} {each.remote_ip_prefix}" for each in rules}


def test_access_is_as_it_was_asked_for_and_a_rebuilt_server_has_the_data(
    site: Site, service: Connection, admin: Connection
) -> None:
    shown = site.create("open", "redis/6.2", "--public", "--allow", "10.0.0.0/8", "--locality", "anti-affinity")
    database = site.database(shown)
    database.write("key", "yes")
    there = holdings(admin, shown["id"])
    kinds = ["security group", "server group", "port", "port", "volume", "server", "floating ip"]
    assert Counter(each.kind for each in there) == Counter(kinds)
    group = next(each.id for each in there if each.kind == "security group")
    assert _let_in(service, group) == {"tcp 6379 10.0.0.0/8"}

    site.said("update-access", "open", "--private", "--allow", "192.0.2.0/24")
    assert _let_in(service, group) == {"tcp 6379 192.0.2.0/24"}
    assert "floating ip" not in {each.kind for each in holdings(admin, shown["id"])}

    site.said("rebuild-server", "open")
    assert database.read("key") == "yes"
    assert site.shown("open")["server_id"] == shown["server_id"]

    site.said("resize-volume", "open", "2")
    assert database.read("key") == "yes"
    assert service.block_storage.get_volume(shown["volume_id"]).size == 2

    site.said("delete", "open")
    assert holdings(admin, shown["id"]) == []
