"""A project's quota: reserving and releasing, twice as once, and never over a limit that was not passed already."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from datetime import timedelta
from typing import Any, cast
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregates.base import Refusal
from aggregates.catalogue import Quota as Limits
from aggregates.commands import (
    Command,
    ReleaseBackup,
    ReleaseQuota,
    ReserveBackup,
    ReserveQuota,
    Restart,
    SetQuota,
)
from aggregates.obligations import quota_id
from aggregates.quota import REMEMBERED, Held, OwnLimits, Quota
from aggregates.snapshots import QuotaSnapshot
from engine.event_log import fold
from tests.support.given import CATALOGUE, NOON, context

ONE, TWO = UUID(int=1), UUID(int=2)


def reserve(instance_id: UUID, ram: int = 512, volumes: int = 1, as_of: int = 0) -> ReserveQuota:
    return ReserveQuota(instance_id=instance_id, ram=ram, volumes=volumes, as_of=as_of)


def opened(*commands: Command, **limits: int) -> Quota:
    """A quota that has decided the commands, as its events tell it."""
    decided_in = context(catalogue=msgspec.structs.replace(CATALOGUE, quota=Limits(**limits)))
    quota = Quota.create(quota_id("acme"), commands[0], decided_in)
    for command in commands[1:]:
        with suppress(Refusal) if isinstance(command, ReserveQuota) else nullcontext():
            quota.execute(command, decided_in)
    known: Quota = fold(quota.collect_events())
    return known


def events(quota: Quota, command: Command, **limits: int) -> list[str]:
    quota.execute(command, context(catalogue=msgspec.structs.replace(CATALOGUE, quota=Limits(**limits))))
    return [type(event).__name__ for event in quota.collect_events()]


def refusal(quota: Quota, command: Command, **limits: int) -> Refusal:
    held = dict(quota.held)
    with pytest.raises(Refusal) as raised:
        events(quota, command, **limits)
    assert quota.held == held
    assert list(quota.pending_events) == []
    return raised.value


changes = st.lists(
    st.one_of(
        st.builds(reserve, st.uuids(version=4) | st.sampled_from([ONE, TWO]), st.integers(0, 9), st.integers(0, 9)),
        st.builds(ReleaseQuota, instance_id=st.sampled_from([ONE, TWO])),
    ),
    min_size=1,
)


@given(changes)
def test_the_sum_kept_is_that_of_what_is_held(commands: list[Command]) -> None:
    quota = opened(*commands)
    assert quota.total == Held(
        ram=sum(held.ram for held in quota.held.values()), volumes=sum(held.volumes for held in quota.held.values())
    )
    assert vars(QuotaSnapshot.take(quota).restore()) == vars(quota)


def test_the_first_command_opens_the_quota_and_is_decided() -> None:
    quota = Quota.create(quota_id("acme"), reserve(ONE), context())
    assert [type(e).__name__ for e in quota.collect_events()] == ["QuotaOpened", "ReservationChanged"]
    assert quota.held == {ONE: Held(ram=512, volumes=1)}


def test_a_first_reservation_that_does_not_fit_opens_nothing() -> None:
    with pytest.raises(Refusal) as raised:
        opened(reserve(ONE), ram=100)
    assert raised.value.code == "quota_exceeded"


def test_reserving_again_replaces_what_was_held() -> None:
    assert opened(reserve(ONE), reserve(ONE, ram=1024)).held == {ONE: Held(ram=1024, volumes=1)}


def test_reserving_the_same_twice_is_the_same_as_once() -> None:
    assert events(opened(reserve(ONE)), reserve(ONE)) == []


def test_releasing_twice_is_the_same_as_once() -> None:
    quota = opened(reserve(ONE))
    assert events(quota, ReleaseQuota(instance_id=ONE)) == ["ReservationReleased"]
    assert events(quota, ReleaseQuota(instance_id=ONE)) == []
    assert quota.held == {}


def test_releasing_what_was_never_held_holds_nothing() -> None:
    quota = opened(reserve(ONE))
    assert events(quota, ReleaseQuota(instance_id=TWO)) == ["ReservationReleased"]
    assert quota.held.keys() == {ONE}
    assert opened(ReleaseQuota(instance_id=ONE)).held == {}


def test_what_is_released_is_never_reserved_again_however_late_the_command_comes() -> None:
    quota = opened(reserve(ONE), ReleaseQuota(instance_id=ONE))
    refused_with = refusal(quota, reserve(ONE))
    assert refused_with.code == "conflict"
    assert "this came late" in refused_with.message


def test_a_reservation_that_comes_late_replaces_no_newer_one() -> None:
    quota = opened(reserve(ONE, volumes=5, as_of=7), reserve(ONE, volumes=1, as_of=9))
    assert refusal(quota, reserve(ONE, volumes=5, as_of=7)).code == "conflict"
    assert quota.held == {ONE: Held(ram=512, volumes=1)}


def test_who_has_released_long_ago_is_forgotten() -> None:
    quota = opened(ReleaseQuota(instance_id=ONE))
    later = context(at=NOON + REMEMBERED + timedelta(seconds=1))
    quota.execute(ReleaseQuota(instance_id=TWO), later)
    assert quota.released.keys() == {TWO}


# --- backups, and limits of the project's own ---------------------------------------------------------------------


def test_backups_are_counted_each_once_and_released() -> None:
    quota = opened(ReserveBackup(backup_id=ONE))
    assert events(quota, ReserveBackup(backup_id=ONE)) == []
    assert events(quota, ReserveBackup(backup_id=TWO), backups=2) == ["BackupReserved"]
    assert refusal(quota, ReserveBackup(backup_id=UUID(int=3)), backups=2).code == "quota_exceeded"
    assert events(quota, ReleaseBackup(backup_id=ONE)) == ["BackupReleased"]
    assert events(quota, ReleaseBackup(backup_id=ONE)) == []
    assert refusal(quota, ReserveBackup(backup_id=ONE)).code == "conflict"
    assert quota.backups == {TWO}


def test_limits_that_an_operator_sets_go_before_the_installations() -> None:
    quota = opened(reserve(ONE), SetQuota(instances=2, ram=-1))
    assert events(quota, reserve(TWO, ram=9999), instances=1, ram=1000) == ["ReservationChanged"]
    assert refusal(quota, reserve(UUID(int=3)), instances=1, ram=1000).message.startswith(
        "the project would hold 3 instances, and its quota is 2"
    )


def test_a_limit_can_be_given_back_and_what_is_left_out_stays() -> None:
    quota = opened(SetQuota(instances=0, ram=5), SetQuota(instances=None))
    assert quota.limits == OwnLimits(ram=5)
    assert events(quota, SetQuota(ram=5)) == []


def test_a_limit_below_what_is_held_takes_nothing_back() -> None:
    quota = opened(reserve(ONE), reserve(TWO), SetQuota(instances=1))
    assert len(quota.held) == 2
    assert refusal(quota, reserve(UUID(int=3))).code == "quota_exceeded"


def test_who_sets_nothing_is_told_what_can_be_set() -> None:
    assert "instances, ram, volumes, backups" in refusal(opened(reserve(ONE)), SetQuota()).message


def test_an_operator_may_set_limits_before_the_project_holds_anything() -> None:
    quota = Quota.create(quota_id("acme"), SetQuota(volumes=10), context(actor="carol"))
    opened_, set_ = cast("Any", quota.collect_events())
    assert (type(opened_).__name__, type(set_).__name__, set_.actor) == ("QuotaOpened", "LimitsSet", "carol")


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"instances": 1}, "would hold 2 instances, and its quota is 1"),
        ({"ram": 1023}, "would hold 1024 ram (MiB), and its quota is 1023"),
        ({"volumes": 1}, "would hold 2 volumes (GiB), and its quota is 1"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_with_the_limit(limits: dict[str, int], words: str) -> None:
    refused_with = refusal(opened(reserve(ONE)), reserve(TWO), **limits)
    assert refused_with.code == "quota_exceeded"
    assert words in refused_with.message


def test_what_just_fits_is_reserved() -> None:
    quota = opened(reserve(ONE))
    assert events(quota, reserve(TWO), instances=2, ram=1024, volumes=2) == ["ReservationChanged"]


def test_a_limit_of_zero_is_a_limit_and_minus_one_is_none() -> None:
    quota = opened(reserve(ONE))
    assert refusal(quota, reserve(TWO), instances=0).code == "quota_exceeded"
    assert events(quota, reserve(TWO), instances=-1) == ["ReservationChanged"]


def test_over_a_lowered_limit_shrinking_is_allowed_and_growing_is_not() -> None:
    quota = opened(reserve(ONE, ram=4096, volumes=10), reserve(TWO))
    lowered = {"instances": 1, "ram": 1024, "volumes": 5}
    assert events(quota, reserve(ONE, ram=2048, volumes=10), **lowered) == ["ReservationChanged"]
    assert refusal(quota, reserve(ONE, ram=2049, volumes=10), **lowered).code == "quota_exceeded"
    assert refusal(quota, reserve(ONE, ram=2048, volumes=11), **lowered).code == "quota_exceeded"


def test_what_shrinks_in_one_respect_may_not_grow_in_another_over_its_limit() -> None:
    quota = opened(reserve(ONE, ram=4096, volumes=10))
    assert refusal(quota, reserve(ONE, ram=512, volumes=11), volumes=5).code == "quota_exceeded"


def test_another_project_finds_nothing() -> None:
    with pytest.raises(Refusal) as raised:
        opened(reserve(ONE)).execute(ReleaseQuota(instance_id=ONE), context(project="rival"))
    assert raised.value.code == "not_found"


def test_a_command_of_another_kind_is_unknown() -> None:
    assert refusal(opened(reserve(ONE)), Restart()).code == "unknown_command"


def test_projects_have_quotas_of_their_own() -> None:
    assert quota_id("acme") != quota_id("rival")
    assert quota_id("acme") == quota_id("acme")
