"""The user that the engine has may do what the engine does, and a plain member of a project may not."""

from __future__ import annotations

from collections.abc import Iterator

import openstack
import pytest
from openstack.connection import Connection
from openstack.exceptions import ForbiddenException, NotFoundException

from tests.openstack.resources import MAC, port_of, server_of, status_of
from tests.support.eventually import soon


@pytest.fixture
def other() -> Iterator[Connection]:
    """A plain member of another project."""
    with openstack.connect(cloud="lab-other") as connection:
        yield connection


def test_it_sees_hosts_and_moves_a_server_to_the_one_it_names(service: Connection, mark: str) -> None:
    hosts = {each.host for each in service.compute.services(binary="nova-compute")}
    server_id = server_of(service, mark, port_of(service, mark))
    soon(lambda: status_of(service, server_id) == "ACTIVE")
    before = service.compute.get_server(server_id).compute_host
    assert before in hosts
    (after,) = hosts - {before}
    service.compute.migrate_server(server_id, host=after)
    soon(lambda: status_of(service, server_id) == "VERIFY_RESIZE")
    assert service.compute.get_server(server_id).compute_host == after
    service.compute.confirm_server_resize(server_id)
    soon(lambda: status_of(service, server_id) == "ACTIVE")


def test_it_reads_why_an_action_failed(service: Connection, mark: str) -> None:
    server_id = server_of(service, mark, port_of(service, mark), metadata={"lab:fail": "resize"})
    soon(lambda: status_of(service, server_id) == "ACTIVE")
    service.compute.resize_server(server_id, service.compute.find_flavor("lab.small", ignore_missing=False).id)
    soon(lambda: "lab:fail asked resize" in _said_of(service, server_id, "resize"))


def _said_of(service: Connection, server_id: str, action: str) -> str:
    """What the hosts said of the server's last action of this name."""
    last = next(each for each in service.compute.server_actions(server_id) if each.action == action)
    events = service.compute.get_server_action(last.request_id, server_id).events
    return " ".join(event["details"] or "" for event in events)


def test_it_chooses_a_mac_address(service: Connection, mark: str) -> None:
    port_id = port_of(service, mark, mac_address=MAC)
    assert service.network.get_port(port_id).mac_address == MAC


def test_it_sees_nothing_of_others_and_is_no_administrator(service: Connection, other: Connection, mark: str) -> None:
    port_id = port_of(other, mark)
    with pytest.raises(NotFoundException):
        service.network.get_port(port_id)
    with pytest.raises(ForbiddenException):
        list(service.compute.servers(all_projects=True))
    with pytest.raises(ForbiddenException):
        service.compute.create_flavor(name=mark, ram=64, vcpus=1, disk=1)


def test_a_plain_member_may_not(other: Connection, mark: str) -> None:
    with pytest.raises(ForbiddenException):
        port_of(other, mark, mac_address=MAC)
    with pytest.raises(ForbiddenException):
        list(other.compute.services())
    server_id = server_of(other, mark, port_of(other, mark))
    soon(lambda: status_of(other, server_id) == "ACTIVE")
    assert other.compute.get_server(server_id).compute_host is None
    with pytest.raises(ForbiddenException):
        other.compute.migrate_server(server_id)
