"""Who should own what: evenly shared, the same for all who see the same members, and little moves."""

from __future__ import annotations

from collections import Counter
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.partitions import RANGES, share_out

members = st.lists(st.uuids(), min_size=1, max_size=20, unique=True)


def named(ids: list[UUID]) -> list[str]:
    return [member.hex for member in ids]


@given(members)
def test_each_owns_as_many_as_the_others_or_one_more(ids: list[UUID]) -> None:
    owner = share_out(named(ids))
    assert owner.keys() == set(RANGES)
    owned = Counter(owner.values())
    assert max(owned.values()) - min(owned[member] for member in named(ids)) <= 1


@given(members)
def test_it_does_not_matter_in_which_order_members_are_seen(ids: list[UUID]) -> None:
    assert share_out(named(ids)) == share_out(sorted(named(ids)))


@pytest.mark.parametrize("count", range(1, 9))
def test_little_moves_when_one_joins(count: int) -> None:
    ids = [UUID(int=7**40 * (number + 3) % 2**128).hex for number in range(count + 1)]
    before, after = share_out(ids[:count]), share_out(ids)
    moved = sum(before[name] != after[name] for name in RANGES)
    assert moved <= len(RANGES) / (count + 1) + len(RANGES) / 3
