"""What a cloud refuses ends the operation, by the program alone: with its words in history, and with nothing left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from openstack.connection import Connection

from tests.openstack.ledger import holdings, remove
from tests.openstack.services import Lab
from tests.openstack.site import Site, running_site

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def site(lab: Lab, service: Connection, admin: Connection) -> Iterator[Site]:
    """A Holdfast on the lab."""
    with running_site(lab, service) as one:
        yield one
        for each in one.said("list")["items"]:
            remove(admin, each["id"])


def test_a_create_for_which_there_is_no_host_fails_with_novas_words_and_leaves_nothing(
    site: Site, admin: Connection
) -> None:
    site.said("create", "huge", "--datastore", "redis", "--flavor", "lab.impossible", "--user", "app",
              "--password-env", "DB_PASSWORD", status=1)  # fmt: skip
    shown = site.shown("huge")
    assert shown["status"] == "FAILED"
    assert holdings(admin, shown["id"]) == []
    told = site.made.holdfast("history", "huge", DB_PASSWORD="").stdout
    assert "no_valid_host" in told
    assert "No valid host was found" in told
    assert "req-" in told
    site.said("delete", "huge")


def test_a_volume_for_which_there_is_no_room_leaves_the_old_size(
    site: Site, service: Connection, admin: Connection
) -> None:
    shown = site.create("full", "redis/6.2")
    used = service.block_storage.get_limits().absolute.total_gigabytes_used
    with _gigabytes(admin, str(service.current_project_id), used + 1):
        site.said("resize-volume", "full", str(shown["volume_size"] + 2), status=1)
    assert site.shown("full")["volume_size"] == shown["volume_size"]
    assert "quota_exceeded" in site.made.holdfast("history", "full", DB_PASSWORD="").stdout
    site.said("delete", "full")
    assert holdings(admin, shown["id"]) == []


@contextmanager
def _gigabytes(admin: Connection, project: str, limit: int) -> Iterator[None]:
    """While the project may have no more than so many GiB of volumes."""
    before = admin.block_storage.get_quota_set(project).gigabytes
    admin.block_storage.update_quota_set(project, gigabytes=limit)
    try:
        yield
    finally:
        admin.block_storage.update_quota_set(project, gigabytes=before)
