"""A spread of the crash matrix on real services, another one each time; `make crash-openstack` runs all of it."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.crash.matrix import Report
from tests.openstack.crash.matrix import PARALLEL, plain, record, strike
from tests.openstack.services import Lab

SPREAD = 12


@pytest.mark.timeout(1800)
def test_killed_anywhere_nothing_is_lost_doubled_or_left(
    lab: Lab, record_property: Callable[[str, object], None]
) -> None:
    seed = int(time.time())
    matrix = record(plain())
    assert matrix.wrong == []
    report = Report()
    for results in strike(matrix.spread(seed, SPREAD), PARALLEL):
        report.add(results)
    lines = [f"the crash matrix on OpenStack, {SPREAD} of {matrix.boundaries} boundaries, seed {seed}", *report.lines()]
    record_property("figures", "\n".join(lines))
    assert [f"{each.scenario} at {each.boundary}: {each.problems}" for each in report.bad] == []
