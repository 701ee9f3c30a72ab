"""A process dies, or a call of it fails, exactly where its environment says."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from engine import crash_environment, crash_points
from engine.clouds.port import FinalError

PASSES = """
from engine import crash_environment, crash_points
crash_environment.listen()
crash_points.reach("before_effect", "build_port")
for point in ("call", "answer", "call", "answer"):
    crash_points.reach(point, "create_port")
"""


def passing(**environment: str) -> subprocess.CompletedProcess[bytes]:
    """A process that passes two calls and their answers."""
    return subprocess.run(
        [sys.executable, "-c", PASSES], env={**os.environ, **environment}, timeout=60, check=False, capture_output=True
    )


def test_a_process_dies_at_the_occurrence_that_is_named(tmp_path: Path) -> None:
    record = tmp_path / "record"
    done = passing(HOLDFAST_CRASH_AT="call:create_port:2", HOLDFAST_CRASH_RECORD=str(record))
    assert done.returncode == -signal.SIGKILL
    assert record.read_text().split()[1:] == ["call:create_port:1", "answer:create_port:1", "call:create_port:2"]


def test_nothing_happens_where_nothing_is_named() -> None:
    assert passing().returncode == 0
    assert passing(HOLDFAST_CRASH_AT="call:create_port:3").returncode == 0


def test_orders_in_a_file_may_change_while_the_process_runs(tmp_path: Path) -> None:
    orders = tmp_path / "orders"
    done = passing(HOLDFAST_CRASH_AT=f"@{orders}")
    assert done.returncode == 0
    orders.write_text("kill answer:create_port:1\n")
    assert passing(HOLDFAST_CRASH_AT=f"@{orders}").returncode == -signal.SIGKILL


async def test_calls_fail_in_the_states_that_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    orders = tmp_path / "orders"
    orders.write_text("fail build_port\n")
    monkeypatch.setenv("HOLDFAST_CRASH_AT", f"@{orders}")

    async def pay(state: str) -> None:
        crash_points.reach("before_effect", state)
        await asyncio.create_task(call())

    async def call() -> None:
        crash_points.reach("call", "create_port")

    token = crash_points.listener.set(None)
    try:
        crash_environment.listen()
        await pay("build_volume")
        with pytest.raises(FinalError, match="create_port is refused in build_port"):
            await asyncio.create_task(pay("build_port"))
        orders.write_text("")
        await pay("build_port")
    finally:
        crash_points.listener.reset(token)
