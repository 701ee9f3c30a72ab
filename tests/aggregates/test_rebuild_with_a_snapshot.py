"""A rebuild may keep the volume as it was, until the database is healthy again; what failed keeps it for longer."""

from __future__ import annotations

from typing import Any

import pytest

from aggregates.base import Refusal
from aggregates.commands import DeleteInstance, Rebuild
from aggregates.instance import Instance
from aggregates.resources import ResourceKind
from tests.support.given import (
    BARE,
    active,
    advance,
    context,
    fail,
    intervention,
    keeping,
    park,
    rebuilding,
    settle,
)


def held(instance: Instance) -> str | None:
    return instance.held(ResourceKind.SNAPSHOT)


def test_it_is_made_when_the_database_is_stopped_and_removed_when_it_is_healthy() -> None:
    instance = rebuilding()
    assert settle(instance) == [
        "rebuild_stop", "rebuild_snapshot", "rebuild_server", "rebuild_agent", "rebuild_database", "rebuild_health",
        "rebuild_snapshot_deleted",
    ]  # fmt: skip
    assert (instance.state, held(instance)) == ("ACTIVE", None)


def test_what_is_owed_is_of_the_instances_own_volume_and_name() -> None:
    instance = advance(rebuilding(), "rebuild_snapshot")
    made: Any = instance.owes().effect  # type: ignore[union-attr]
    assert (made.name, made.project, made.volume_id) == (instance.resource_name, "acme", "volume-1")
    assert made.makes
    advance(instance, "rebuild_snapshot_deleted")
    gone: Any = instance.owes().effect  # type: ignore[union-attr]
    assert (gone.name, gone.snapshot_id) == (instance.resource_name, "snapshot-1")


def test_the_database_has_let_go_of_the_volume_before() -> None:
    stop: Any = rebuilding().owes().effect  # type: ignore[union-attr]
    assert stop.release_volume


def test_without_it_nothing_of_snapshots_is_passed() -> None:
    instance = active()
    instance.execute(Rebuild(), context())
    assert not [state for state in settle(instance) if "snapshot" in state]


def test_where_the_cloud_keeps_none_it_is_refused() -> None:
    with pytest.raises(Refusal, match="does not support the argument snapshot"):
        active().execute(Rebuild(snapshot=True), context(catalogue=BARE))


def test_a_rebuild_that_fails_keeps_it_and_the_next_makes_no_other_and_removes_it() -> None:
    instance = keeping(active())
    assert held(instance) == "snapshot-1"
    instance.execute(Rebuild(snapshot=True), context())
    passed = settle(instance)
    assert "rebuild_snapshot" not in passed
    assert passed[-1] == "rebuild_snapshot_deleted"
    assert held(instance) is None


def test_a_rebuild_without_one_removes_what_an_earlier_has_kept() -> None:
    instance = keeping(active())
    instance.execute(Rebuild(), context())
    assert settle(instance)[-1] == "rebuild_snapshot_deleted"


def test_in_error_the_guest_is_not_asked_and_the_volume_kept_as_it_is() -> None:
    instance = advance(rebuilding(), "rebuild_snapshot")
    fail(instance)
    settle(instance)
    assert (instance.state, held(instance)) == ("ERROR", None)
    rebuilding(instance)
    assert instance.state == "rebuild_snapshot"


def test_one_that_cannot_be_made_leaves_none_and_the_old_server() -> None:
    instance = advance(rebuilding(), "rebuild_snapshot")
    fail(instance)
    assert settle(instance) == ["undo_rebuild_snapshot"]
    assert instance.state == "ERROR"
    assert instance.failure is not None
    assert instance.failure.state == "rebuild_snapshot"


def test_whose_rebuild_may_have_made_one_unseen_has_it_removed_with_the_instance() -> None:
    instance = advance(rebuilding(), "rebuild_snapshot")
    instance.execute(DeleteInstance(), context())
    passed = settle(instance)
    assert passed.index("delete_snapshot") + 1 == passed.index("delete_volume")
    assert instance.state == "DELETED"


def test_an_instance_that_never_had_one_is_deleted_without_looking_for_it() -> None:
    instance = active()
    instance.execute(DeleteInstance(), context())
    assert "delete_snapshot" not in settle(instance)


def test_who_abandons_a_rebuild_is_told_of_it_and_of_all_else_that_is_left() -> None:
    instance = park(advance(rebuilding(), "rebuild_database"))
    assert "kept as snapshot snapshot-1" in instance.kept
    instance.execute(intervention(instance, "abandon_operation"), context())
    assert instance.state == "ERROR"
    assert instance.failure is not None
    assert "kept as snapshot snapshot-1" in instance.failure.message
    left = " ".join(instance.left_behind)
    assert "snapshot snapshot-1" in left
    assert "server server-1" in left
