"""The lab is an OpenStack: what is asked of it is so, what is refused is refused, and what is down is down."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from keystoneauth1.exceptions import ConnectFailure
from openstack.connection import Connection
from openstack.exceptions import ConflictException

from tests.openstack.ledger import Requests, deeds, holdings, remove
from tests.openstack.resources import MAC, port_of, server_of, status_of, volume_of
from tests.openstack.services import Lab
from tests.support.eventually import soon


@pytest.fixture
def told(lab: Lab, tmp_path: Path, mark: str) -> Iterator[Path]:
    """A file of what the guests' hook was told about servers of this test."""
    path = tmp_path / "told"
    path.touch()
    hook = lab.hooks / mark
    hook.write_text(f'#!/bin/sh\ndocument=$(cat)\ncase $document in *{mark}*) echo "$1 $document" >>{path} ;; esac\n')
    hook.chmod(0o755)
    yield path
    hook.unlink()


def test_a_server_has_its_port_its_volume_and_its_config_drive(service: Connection, mark: str, told: Path) -> None:
    port_id = port_of(service, mark)
    volume_id = volume_of(service, mark)
    server_id = server_of(service, mark, port_id, config_drive=True, user_data="aG9sZGZhc3Q=")
    soon(lambda: status_of(service, server_id) == "ACTIVE")
    soon(lambda: service.block_storage.get_volume(volume_id).status == "available")
    service.compute.create_volume_attachment(server_id, volume_id=volume_id)
    soon(lambda: service.block_storage.get_volume(volume_id).status == "in-use")
    assert service.network.get_port(port_id).device_id == server_id
    spawned, attached = (line.split(" ", 1) for line in told.read_text().splitlines())
    assert [spawned[0], attached[0]] == ["spawn", "attach_volume"]
    drive = Path(json.loads(spawned[1])["dir"]) / "config-drive" / "openstack" / "latest"
    assert (drive / "user_data").read_text() == "holdfast"


def test_a_port_is_given_to_one_server(service: Connection, mark: str) -> None:
    port_id = port_of(service, mark)
    first = server_of(service, mark, port_id)
    soon(lambda: status_of(service, first) == "ACTIVE")
    with pytest.raises(ConflictException):
        server_of(service, mark, port_id)


def test_a_network_has_a_mac_address_once(service: Connection, mark: str) -> None:
    port_of(service, mark, mac_address=MAC)
    with pytest.raises(ConflictException):
        port_of(service, mark, mac_address=MAC)


def test_the_ledger_lists_what_bears_the_mark_and_removes_it(service: Connection, admin: Connection, mark: str) -> None:
    port_id = port_of(service, mark)
    volume_of(service, "of another name", metadata={"of": mark})
    server_of(service, mark, port_id)
    service.network.create_security_group(name="of another name", description=mark)
    kinds = ["port", "security group", "server", "volume"]
    assert sorted(each.kind for each in holdings(admin, mark)) == kinds
    remove(admin, mark)
    soon(lambda: not holdings(admin, mark))


def test_requests_are_written_down(service: Connection, requests: Requests, mark: str) -> None:
    service.network.delete_port(port_of(service, mark))
    soon(lambda: deeds(requests.made("openstacksdk")) == {"create ports": 1, "delete ports": 1})


def test_a_service_that_is_stopped_does_not_answer(lab: Lab, service: Connection) -> None:
    with lab.without("neutron"), pytest.raises(ConnectFailure):
        list(service.network.networks())
    assert list(service.network.networks())


def test_a_fault_is_had_for_the_asking(service: Connection, mark: str) -> None:
    server_id = server_of(service, mark, port_of(service, mark), metadata={"lab:fail": "spawn"})
    soon(lambda: status_of(service, server_id) == "ERROR")


def test_objects_are_kept(service: Connection, mark: str) -> None:
    service.object_store.create_container(mark)
    service.object_store.upload_object(mark, "of", data=b"holdfast")
    assert service.object_store.download_object("of", mark) == b"holdfast"
    service.object_store.delete_object("of", container=mark)
    service.object_store.delete_container(mark)
