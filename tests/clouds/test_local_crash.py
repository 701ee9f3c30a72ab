"""Killed at any point of an instance's life, the local cloud goes on where it was: nothing twice, nothing left."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from tests.clouds.test_local_volumes import abilities

# A sample, so that the suite stays fast; 1 tries every point, in a few minutes.
STEP = int(os.environ.get("HOLDFAST_CRASH_STEP", "30"))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mount", ["always", "never"])
async def test_a_kill_at_any_point_leaves_nothing_twice_and_nothing_behind(directory: Path, mount: str) -> None:
    possible = mount == "never" or abilities(directory).mounts is None
    driver = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.clouds.crash_driver",
        str(directory),
        str(1 + STEP // 2),
        str(STEP),
        env={**os.environ, "CRASH_MOUNT": mount if possible else "auto"},
        cwd=Path(__file__).parents[2],
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        said, complaints = await driver.communicate()
    except BaseException:
        driver.kill()
        raise
    assert driver.returncode == 0, complaints.decode()
    counted = json.loads(said)
    assert counted["points"] > 150
    assert counted["tried"] >= counted["points"] // STEP
