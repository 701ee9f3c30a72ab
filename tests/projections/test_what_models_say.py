"""Given what happened, the read models say it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any
from uuid import UUID

import pytest

from aggregates import health, instance_events, quota, record
from aggregates.base import Event
from aggregates.commands import DeleteInstance, Migrate, ReleaseQuota, ResizeVolume, Restart, StopInstance
from aggregates.health import HealthStatus
from aggregates.obligations import quota_id
from engine.messages import Outcome
from projections import commands, fleet, history, instances, operations
from projections import quota as quota_model
from projections.answers import CommandAnswer, Error, InstanceAnswer, OperationAnswer
from projections.base import ReadModels
from projections.listing import ListRequest
from projections.sentences import _SENTENCES, sentence
from projections.words import LIFECYCLES, effect_owed
from tests.projections.asking import catch_up, connect
from tests.projections.story import Story


@pytest.fixture
def seen(story: Story, models: ReadModels) -> Iterator[Callable[[], sqlite3.Connection]]:
    """The models, caught up with the story."""
    with closing(connect(models.path.parent)) as connection:

        def look() -> sqlite3.Connection:
            catch_up(models, story.log)
            return connection

        yield look


Seen = Callable[[], sqlite3.Connection]


def the_instance(seen: Seen, instance_id: UUID) -> InstanceAnswer:
    answer = instances.get(seen(), "blue", str(instance_id))
    assert answer is not None
    return answer


def the_operation(seen: Seen, operation_id: UUID) -> OperationAnswer:
    answer = operations.get(seen(), "blue", str(operation_id))
    assert answer is not None
    return answer


def the_command(seen: Seen, command_id: UUID) -> CommandAnswer:
    answer = commands.get(seen(), "blue", str(command_id))
    assert answer is not None
    return answer


# --- instances --------------------------------------------------------------------------------------------------------


def test_an_instance_shows_what_it_has_as_it_is_built(story: Story, seen: Seen) -> None:
    instance_id = story.create(name="orders")
    story.until(instance_id, "build_server")
    answer = the_instance(seen, instance_id)
    assert (answer.status, answer.trove_status, answer.operating_status) == ("BUILD", "BUILD", "")
    assert (answer.port_id, answer.address, answer.volume_id, answer.server_id) == (
        "port-1", "127.0.1.1", "volume-1", None,
    )  # fmt: skip
    assert (answer.operation, answer.last_event, answer.last_actor) == ("create_instance", "CredentialsIssued", "ann")
    story.settle(instance_id)
    answer = the_instance(seen, instance_id)
    assert (answer.status, answer.port, answer.host, answer.operation_id) == ("ACTIVE", 5432, "a", None)
    assert answer.last_command == "create_instance"
    assert answer.version == answer.lifecycle_version == story.instances[instance_id].version


def test_a_failure_shows_code_message_and_state(story: Story, seen: Seen) -> None:
    instance_id = story.create(keep_on_failure=True)
    story.until(instance_id, "build_server")
    story.fail(instance_id)
    answer = the_instance(seen, instance_id)
    assert answer.status == "ERROR"
    assert answer.failure == Error(code="no_valid_host", message="No valid host was found.", state="build_server")


def test_what_is_deleted_is_no_longer_shown_as_held(story: Story, seen: Seen) -> None:
    instance_id = story.create()
    story.settle(instance_id)
    story.command(instance_id, DeleteInstance(), actor="bob")
    story.settle(instance_id)
    answer = the_instance(seen, instance_id)
    assert (answer.status, answer.trove_status, answer.last_actor) == ("DELETED", "SHUTDOWN", "bob")
    assert (answer.server_id, answer.host, answer.port_id, answer.address, answer.volume_id) == (None,) * 5
    assert answer.deleted_at == answer.updated_at
    assert instances.LISTING.page(seen(), "blue", ListRequest()).items == []
    assert len(instances.LISTING.page(seen(), "blue", ListRequest(filter={"deleted": True})).items) == 1


def test_a_new_size_holds_once_the_volume_has_it(story: Story, seen: Seen) -> None:
    instance_id = story.create()
    story.settle(instance_id)
    story.command(instance_id, ResizeVolume(new_size=9))
    assert (the_instance(seen, instance_id).volume_size, the_instance(seen, instance_id).status) == (5, "RESIZE")
    story.settle(instance_id)
    assert the_instance(seen, instance_id).volume_size == 9


def test_health_shows_as_operating_status_only_at_rest(story: Story, seen: Seen) -> None:
    instance_id = story.create()
    story.health(instance_id, HealthStatus.HEALTHY)
    assert the_instance(seen, instance_id).operating_status == ""
    story.settle(instance_id)
    assert the_instance(seen, instance_id).operating_status == "HEALTHY"
    story.health(instance_id, HealthStatus.DOWN)
    answer = the_instance(seen, instance_id)
    assert (answer.health, answer.operating_status, answer.trove_status) == ("DOWN", "ERROR", "ACTIVE")


# --- operations -------------------------------------------------------------------------------------------------------


def test_an_operation_shows_its_step_and_what_it_owes(story: Story, seen: Seen) -> None:
    instance_id = story.create()
    operation_id = story.instances[instance_id].operation
    assert operation_id is not None
    story.until(instance_id, "build_volume")
    story.stumble(instance_id, attempt=2)
    answer = the_operation(seen, operation_id.id)
    assert (answer.n, answer.m, answer.state, answer.effect) == (3, len(answer.plan), "build_volume", "EnsureVolume")
    assert (answer.attempts, answer.error) == (2, Error(code="cloud_unavailable", message="503"))
    assert answer.retry_at is not None
    assert [passed.state for passed in answer.states] == ["build_quota", "build_port", "build_volume"]
    story.pay(instance_id)
    answer = the_operation(seen, operation_id.id)
    assert (answer.n, answer.attempts, answer.error, answer.retry_at) == (4, 0, None, None)
    story.settle(instance_id)
    answer = the_operation(seen, operation_id.id)
    assert (answer.outcome, answer.n, answer.state, answer.effect) == (Outcome.DONE, answer.m, None, None)
    assert answer.finished_at is not None
    assert answer.duration == (answer.finished_at - answer.started_at).total_seconds()


def test_a_parked_operation_says_so_until_it_goes_on(story: Story, seen: Seen) -> None:
    instance_id = story.create()
    story.settle(instance_id)
    operation_id = story.command(instance_id, DeleteInstance())
    story.park(instance_id)
    answer = the_operation(seen, operation_id)
    assert (answer.parked, answer.outcome, answer.error) == (
        True, Outcome.RUNNING, Error(code="forbidden", message="403"),
    )  # fmt: skip
    assert the_instance(seen, instance_id).parked
    assert fleet.get(seen(), "blue").parked == 1
    story.pay(instance_id)
    assert not the_operation(seen, operation_id).parked
    assert not the_instance(seen, instance_id).parked


def test_an_undone_operation_has_failed_once_it_is_undone(story: Story, seen: Seen) -> None:
    instance_id = story.create()
    operation = story.instances[instance_id].operation
    assert operation is not None
    story.until(instance_id, "build_volume")
    story.fail(instance_id)
    answer = the_operation(seen, operation.id)
    assert (answer.outcome, answer.state, answer.n) == (Outcome.RUNNING, "undo_build_volume", 3)
    assert answer.failure is not None
    assert answer.failure.state == "build_volume"
    story.settle(instance_id)
    answer = the_operation(seen, operation.id)
    assert (answer.outcome, answer.n) == (Outcome.FAILED, 3)
    assert answer.error == answer.failure
    assert the_instance(seen, instance_id).status == "FAILED"


def test_a_deletion_cancels_the_operation_that_ran(story: Story, seen: Seen) -> None:
    instance_id = story.create()
    operation = story.instances[instance_id].operation
    assert operation is not None
    story.until(instance_id, "build_volume")
    deletion = story.command(instance_id, DeleteInstance())
    answer = the_operation(seen, operation.id)
    assert (answer.outcome, answer.cancelled_by, answer.state) == (Outcome.CANCELLED, deletion, None)
    story.settle(instance_id)
    assert the_operation(seen, operation.id).outcome is Outcome.CANCELLED
    assert the_operation(seen, deletion).outcome is Outcome.DONE


def test_a_cancelled_operation_says_so_once_it_is_undone_and_by_which_command(story: Story, seen: Seen) -> None:
    instance_id = story.create()
    story.settle(instance_id)
    operation_id = story.command(instance_id, Migrate())
    story.until(instance_id, "migrate_agent")
    by = story.intervene(instance_id, "cancel_operation", reason="wrong host")
    running = the_operation(seen, operation_id)
    assert (running.outcome, running.cancelled_by, running.state) == (Outcome.RUNNING, by, "undo_migrate_server")
    story.settle(instance_id)
    ended = the_operation(seen, operation_id)
    assert (ended.outcome, ended.cancelled_by) == (Outcome.CANCELLED, by)
    error = Error(code="cancelled", message="cancelled by bob: wrong host", state="migrate_agent")
    assert ended.failure == error
    assert (the_command(seen, operation_id).outcome, the_command(seen, by).outcome) == ("cancelled", "done")
    instance = the_instance(seen, instance_id)
    assert (instance.status, instance.last_command, instance.last_actor) == ("ACTIVE", "cancel_operation", "bob")


def test_a_retry_clears_what_parked_and_counts_tries_anew(story: Story, seen: Seen) -> None:
    instance_id = story.create()
    story.settle(instance_id)
    operation_id = story.command(instance_id, DeleteInstance())
    story.stumble(instance_id, 7)
    story.park(instance_id)
    story.intervene(instance_id, "retry_operation")
    answer = the_operation(seen, operation_id)
    assert (answer.parked, answer.attempts, answer.retry_at, answer.outcome) == (False, 0, None, Outcome.RUNNING)
    assert not the_instance(seen, instance_id).parked


def test_a_skipped_step_is_passed_and_whose_word_it_was_is_shown(story: Story, seen: Seen) -> None:
    instance_id = story.create()
    story.settle(instance_id)
    operation_id = story.command(instance_id, DeleteInstance())
    story.until(instance_id, "delete_volume")
    story.park(instance_id)
    story.intervene(instance_id, "skip_step", reason="removed by hand")
    instance = the_instance(seen, instance_id)
    assert (instance.parked, instance.last_command, instance.last_actor) == (False, "skip_step", "bob")
    story.settle(instance_id)
    assert the_operation(seen, operation_id).outcome is Outcome.DONE


def test_an_abandoned_operation_has_failed_even_if_it_was_cancelled_before(story: Story, seen: Seen) -> None:
    instance_id = story.create()
    operation_id = the_instance(seen, instance_id).operation_id
    assert operation_id is not None
    story.until(instance_id, "build_server")
    story.intervene(instance_id, "cancel_operation")
    story.park(instance_id)
    story.intervene(instance_id, "abandon_operation", reason="enough")
    ended = the_operation(seen, operation_id)
    assert (ended.outcome, ended.parked) == (Outcome.FAILED, False)
    assert ended.failure is not None
    assert ended.failure.code == "abandoned"
    instance = the_instance(seen, instance_id)
    assert (instance.status, instance.operation_id, instance.parked) == ("ERROR", None, False)


def test_an_intervention_is_told_in_the_history_with_who_sent_it_and_why(story: Story, seen: Seen) -> None:
    instance_id = story.create()
    story.until(instance_id, "build_server")
    story.intervene(instance_id, "cancel_operation", reason="by mistake")
    found = history.LISTING.page(
        seen(), "blue", ListRequest(filter={"instance_id": str(instance_id), "name": "CancelRequested"})
    )
    (told,) = found.items
    assert (told.actor, told.command) == ("bob", "cancel_operation")
    assert told.sentence == "bob cancelled the operation in build_server (by mistake); next: undo_build_server."


def test_a_deletion_is_done_when_all_is_gone_though_the_clean_stop_failed(story: Story, seen: Seen) -> None:
    instance_id = story.create()
    story.settle(instance_id)
    deletion = story.command(instance_id, DeleteInstance())
    story.fail(instance_id)
    story.settle(instance_id)
    answer = the_operation(seen, deletion)
    assert (answer.outcome, answer.failure is not None) == (Outcome.DONE, True)


def test_every_owing_state_has_an_effect_to_show() -> None:
    for kind, lifecycle in LIFECYCLES.items():
        assert [state for state in lifecycle.owing if not effect_owed(kind, state)] == []


# --- commands ---------------------------------------------------------------------------------------------------------


def test_a_command_shows_its_decision_then_its_outcome(story: Story, seen: Seen) -> None:
    instance_id = story.create()
    story.settle(instance_id)
    command_id = story.command(instance_id, Restart())
    answer = the_command(seen, command_id)
    assert (answer.accepted, answer.outcome, answer.aggregate_id) == (True, Outcome.RUNNING, str(instance_id))
    assert answer.version == story.instances[instance_id].version
    story.fail(instance_id)
    answer = the_command(seen, command_id)
    assert (answer.outcome, answer.error and answer.error.code) == (Outcome.FAILED, "no_valid_host")
    assert answer.finished_at is not None


def test_a_rejected_command_shows_code_and_reason_and_no_outcome(story: Story, seen: Seen) -> None:
    instance_id = story.create()
    command_id = story.command(instance_id, StopInstance())
    answer = the_command(seen, command_id)
    assert (answer.accepted, answer.code, answer.outcome, answer.version) == (False, "conflict", None, None)
    assert answer.reason is not None
    assert "create_instance" in answer.reason


def test_a_command_that_begins_no_operation_is_done_when_decided(story: Story, seen: Seen) -> None:
    instance_id = story.create()
    command_id = story.reserve("blue", instance_id)
    again = story.reserve("blue", instance_id)
    assert [the_command(seen, each).outcome for each in (command_id, again)] == [Outcome.DONE, Outcome.DONE]


def test_a_decision_read_before_what_it_led_to_is_still_running(story: Story, models: ReadModels, seen: Seen) -> None:
    story.create()
    events = story.log.read(0, 100)
    models.advance(list(models.models), [stored for stored in events if stored.topic == "command.CommandAccepted"])
    with closing(connect(models.path.parent)) as connection:
        answer = commands.get(connection, "blue", str(events[0].event.command_id))
    assert answer is not None
    assert (answer.accepted, answer.outcome) == (True, Outcome.RUNNING)


# --- quota, fleet, history --------------------------------------------------------------------------------------------


def test_quota_shows_what_is_held(story: Story, seen: Seen) -> None:
    first, second = story.create(), story.create()
    story.reserve("blue", first)
    story.reserve("blue", second)
    story.command(quota_id("blue"), ReleaseQuota(instance_id=first))
    answer = quota_model.get(seen(), "blue")
    assert (answer.instances, answer.ram, answer.volumes) == (1, 512, 5)
    assert [held.instance_id for held in answer.held] == [second]
    assert quota_model.get(seen(), "green").instances == 0


def test_the_fleet_counts_what_there_is(story: Story, seen: Seen) -> None:
    ids = [story.create() for _ in range(3)]
    story.create(project="green")
    for instance_id in ids[:2]:
        story.settle(instance_id)
    story.command(ids[1], DeleteInstance())
    story.settle(ids[1])
    answer = fleet.get(seen(), "blue")
    assert (answer.instances, answer.statuses, answer.hosts) == (2, {"ACTIVE": 1, "BUILD": 1}, {"a": 1})
    assert (answer.ram, answer.volume_size, answer.datastores) == (1024, 10, {"postgresql": {"16": 2}})
    assert (answer.running, answer.done, answer.failed) == (1, 3, 0)


def test_history_tells_every_event_with_who_asked_for_it(story: Story, seen: Seen) -> None:
    instance_id = story.create(actor="ann")
    story.settle(instance_id)
    restart = story.command(instance_id, Restart(), actor="bob")
    story.stumble(instance_id)
    story.health(instance_id, HealthStatus.HEALTHY)
    refused = story.command(instance_id, Restart(), actor="eve")
    page = history.LISTING.page(seen(), "blue", ListRequest(filter={"instance_id": str(instance_id)}))
    assert len(page.items) == story.log.end()
    stumbled = next(item for item in page.items if item.name == "AttemptFailed")
    assert (stumbled.operation_id, stumbled.command, stumbled.actor) == (restart, "restart", "bob")
    assert stumbled.facts["effect"] == "RestartDatabase"
    assert "RestartDatabase failed (cloud_unavailable): 503" in stumbled.sentence
    last = page.items[-1]
    assert (last.name, last.operation_id, last.actor, last.facts["code"]) == (
        "CommandRejected",
        refused,
        "eve",
        "conflict",
    )
    only = ListRequest(filter={"aggregate_id": str(instance_id)})
    assert len(history.LISTING.page(seen(), "blue", only).items) == story.instances[instance_id].version
    first = history.get(seen(), "blue", str(instance_id), 1)
    assert first is not None
    assert first.sentence == "ann asked for the instance db: postgresql 16, flavor small, 5 GiB."


def test_another_projects_things_are_not_there(story: Story, seen: Seen) -> None:
    instance_id = story.create(project="green")
    operation = story.instances[instance_id].operation
    assert operation is not None
    connection = seen()
    assert instances.get(connection, "blue", str(instance_id)) is None
    assert operations.get(connection, "blue", str(operation.id)) is None
    assert commands.get(connection, "blue", str(operation.id)) is None
    assert history.get(connection, "blue", str(instance_id), 1) is None
    for listing in (instances.LISTING, operations.LISTING, commands.LISTING, history.LISTING):
        assert listing.page(connection, "blue", ListRequest()).items == []


@pytest.mark.parametrize(
    "event",
    [
        event
        for module in (health, instance_events, quota, record)
        for event in vars(module).values()
        if isinstance(event, type) and issubclass(event, Event) and event.kind and "TOPIC" in vars(event)
    ],
)
def test_every_event_can_be_told(event: Any) -> None:
    if event.TOPIC in _SENTENCES:
        return
    told = sentence(event.__new__(event))
    assert told.endswith(".")
    assert told[0].isupper()


# --- what was observed --------------------------------------------------------------------------------------------


def test_what_was_seen_in_the_cloud_is_nobodys_doing_and_the_instance_shows_it_until_it_is_gone(
    story: Story, seen: Seen
) -> None:
    instance_id = story.create()
    story.settle(instance_id)
    before = instances.get(seen(), "blue", str(instance_id))
    assert before is not None
    story.surplus(instance_id)
    story.drift(instance_id, volume_size=7)
    story.drift(instance_id, volume_size=9)
    instance = instances.get(seen(), "blue", str(instance_id))
    assert instance is not None
    assert (instance.updated_at, instance.last_event) == (before.updated_at, before.last_event)
    assert [(each.what, each.believed, each.seen) for each in instance.drift] == [("size", "5", "9")]
    assert instance.version - instance.lifecycle_version == 4
    page = history.LISTING.page(seen(), "blue", ListRequest(filter={"instance_id": str(instance_id)}))
    told = page.items[-4:]
    assert [each.name for each in told] == ["SurplusFound", "SurplusDeleted", "DriftFound", "DriftFound"]
    assert {(each.operation_id, each.command, each.actor) for each in told} == {(None, None, None)}
    story.drift(instance_id)
    after = instances.get(seen(), "blue", str(instance_id))
    assert after is not None
    assert after.drift == ()


def test_what_was_adopted_is_shown_as_held_and_with_whose_word(story: Story, seen: Seen) -> None:
    instance_id = story.create()
    story.settle(instance_id)
    story.drift(instance_id, volume_size=7)
    volume_id = story.adopt(instance_id)
    instance = instances.get(seen(), "blue", str(instance_id))
    assert instance is not None
    assert (instance.volume_id, instance.drift) == (str(volume_id), ())
    page = history.LISTING.page(seen(), "blue", ListRequest(filter={"instance_id": str(instance_id)}))
    assert "bob had the orphan volume" in page.items[-1].sentence


def test_a_deleted_instance_shows_no_drift_and_is_not_undeleted_by_what_is_seen_of_it(story: Story, seen: Seen) -> None:
    instance_id = story.create()
    story.settle(instance_id)
    story.drift(instance_id, volume_size=7)
    story.command(instance_id, DeleteInstance())
    story.settle(instance_id)
    story.surplus(instance_id)
    instance = instances.get(seen(), "blue", str(instance_id))
    assert instance is not None
    assert (instance.status, instance.drift, instance.deleted_at is None) == ("DELETED", (), False)
    assert instances.LISTING.page(seen(), "blue", ListRequest()).items == []
