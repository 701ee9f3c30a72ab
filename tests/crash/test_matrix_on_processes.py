"""Real processes are killed by -9 at a spread of the boundaries, another one each time: its seed is printed."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from random import Random

import pytest

from tests.crash.matrix import Form, Report, sample
from tests.crash.scenarios import scenarios

SCENARIOS = 2
BOUNDARIES = 6  # of these


@pytest.mark.timeout(900)
def test_real_processes_are_killed_at_a_spread_of_the_boundaries(
    store_url: str, record_property: Callable[[str, object], None]
) -> None:
    seed = secrets.randbelow(1_000_000)
    chosen = Random(seed).sample(scenarios(), SCENARIOS)
    url = None if store_url.startswith("sqlite") else store_url
    matrix, results = sample(Form.PROCESSES, chosen, seed, BOUNDARIES, url)
    report = Report()
    report.add(results)
    kind = store_url.partition(":")[0]
    told = [f"crash matrix on processes and {kind}, seed {seed}", *(each.name for each in chosen), *report.lines()]
    print("\n".join(told))
    record_property("figures", "\n".join(told))
    assert matrix.wrong == []
    assert [(bad.scenario, bad.boundary, [str(each) for each in bad.problems]) for bad in report.bad] == []
    assert any(result.met for result in results)
