"""Some hundred seeds keep all promises, in schedules short enough for every run of the tests."""

from __future__ import annotations

import pytest

from tests.simulation.schedule import MINUTE, course

SEEDS = 100
MINUTES = (2.0, 3.0, 5.0)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_promises_are_kept(seed: int) -> None:
    minutes = MINUTES[seed % len(MINUTES)]
    report = course(seed, minutes * MINUTE)
    assert report.breaches == [], f"replay it with: make simulate SEED={seed} HOURS={minutes / 60}"
