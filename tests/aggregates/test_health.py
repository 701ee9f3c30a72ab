"""Health: only changes are events, and nothing is heard of an instance that is gone."""

from __future__ import annotations

from uuid import UUID

import pytest

from aggregates.health import Health, HealthStatus, health_id
from engine.event_log import fold
from tests.support.given import NOON

INSTANCE = UUID(int=1)


def watched() -> Health:
    health = Health.watch(INSTANCE, project="acme", partition=7, at=NOON)
    known: Health = fold(health.collect_events())
    return known


def names(health: Health) -> list[str]:
    return [type(event).__name__ for event in health.collect_events()]


def test_health_is_unknown_before_the_first_beat() -> None:
    health = watched()
    assert (health.health, health.watched, health.instance_id) == (HealthStatus.UNKNOWN, True, INSTANCE)


def test_health_has_an_id_of_its_own_that_follows_from_the_instances() -> None:
    assert watched().id == health_id(INSTANCE) != INSTANCE


@pytest.mark.parametrize("status", [HealthStatus.HEALTHY, HealthStatus.SUSPECT, HealthStatus.DOWN])
def test_a_change_is_an_event_that_says_from_what_and_why(status: HealthStatus) -> None:
    health = watched()
    health.observe(status, "no heartbeat for 31 s", at=NOON)
    (event,) = health.collect_events()
    assert vars(event)["health"] is status
    assert vars(event)["previous"] is HealthStatus.UNKNOWN
    assert vars(event)["reason"] == "no heartbeat for 31 s"
    assert health.health is status


def test_the_same_health_again_is_no_event() -> None:
    health = watched()
    health.observe(HealthStatus.HEALTHY, "beats", at=NOON)
    health.observe(HealthStatus.HEALTHY, "beats", at=NOON)
    assert names(health) == ["HealthChanged"]


def test_a_forgotten_instance_is_not_brought_back_by_a_late_beat() -> None:
    health = watched()
    health.forget(at=NOON)
    health.forget(at=NOON)
    health.observe(HealthStatus.HEALTHY, "a late beat", at=NOON)
    assert names(health) == ["HealthForgotten"]
    assert health.watched is False
