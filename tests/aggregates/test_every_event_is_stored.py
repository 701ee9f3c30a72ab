"""Every event class there is survives being stored and read, and says its topic."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from aggregates.base import Event, Lifecycled, Transitioned
from aggregates.commands import ReleaseBackup, ReleaseQuota, ReserveBackup, ReserveQuota, SetQuota
from aggregates.health import Health, HealthStatus
from aggregates.instance import Instance
from aggregates.obligations import quota_id
from aggregates.observation import Look, adopt, disown, drift, note, note_removed, note_surplus
from aggregates.quota import Quota
from aggregates.record import CommandAccepted, CommandRejected, record_id
from aggregates.resources import Resource, ResourceKind
from engine.event_log import fold
from engine.mapper import MsgspecMapper
from tests.aggregates.event_classes import concrete
from tests.support.given import (
    NOON,
    YIELDS,
    active,
    advance,
    context,
    everywhere,
    intervention,
    park,
    pay,
    requested,
    started,
)

ID = UUID(int=1)


def lived() -> list[Any]:
    """Aggregates in whose pending events every class occurs."""
    instances = list(everywhere().values())
    for instance in instances:
        owed = instance.owes()
        if owed is None:
            continue
        note = {"effect": owed.effect.type_name, "code": "timeout", "message": "no answer — «later»\n"}
        instance.note("AttemptFailed", at=NOON, attempt=1, retry_at=NOON, **note)
        instance.note("OperationParked", at=NOON, **note)
        instance.note("CallUnanswered", at=NOON, effect="EnsureServer", until=NOON)
        instance.note("LastLookDue", at=NOON, due_at=NOON, **note)
        instance.note("LateOutcome", at=NOON, effect="EnsureServer", facts=YIELDS["server_created"])
        pay(instance)
    quota = Quota.create(quota_id("acme"), ReserveQuota(instance_id=ID, ram=1, volumes=1), context())
    quota.execute(ReleaseQuota(instance_id=ID), context())
    quota.execute(ReserveBackup(backup_id=UUID(int=2)), context())
    quota.execute(ReleaseBackup(backup_id=UUID(int=2)), context())
    quota.execute(SetQuota(instances=5, ram=-1), context())
    health = Health.watch(ID, project="acme", partition=7, at=NOON)
    health.observe(HealthStatus.DOWN, "no heartbeat for 31 s", at=NOON)
    health.forget(at=NOON)
    return [*instances, *intervened(), observed(), quota, health]


def observed() -> Instance:
    """An instance of whose name the cloud held a second volume."""
    instance = active()
    volume = Resource(kind=ResourceKind.VOLUME, id="volume-2", name=instance.resource_name, size=1)
    note_surplus(instance, volume, at=NOON)
    note_removed(instance, volume, at=NOON)
    disown(instance, volume, actor="bob", at=NOON)
    missing = Look(entered=instance.entered, drift=drift(instance, []))
    note(instance, missing, missing, at=NOON)
    fine = Look(entered=instance.entered)
    note(instance, fine, fine, at=NOON)
    adopt(
        instance,
        Resource(kind=ResourceKind.VOLUME, id="volume-3", name=instance.resource_name),
        [],
        actor="bob",
        at=NOON,
    )
    return instance


def intervened() -> list[Any]:
    """Deletions that are parked and then intervened in, and a create that is cancelled."""
    found = []
    for name in ("retry_operation", "skip_step", "abandon_operation"):
        found.append(park(advance(started("delete_instance"), "delete_volume")))
        found[-1].execute(intervention(found[-1], name, reason="« asked for »"), context())
    found.append(requested())
    found[-1].execute(intervention(found[-1], "cancel_operation"), context())
    return found


def records() -> list[Event]:
    facts: dict[str, Any] = {
        "originator_id": record_id("acme", ID),
        "originator_version": 1,
        "timestamp": NOON,
        "project": "acme",
        "command_id": ID,
        "command": "restart",
        "aggregate_kind": "instance",
        "aggregate_id": str(ID),
        "actor": "alice",
        "content": "0" * 64,
        "sequence": 9,
    }
    accepted = {**facts, "version": 3}
    rejected = {**facts, "code": "conflict", "reason": "it runs"}
    return [CommandAccepted(**accepted), CommandRejected(**rejected)]


def test_what_was_lived_and_what_was_stored_are_the_same() -> None:
    mapper = MsgspecMapper()
    seen = set()
    for aggregate in lived():
        events = aggregate.collect_events()
        stored = [mapper.to_stored_event(event) for event in events]
        seen |= {each.topic for each in stored}
        read = [mapper.to_domain_event(each) for each in stored]
        assert read == list(events)
        assert vars(fold(read)) == vars(aggregate)
    for record in records():
        row = mapper.to_stored_event(record)
        seen.add(row.topic)
        assert mapper.to_domain_event(row) == record
    assert seen == concrete().keys()


@pytest.mark.parametrize("topic", concrete())
def test_a_topic_is_kind_and_class_name(topic: str) -> None:
    event = concrete()[topic]
    assert topic == f"{event.kind}.{event.__name__}"


@pytest.mark.parametrize("topic", concrete())
def test_an_event_says_what_it_means(topic: str) -> None:
    assert concrete()[topic].__doc__


def test_only_an_instance_has_a_lifecycle_so_far() -> None:
    owners = {topic.partition(".")[0] for topic, event in concrete().items() if issubclass(event, Transitioned)}
    assert owners == {each.kind for each in Lifecycled.__subclasses__() if each.__module__.startswith("aggregates.")}
