"""A server that is made anew, and a volume that cannot be extended while a server has it."""

from __future__ import annotations

import pytest

from aggregates.commands import Rebuild
from aggregates.effects import (
    RebuildDatabase,
    RebuildServer,
)
from tests.aggregates.story import given, refused
from tests.support.given import (
    BARE,
    EXAMPLES,
    active,
    advance,
    context,
    fail,
    requested,
    settle,
    started,
)


def test_a_server_is_made_anew_from_the_image_named_and_the_database_keeps_its_port() -> None:
    instance = active()
    instance.execute(Rebuild(image_id="image-2"), context())
    advance(instance, "rebuild_server")
    owed = instance.owes()
    assert owed is not None
    assert isinstance(owed.effect, RebuildServer)
    assert owed.effect.image_id == "image-2"
    advance(instance, "rebuild_database")
    owed = instance.owes()
    assert owed is not None
    assert owed.effect == RebuildDatabase(instance_id=instance.id, ram=512, volume_size=1, port=5432, overrides={})
    settle(instance)
    assert given(instance).image_id == "image-2"


def test_without_an_image_it_is_the_one_that_the_instance_was_made_from() -> None:
    instance = active(image_id="image-1")
    instance.execute(Rebuild(), context())
    assert instance.new_image_id == "image-1"


def test_in_error_the_guest_is_not_asked_to_stop_since_it_may_be_what_is_broken() -> None:
    instance = advance(started("restart"), "restart_health")
    fail(instance)
    assert instance.state == "ERROR"
    instance.execute(Rebuild(), context())
    assert settle(instance) == ["rebuild_server", "rebuild_agent", "rebuild_database", "rebuild_health"]
    assert given(instance).failure is None


def test_what_was_never_built_to_the_end_is_not_rebuilt() -> None:
    instance = advance(requested(keep_on_failure=True), "build_database")
    fail(instance)
    assert instance.state == "ERROR"
    refused_with = refused(given(instance), Rebuild())
    assert refused_with.code == "forbidden_state"
    assert "no database yet to be kept" in refused_with.message


def test_an_image_is_refused_where_the_cloud_honours_none() -> None:
    assert refused(given(active()), Rebuild(image_id="image-2"), catalogue=BARE).code == "unsupported"


OFFLINE = [
    "resize_volume_quota", "resize_volume_stop", "resize_volume_detach", "resize_volume_extend",
    "resize_volume_attach", "resize_volume_grow", "resize_volume_start", "resize_volume_health",
]  # fmt: skip


def test_a_volume_that_cannot_be_extended_in_use_is_detached_meanwhile() -> None:
    instance = active(volume_type="remote")
    instance.execute(EXAMPLES["resize_volume"], context())
    operation = instance.operation
    assert operation is not None
    assert list(operation.plan) == OFFLINE
    assert settle(instance) == OFFLINE
    assert given(instance).volume_size == 2


@pytest.mark.parametrize("state", ["resize_volume_stop", "resize_volume_detach", "resize_volume_extend"])
def test_if_it_is_not_extended_it_is_attached_again_and_its_database_started(state: str) -> None:
    instance = active(volume_type="remote")
    instance.execute(EXAMPLES["resize_volume"], context())
    fail(advance(instance, state))
    assert settle(instance) == [
        "undo_resize_volume_attach",
        "undo_resize_volume_start",
        "undo_resize_volume_quota",
    ]
    assert (instance.state, given(instance).volume_size) == ("ACTIVE", 1)


@pytest.mark.parametrize("state", OFFLINE[4:])
def test_once_it_is_extended_there_is_only_forward(state: str) -> None:
    instance = active(volume_type="remote")
    instance.execute(EXAMPLES["resize_volume"], context())
    assert not advance(instance, state).can("failed")
