"""What an instance knows of what was made, changed or reverted, while an operation runs and after it."""

from __future__ import annotations

from aggregates.commands import Migrate
from aggregates.effects import (
    ExtendVolume,
    MigrateServer,
    PortAbsent,
    RevertServer,
    SendCommand,
    StartDatabase,
)
from aggregates.instance import Instance
from tests.aggregates.story import ATTEMPT, given
from tests.support.given import (
    EXAMPLES,
    NOON,
    active,
    advance,
    context,
    fail,
    pay,
    requested,
    settle,
    started,
)


def test_a_built_instance_knows_what_was_made() -> None:
    instance = given(active())
    assert (instance.port_id, instance.volume_id, instance.server_id) == ("port-1", "volume-1", "server-1")
    assert (instance.address, instance.port, instance.host) == ("127.9.9.9", 5432, "host-1")


def test_a_create_that_shall_be_kept_ends_in_error_with_all_that_was_made() -> None:
    for state in ("build_server", "build_attachment", "build_database", "build_health"):
        instance = advance(requested(keep_on_failure=True), state)
        fail(instance)
        assert (instance.state, instance.operation, instance.volume_id) == ("ERROR", None, "volume-1")


def test_a_create_that_shall_be_kept_is_undone_while_there_is_no_server_to_look_at() -> None:
    for state in ("build_quota", "build_port", "build_volume", "build_credentials"):
        instance = advance(requested(keep_on_failure=True), state)
        fail(instance)
        settle(instance)
        assert instance.state == "FAILED"


def test_the_volume_has_its_new_size_once_it_is_extended() -> None:
    instance = advance(started("resize_volume"), "resize_volume_extend")
    owed = instance.owes()
    assert instance.volume_size == 1
    assert owed is not None
    assert owed.effect == ExtendVolume(instance_id=instance.id, volume_id="volume-1", size=2)
    pay(instance)
    assert given(instance).volume_size == 2


def test_a_failed_extension_leaves_the_old_size_and_reserves_it_again() -> None:
    instance = advance(started("resize_volume"), "resize_volume_extend")
    fail(instance)
    owed = instance.owes()
    assert owed is not None
    assert isinstance(owed.effect, SendCommand)
    assert owed.effect.args["volumes"] == instance.volume_size == 1


def test_the_flavor_is_the_old_one_until_the_new_one_is_confirmed() -> None:
    instance = advance(started("resize_flavor"), "resize_flavor_confirm")
    assert instance.flavor.id == "small"
    pay(instance)
    assert given(instance).flavor.id == "large"


def _ram_configured(instance: Instance) -> int:
    owed = instance.owes()
    assert owed is not None
    assert isinstance(owed.effect, StartDatabase)
    return owed.effect.ram


def test_the_database_is_started_for_the_memory_that_its_server_has() -> None:
    forward = advance(started("resize_flavor"), "resize_flavor_start")
    assert _ram_configured(forward) == 2048
    fail(forward)
    assert _ram_configured(advance(forward, "undo_resize_flavor_start")) == 512


def test_a_flavor_that_was_given_up_does_not_come_back_with_a_later_start() -> None:
    instance = advance(started("resize_flavor"), "resize_flavor_health")
    fail(instance)
    settle(instance)
    instance = given(instance)
    again = started("reboot")
    assert instance.flavor.id == "small"
    instance.execute(EXAMPLES["reboot"], context())
    assert _ram_configured(advance(instance, "reboot_start")) == _ram_configured(advance(again, "reboot_start"))


def test_a_reverted_server_goes_back_to_flavor_and_host_that_it_had() -> None:
    for command in ("resize_flavor", "migrate"):
        instance = advance(started(command), f"{command}_health")
        fail(instance)
        owed = instance.owes()
        assert owed is not None
        assert owed.effect == RevertServer(
            instance_id=instance.id, server_id="server-1", flavor_id="small", host="host-1"
        )


def test_the_host_is_the_old_one_until_the_migration_is_confirmed() -> None:
    instance = active()
    instance.execute(Migrate(host="host-2"), context())
    advance(instance, "migrate_server")
    owed = instance.owes()
    assert owed is not None
    assert owed.effect == MigrateServer(
        instance_id=instance.id, server_id="server-1", from_host="host-1", host="host-2"
    )
    advance(instance, "migrate_confirm")
    assert instance.host == "host-1"
    pay(instance)
    assert given(instance).host == "host-2"


def test_absence_is_owed_by_name_when_no_id_is_known() -> None:
    instance = advance(requested(), "build_port")
    fail(instance)
    owed = instance.owes()
    assert owed is not None
    assert owed.effect == PortAbsent(instance_id=instance.id, name=f"holdfast-{instance.id}", port_id=None)


def test_the_key_of_an_effect_is_the_same_over_all_attempts_and_another_in_the_next_state() -> None:
    instance = advance(requested(), "build_port")
    first = instance.owes()
    assert first is not None
    assert first.key == f"{instance.id}:4:EnsurePort"
    instance.note("AttemptFailed", at=NOON, **ATTEMPT)
    assert instance.owes() == first
    pay(instance)
    second = instance.owes()
    assert second is not None
    assert second.key == f"{instance.id}:6:EnsureVolume"
