from __future__ import annotations

import asyncio
import contextlib
import io
import json
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog

from engine.cli import main
from engine.client import BrokerSettings
from tests.client.responder import Responder, decided
from tests.support.broker import Broker, running_broker

INSTANCE = "3f3e4f6e-0000-4000-8000-000000000001"


class Ended(msgspec.Struct, frozen=True):
    """How a call ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


class Program:
    """The program, called in this process on a thread of its own, as the engine that answers lives on the loop."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def __call__(self, *arguments: str, stdin: str = "") -> Ended:
        return await asyncio.to_thread(self._call, ["--nats", self.url, "--project", "acme", *arguments], stdin)

    @staticmethod
    def _call(arguments: list[str], stdin: str) -> Ended:
        out, err, before = io.StringIO(), io.StringIO(), sys.stdin
        sys.stdin = io.StringIO(stdin)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                main(arguments)
        except SystemExit as ended:
            return Ended(int(ended.code or 0), out.getvalue(), err.getvalue())
        finally:
            sys.stdin = before
            structlog.reset_defaults()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with running_broker(tmp_path / "broker") as started:
        yield started


@pytest.fixture
async def responder(broker: Broker) -> AsyncIterator[Responder]:
    started = Responder()
    try:
        await started.start(BrokerSettings(url=broker.url))
        started.answers["commands", "get"] = lambda q: decided(q["command_id"]) | {"outcome": "done", "error": None}
        started.answers["operations", "get"] = lambda q: operation(q["operation_id"])
        started.answers["instances", "get"] = lambda _: instance()
        started.answers["instances", "list"] = lambda q: {
            "items": [instance()] if (q.get("filter") or {}).get("name", "orders") == "orders" else [],
            "next_marker": None,
        }
        yield started
    finally:
        await started.stop()


@pytest.fixture
def program(broker: Broker, responder: Responder) -> Program:
    return Program(broker.url)


def instance(**change: Any) -> dict[str, Any]:
    return {
        "id": INSTANCE, "name": "orders", "state": "ACTIVE", "status": "ACTIVE", "trove_status": "ACTIVE",
        "operating_status": "HEALTHY", "health": "HEALTHY", "flavor_id": "2", "flavor": "small", "vcpus": 1, "ram": 512,
        "datastore": "postgresql", "datastore_version": "18", "address": "127.0.0.9", "port": 5432, "volume_size": 2,
        "volume_type": None, "region": None, "availability_zone": None, "host": "host-1", "server_id": "s",
        "volume_id": "v", "port_id": "p", "operation_id": None, "operation": None, "parked": False, "failure": None,
        "created_at": "2026-01-01T10:00:00Z", "updated_at": "2026-01-01T10:00:09Z", "deleted_at": None, "version": 9,
        "lifecycle_version": 9, "last_event": "DatabaseHealthy", "last_command": "create_instance",
        "last_actor": "alice",
    } | change  # fmt: skip


def operation(operation_id: str, **change: Any) -> dict[str, Any]:
    return {
        "id": operation_id, "kind": "instance", "instance_id": INSTANCE, "command": "restart", "actor": "alice",
        "plan": ["restart_database", "restart_health"], "n": 2, "m": 2, "state": None, "effect": None, "attempts": 0,
        "error": None, "retry_at": None, "deadline": "2026-01-01T11:00:00Z", "started_at": "2026-01-01T10:00:00Z",
        "finished_at": "2026-01-01T10:00:02Z", "duration": 2.0, "outcome": "done", "failure": None, "parked": False,
        "cancelled_by": None, "states": [],
    } | change  # fmt: skip
